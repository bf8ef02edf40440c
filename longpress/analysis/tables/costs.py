"""What compression costs, from records alone: seconds beside the prefill, seconds per token, and bytes.

One prefill serves all presses of a run, and its time includes what they observed; `prefill_seconds` here is
the rest: the prefill that a model without presses would need. A press's own time is what it observes in the
prefill plus, per ratio, selecting and applying; extra passes over the context (KVzip and kin) are part of
selecting and shared by the ratios of a run. Rows are decoded in batches, so `seconds_per_token` is a row's
share of its batch. `peak_cache_bytes` is the cache of one answer at its largest: context, question and what
was written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from longpress.analysis.records import BASELINE, Record, columns
from longpress.analysis.tables.layout import MISSING, line_budget, line_label
from longpress.analysis.tables.row_keys import LINE, differing
from longpress.analysis.tables.scores import TABLE

Grid = tuple[list[str], list[list[str]]]
"""Heads and rows of a table, as text."""
SIZES = ("context_tokens", "cache_bytes", "full_cache_bytes", "peak_cache_bytes")
"""Columns that are means over samples."""
SECONDS = ("prefill_seconds", "observe_seconds", "compress_seconds", "overhead", "seconds_per_token")
"""Columns that are medians over samples: a machine that pauses now and then does not move them."""
MEASURED = (*SIZES, *SECONDS[:3], "decode_seconds", "new_tokens")
COLUMNS = (
    *(
        "model",
        "benchmark",
        "press",
        "press_parameters",
        "compression_ratio",
        "budget_tokens",
        "threshold",
        "query_aware",
        "prefill",
        "n",
    ),
    *(
        "context_tokens",
        "prefill_seconds",
        "observe_seconds",
        "compress_seconds",
        "overhead",
        "seconds_per_token",
    ),
    *(
        "full_cache_bytes",
        "cache_bytes",
        "peak_cache_bytes",
        "benchmark_version",
        "dtype",
        "revision",
        "benchmark_parameters",
    ),
)
"""Columns of the frame, per sample; `overhead` is (observe_seconds + compress_seconds) / prefill_seconds."""


def costs(records: Iterable[Record]) -> pd.DataFrame:
    """A row per line of the tables (press, parameters, budget), the full cache first, failed samples left out."""
    names = [*TABLE, *LINE, "context_id", *MEASURED]
    read = columns(*names)
    frame = pd.DataFrame([read(record) for record in records if record.error is None], columns=names)
    numbers = [*MEASURED, "compression_ratio", "budget_tokens", "threshold"]
    frame[numbers] = frame[numbers].astype(float)
    prefill = [
        *TABLE,
        "query_aware",
        "context_id",
        "prefill_seconds",
    ]  # equal to the last digit only for the very same pass
    observed = (
        frame.drop_duplicates([*prefill, "press", "press_parameters"])
        .groupby(prefill)["observe_seconds"]
        .sum()
    )
    total = observed.rename("observed").reset_index()
    frame = frame.merge(total, on=prefill)
    frame["prefill_seconds"] -= frame.pop("observed")
    frame["overhead"] = (frame["observe_seconds"] + frame["compress_seconds"]) / frame[
        "prefill_seconds"
    ].replace(0, np.nan)
    frame["seconds_per_token"] = frame["decode_seconds"] / frame["new_tokens"].replace(0, np.nan)
    lines = frame.groupby([*TABLE, *LINE], dropna=False, sort=False)
    table = lines[list(SIZES)].mean()
    table[list(SECONDS)] = lines[list(SECONDS)].median()
    table["n"] = lines.size()
    table = table.reset_index()
    texts = {press: sorted(set(part)) for press, part in table.groupby("press")["press_parameters"]}
    labels = {
        (press, text): label
        for press, found in texts.items()
        for text, label in zip(found, differing([json.loads(text) for text in found]), strict=True)
    }
    table["press_parameters"] = [
        labels[key] for key in zip(table["press"], table["press_parameters"], strict=True)
    ]
    table["budget_tokens"] = table["budget_tokens"].astype("Int64")
    table["first"] = table["press"] != BASELINE
    order = [
        *TABLE,
        "first",
        "press",
        "press_parameters",
        "query_aware",
        "prefill",
        "compression_ratio",
        "budget_tokens",
        "threshold",
    ]
    return table.sort_values(order).reindex(columns=list(COLUMNS)).reset_index(drop=True)


def cost_grids(frame: pd.DataFrame) -> dict[tuple[Any, ...], Grid]:
    """Cost tables of a frame of `costs`, by the `TABLE` they belong to."""
    return {names: _grid(part) for names, part in frame.groupby(list(TABLE), sort=False)}


def _grid(part: pd.DataFrame) -> Grid:
    """Heads and rows of the cost table of one table's lines: a row per press; bytes in MiB, after each budget the peak in brackets."""
    told = part["query_aware"].nunique() > 1
    lines: dict[str, dict[str, pd.Series]] = {}
    for _, row in part.iterrows():
        label = line_label(row["press"], row["press_parameters"], row["query_aware"] and told, row["prefill"])
        lines.setdefault(label, {})[
            line_budget(row["press"], row["compression_ratio"], row["budget_tokens"], row["threshold"])
        ] = row
    budgets = sorted(
        {budget for found in lines.values() for budget in found} - {"", MISSING},
        key=lambda text: (" " in text, text),
    )
    head = [
        "press",
        "prefill s",
        "observe s",
        "select s",
        "share",
        "ms/token",
        "cache MiB",
        *(f"after {budget}" for budget in budgets),
    ]
    rows = []
    for label, found in lines.items():
        several = pd.DataFrame(list(found.values()))
        mean = several[
            ["prefill_seconds", "observe_seconds", "compress_seconds", "overhead", "seconds_per_token"]
        ].mean()
        share = MISSING if "" in found else _number(100 * mean["overhead"], "{:.1f} %")
        texts = [
            _number(mean[name], "{:.2f}")
            for name in ("prefill_seconds", "observe_seconds", "compress_seconds")
        ]
        texts += [
            share,
            _number(1000 * mean["seconds_per_token"], "{:.1f}"),
            _mebibytes(several["full_cache_bytes"].mean()),
        ]
        rows.append([label, *texts, *(_after(found.get(budget)) for budget in budgets)])
    return head, rows


NOTE = (
    "Per context; seconds are medians, bytes means. share: observing and selecting at one ratio, in percent of the prefill alone; "
    "ms/token: a row's share of its batch; after a budget: what is left of the cache, in brackets its peak while the answer was written."
)
"""What the columns of cost tables mean."""


def _after(row: pd.Series | None) -> str:
    if row is None:
        return MISSING
    peak = _mebibytes(row["peak_cache_bytes"])
    return _mebibytes(row["cache_bytes"]) + ("" if peak == MISSING else f" ({peak})")


def _mebibytes(value: float) -> str:
    return _number(value / 2**20, "{:.1f}")


def _number(value: float, form: str) -> str:
    return MISSING if math.isnan(value) else form.format(value)
