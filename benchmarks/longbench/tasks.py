"""What a user may call a task: data sets of LongBench and LongBench-E, and columns of the latter.

Each with its prompt, answer length, metric, language and category. Facts only, no scoring.

Source: THUDM/LongBench at 2e00731 (MIT): LongBench/config/*.json, pred.py, eval.py, task.md, README.md; the
    prompts stand in `prompts.json`, cut into three parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from benchmarks.text.fields import field
from benchmarks.text.sources import embedded_json

BUCKETS = ("0-4k", "4-8k", "8k+")
"""Of LongBench-E, by the words of a row: below 4000, below 8000, the rest."""

FEW_SHOT_AND_CODE = frozenset({"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"})
"""Tasks without a chat template."""

FIRST_LINE = frozenset({"trec", "triviaqa", "samsum", "lsht"})
"""Tasks that score the first line after leading line breaks."""


@cache
def prompts() -> dict[str, dict[str, Any]]:
    """Prompt in three parts, answer length, metric, category and language of each task, `prompts.json`."""
    content: dict[str, dict[str, Any]] = embedded_json(__file__, "prompts.json")["tasks"]
    return content


ALL_21 = tuple(prompts())
"""Data sets of LongBench, in the order of the paper."""

ENGLISH_16 = tuple(task for task in ALL_21 if prompts()[task]["language"] != "zh")
"""Those in English and code."""

EXTENDED_13 = tuple(task for task in ENGLISH_16 if task not in ("narrativeqa", "musique", "qmsum"))
"""Data sets of LongBench-E."""

COLUMNS = {f"{task}_e_{bucket}": task for task in EXTENDED_13 for bucket in BUCKETS}
"""Columns of LongBench-E, e.g. "qasper_e_0-4k" -> its data set."""

NAMES = (*ALL_21, *(f"{task}_e" for task in EXTENDED_13), *COLUMNS)
"""Everything that may be called a task: `qasper_e` stands for its three columns."""


def columns_of(name: str) -> tuple[str, ...]:
    """The columns of a data set of LongBench-E; none for another name."""
    return tuple(f"{name}_{bucket}" for bucket in BUCKETS) if name.endswith("_e") else ()


def column_of(name: str, row: Mapping[str, Any], where: str) -> str:
    """The column of a row of LongBench-E, by its length in words.

    Raises:
        ValueError: the row has no such number; names the place.
    """
    length = field(row, "length", where=where)
    if isinstance(length, bool) or not isinstance(length, int | float):
        raise ValueError(
            f"{where}: the field 'length' is a {type(length).__name__}, where a number is expected"
        )
    return f"{name}_{BUCKETS[(length >= 4000) + (length >= 8000)]}"


def categories(language: str) -> list[tuple[str, ...]]:
    """The tasks of a language, code among them, by category."""
    groups: dict[str, list[str]] = {}
    for task in ALL_21:
        if prompts()[task]["language"] in (language, "code"):
            groups.setdefault(prompts()[task]["category"], []).append(task)
    return [tuple(group) for group in groups.values()]
