"""The lines of a table: presses with their parameters and budget, in order, and how parameters that differ are shown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from longpress.analysis.records import BASELINE

LINE = (
    "press",
    "press_parameters",
    "compression_ratio",
    "budget_tokens",
    "query_aware",
    "threshold",
    "prefill",
)
"""Columns that name a line of a table."""
ABSENT = {"compression_ratio": -1.0, "budget_tokens": -1.0, "threshold": -math.inf}
"""What stands in a line's key for a budget of another kind."""


def lines_of(frame: pd.DataFrame) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Lines as shown (parameters as a compact label) and as keyed (missing budgets as `ABSENT`), the full cache first."""
    unique = frame[list(LINE)].drop_duplicates().fillna(ABSENT)
    keys = sorted(
        unique.itertuples(index=False, name=None),
        key=lambda key: (key[0] != BASELINE, key[4], *key[:4], *key[5:]),
    )
    labels: dict[tuple[str, str], str] = {}
    for press in {key[0] for key in keys}:
        texts = sorted({key[1] for key in keys if key[0] == press})
        labels |= {
            (press, text): label
            for text, label in zip(texts, differing([json.loads(text) for text in texts]), strict=True)
        }
    shown = []
    for press, text, ratio, budget, aware, threshold, prefill in keys:
        numbers = math.nan if ratio < 0 else ratio, None if budget < 0 else int(budget), aware
        shown.append(
            (press, labels[press, text], *numbers, math.nan if math.isinf(threshold) else threshold, prefill)
        )
    return shown, keys


def differing(parameters: Sequence[Mapping[str, Any]]) -> list[str]:
    """Compact labels of what differs, e.g. "window_size=32, press.kernel_size=7"; empty where there is one set only."""
    flat = [dict(_flatten(one)) for one in parameters]
    keys = sorted({key for one in flat for key in one})
    varying = [key for key in keys if len({repr(one.get(key)) for one in flat}) > 1]
    return [
        ", ".join(f"{key}={one[key]}" for key in varying if key in one)
        or ("" if len(flat) < 2 else "default")
        for one in flat
    ]


def _flatten(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def baseline_of(line: int, lines: Sequence[tuple[Any, ...]]) -> int:
    """The full-cache line to compare with: of the same query mode and prefill, else any (it does not depend on them), else itself."""
    known = [at for at, other in enumerate(lines) if other[0] == BASELINE]
    alike = [at for at in known if lines[at][4] == lines[line][4]] or known
    return next((at for at in alike if lines[at][6] == lines[line][6]), alike[0] if alike else line)
