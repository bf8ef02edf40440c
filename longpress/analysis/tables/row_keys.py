"""What names a table and its rows: the columns of their keys, the order of rows, and how they are called.

A table is what one reading of a benchmark gave on one model: same model, revision, dtype, benchmark, version
and options, and answers generated in the same way. Its rows are presses with their parameters and budget.
Frames hold the fields of both keys as columns; there, `press_parameters` is the compact label of
`parameter_labels`, and a budget that a row does not have is missing (None, NaN or NA).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from longpress.analysis.records import BASELINE, Record, columns
from longpress.analysis.tables.grid import MISSING

SLACK = 0.02
"""Share of the full cache by which a row may exceed its ratio.

That is rounding, and whole layers or heads of short contexts.
"""


SHORT = 40
"""So many characters of a parameter stand in a heading."""


class TableKey(NamedTuple):
    """What one table holds; the parameters of benchmark and generation are JSON with sorted keys."""

    model: str
    revision: str
    dtype: str
    benchmark: str
    benchmark_version: str
    benchmark_parameters: str
    generation_parameters: str

    @classmethod
    def of(cls, record: Record) -> TableKey:
        """The table that a record belongs to."""
        return cls(*_read_table(record))


class RowKey(NamedTuple):
    """A row of a table: a press, its budget (at most one of the three), query mode and prefill.

    Attributes:
        press: its name.
        press_parameters: JSON with sorted keys, or in frames the compact label.
        compression_ratio: fraction of entries removed.
        budget_tokens: entries kept, a whole number.
        query_aware: whether the question was seen while compressing.
        threshold: lowest score that stays.
        prefill: how the context was read, as records say it.
    """

    press: str
    press_parameters: str
    compression_ratio: float | None
    budget_tokens: float | None
    query_aware: bool
    threshold: float | None
    prefill: str

    @classmethod
    def of(cls, record: Record) -> RowKey:
        """The row that a record belongs to, with its parameters as JSON."""
        key = cls(*_read_row(record))
        return key._replace(
            compression_ratio=None if key.compression_ratio is None else round(key.compression_ratio, 6),
            budget_tokens=None if key.budget_tokens is None else float(key.budget_tokens),
            threshold=None if key.threshold is None else float(key.threshold),
        )

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> RowKey:
        """The key of the row that an entry of a frame belongs to."""
        values: Any = (None if pd.isna(entry[name]) else entry[name] for name in ROW)
        return cls(*values)

    @property
    def is_baseline(self) -> bool:
        """Whether this is the full cache."""
        return self.press == BASELINE

    @property
    def competition(self) -> RowKey:
        """Equal for rows that compete: those of the same budget, query mode and prefill."""
        return self._replace(press="", press_parameters="")

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts the rows of a table: the full cache, then by query mode, press, parameters and budget."""
        ratio = -1.0 if self.compression_ratio is None else self.compression_ratio
        tokens = -1 if self.budget_tokens is None else self.budget_tokens
        threshold = -math.inf if self.threshold is None else self.threshold
        press = (not self.is_baseline, self.query_aware, self.press, self.press_parameters)
        return *press, ratio, tokens, threshold, self.prefill

    @property
    def budget(self) -> str:
        """See `budget_text`."""
        return budget_text(self.press, self.compression_ratio, self.budget_tokens, self.threshold)

    def label(self, tell_mode: bool) -> str:
        """How the row is called, its budget apart; `press_parameters` must be the compact label.

        Args:
            tell_mode: whether the table has rows of both query modes.
        """
        name = "full cache" if self.is_baseline else self.press
        if self.press_parameters and not self.is_baseline:
            name += f" ({self.press_parameters})"
        if self.query_aware and tell_mode:
            name += " (query-aware)"
        return name if self.prefill == "shared" else f"{name} (prefill {self.prefill})"


class Column(NamedTuple):
    """A column of scores: a task, or a named average over tasks."""

    name: str
    is_average: bool = False


class CellKey(NamedTuple):
    """A cell of a table: number of the row, and column."""

    row: int
    column: Column


TABLE = TableKey._fields
"""Columns that name a table."""
ROW = RowKey._fields
"""Columns that name a row of a table."""

_read_table = columns(*TABLE)
_read_row = columns(*ROW)


def tables_in(frame: pd.DataFrame, sort: bool = False) -> Iterator[tuple[TableKey, pd.DataFrame]]:
    """The parts of a frame that are one table each, in order of appearance or sorted by key."""
    for values, part in frame.groupby(list(TABLE), sort=sort):
        yield TableKey(*values), part


def rows_in(part: pd.DataFrame) -> dict[RowKey, list[dict[str, Any]]]:
    """The rows of one table in order of appearance, each with its entries of the frame, one per task."""
    rows: dict[RowKey, list[dict[str, Any]]] = defaultdict(list)
    for entry in part.to_dict("records"):
        rows[RowKey.from_entry(entry)].append(entry)
    return dict(rows)


def tells_mode(part: pd.DataFrame) -> bool:
    """Whether the rows of one table are of both query modes, so that labels must tell them apart."""
    return bool(part["query_aware"].nunique() > 1)


def row_labels(part: pd.DataFrame) -> list[str]:
    """`RowKey.label` of every entry of one table."""
    tell_mode = tells_mode(part)
    return [RowKey.from_entry(entry).label(tell_mode) for entry in part[list(ROW)].to_dict("records")]


def row_budgets(part: pd.DataFrame) -> list[str]:
    """`RowKey.budget` of every entry of a frame."""
    return [RowKey.from_entry(entry).budget for entry in part[list(ROW)].to_dict("records")]


def parameter_labels(presses: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The compact label of each set of parameters, told from the other sets of the same press.

    Args:
        presses: name and parameters (JSON with sorted keys) of each, repeats allowed.
    """
    sets: dict[str, set[str]] = defaultdict(set)
    for press, parameters in presses:
        sets[press].add(parameters)
    labels = {}
    for press, held in sets.items():
        texts = sorted(held)
        for text, label in zip(texts, differing([json.loads(text) for text in texts]), strict=True):
            labels[press, text] = label
    return labels


def parameters_text(parameters: str) -> list[str]:
    """Parameters (JSON with sorted keys) for headings, e.g. ["temperature=0.6", "top_p=0.95"]."""
    return [f"{name}={_short(value)}" for name, value in json.loads(parameters).items()]


def _short(value: Any) -> str:
    """A value on one line, long texts with their beginning alone."""
    text = " ".join(str(value).split())
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"


def differing(parameters: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels of what differs, e.g. "window_size=32, press.kernel_size=7"; empty of a single set."""
    sets = [dict(_flatten(one)) for one in parameters]
    if len(sets) < 2:
        return [""] * len(sets)
    names = sorted({name for values in sets for name in values})
    varying = [name for name in names if len({repr(values.get(name)) for values in sets}) > 1]
    labels = [", ".join(f"{name}={values[name]}" for name in varying if name in values) for values in sets]
    return [label or "default" for label in labels]


def budget_text(
    press: str, compression_ratio: float | None, budget_tokens: float | None, threshold: float | None
) -> str:
    """How a budget stands in tables: a bare ratio, "128 tokens", or "score ≥ 0.1".

    Nothing for the full cache, and `MISSING` where a record states none.
    """
    if press == BASELINE:
        return ""
    forms = ((threshold, "score ≥ {:g}"), (compression_ratio, "{:g}"), (budget_tokens, "{:.0f} tokens"))
    return next((form.format(value) for value, form in forms if not pd.isna(value)), MISSING)


def is_ratio(budget: str) -> bool:
    """Whether a text of `budget_text` is a bare ratio; tokens and thresholds name themselves."""
    return bool(budget) and budget != MISSING and " " not in budget


def removed(budget: str) -> str:
    """A budget for headings of plots: "50 % removed" of a ratio, other budgets as they are."""
    return f"{100 * float(budget):g} % removed" if is_ratio(budget) else budget


def exceeds(kept_fraction: float, ratio: float | None) -> bool:
    """Whether a row keeps more of the cache than its compression ratio allows; never where it has none."""
    return ratio is not None and not pd.isna(ratio) and kept_fraction > 1 - ratio + SLACK


def baseline_of(row: int, keys: Sequence[RowKey]) -> int:
    """The full-cache row to compare with.

    It does not depend on query mode and prefill, but one of the same is preferred; the row itself where there
    is no full cache.
    """
    baselines = [at for at, key in enumerate(keys) if key.is_baseline]
    alike = [at for at in baselines if keys[at].query_aware == keys[row].query_aware] or baselines
    same = [at for at in alike if keys[at].prefill == keys[row].prefill] or alike
    return same[0] if same else row


def _flatten(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
