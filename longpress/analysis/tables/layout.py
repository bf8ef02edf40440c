"""A frame of `scores` laid out as tables: their columns, groups of columns, and rows as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from longpress.analysis.tables.averages import Averages, averages_of, headings
from longpress.analysis.tables.grid import MISSING
from longpress.analysis.tables.row_keys import (
    RowKey,
    TableKey,
    is_ratio,
    parameters_text,
    rows_in,
    tables_in,
    tells_mode,
)
from longpress.analysis.tables.scores import ANSWERS


class LayoutRow(NamedTuple):
    """A row of a table as people read it.

    Attributes:
        press: label of the press, with parameters where they tell it from others.
        budget: as text; empty for the full cache.
        kept: measured kept fraction in percent.
        samples: per task, or their range; where several answers to each were drawn, times their number.
        cells: entries of the frame by column name.
        key: what the row is.
    """

    press: str
    budget: str
    kept: str
    samples: str
    cells: Mapping[str, Mapping[str, Any]]
    key: RowKey

    @property
    def is_baseline(self) -> bool:
        """Whether this is the full cache."""
        return self.key.is_baseline

    @property
    def name(self) -> str:
        """Press and budget."""
        return f"{self.press} {self.budget}".strip()


class TableLayout(NamedTuple):
    """One table.

    Attributes:
        title: its heading.
        columns: named averages first, then tasks.
        averages: those among the columns.
        groups: of neighbouring tasks, by name.
        rows: the full cache first.
        key: what the table holds.
    """

    title: str
    columns: list[str]
    averages: list[str]
    groups: list[tuple[str, list[str]]]
    rows: list[LayoutRow]
    key: TableKey

    @property
    def tasks(self) -> list[str]:
        """The columns that are no averages."""
        return self.columns[len(self.averages) :]

    @property
    def budget_heading(self) -> str:
        """`ratio` where every budget is one, else `budget`: tokens and thresholds name themselves."""
        budgets = {row.budget for row in self.rows} - {"", MISSING}
        return "ratio" if all(map(is_ratio, budgets)) else "budget"


def layouts(frame: pd.DataFrame) -> list[TableLayout]:
    """The tables of a frame of `scores`, one per model and reading of a benchmark."""
    result = []
    for key, part in tables_in(frame):
        suite, tell_mode = averages_of(part), tells_mode(part)
        result.append(
            TableLayout(
                title=_title(key, frame, set(part["query_aware"])),
                columns=[*suite.shown, *suite.tasks],
                averages=suite.shown,
                groups=_groups(suite, headings(key.benchmark)),
                rows=[_row(row, entries, tell_mode) for row, entries in rows_in(part).items()],
                key=key,
            )
        )
    return result


def _row(key: RowKey, entries: Sequence[Mapping[str, Any]], tell_mode: bool) -> LayoutRow:
    """A row from its entries of the frame; the averages come first, so that a task of the same name wins."""
    single = [entry for entry in entries if not entry["aggregate"]]
    cells = {entry["task"]: entry for entry in entries if entry["aggregate"]}
    cells |= {entry["task"]: entry for entry in single}
    known = [entry["kept_fraction"] for entry in single if not math.isnan(entry["kept_fraction"])]
    samples = _range(int(entry["n"]) for entry in single)
    answers = _range(int(entry[name]) for entry in single for name in ANSWERS if entry["n"])
    return LayoutRow(
        press=key.label(tell_mode),
        budget=key.budget,
        kept=f"{100 * sum(known) / len(known):.1f} %" if known else MISSING,
        samples=samples if answers in ("", "1") else f"{samples} × {answers}",
        cells=cells,
        key=key,
    )


def _range(counts: Iterable[int]) -> str:
    """The least and the most of them; one number where they are equal."""
    held = sorted(counts)
    return "–".join(str(count) for count in dict.fromkeys((held[0], held[-1]))) if held else ""


def _title(key: TableKey, frame: pd.DataFrame, modes: set[bool]) -> str:
    """Benchmark and model, and what tells this table from the others of the frame."""
    details = [f"version {key.benchmark_version}", key.dtype]
    if frame["revision"].nunique() > 1 and key.revision:
        details.append(f"revision {key.revision[:12]}")
    if frame["benchmark_parameters"].nunique() > 1:
        details.append(key.benchmark_parameters)
    details += parameters_text(key.generation_parameters)
    if modes == {True}:
        details.append("query-aware")
    return f"{key.benchmark} on {key.model} ({', '.join(details)})"


def _groups(suite: Averages, named: Mapping[str, Sequence[str]]) -> list[tuple[str, list[str]]]:
    """Disjoint groups of neighbouring tasks for grouped heads.

    The suite's own headings, then those tasks that have an average of their own.
    """
    groups: list[tuple[str, list[str]]] = []
    candidates = [*named.items(), *sorted(suite.shares.items(), key=lambda item: len(item[1]))]
    for name, members in candidates:
        held = [task for task in suite.tasks if task in members]
        if not held or (name not in named and len(held) < 2) or len(held) == len(suite.tasks):
            continue
        start = suite.tasks.index(held[0])
        are_neighbours = suite.tasks[start : start + len(held)] == held
        if are_neighbours and not any(set(held) & set(other) for _, other in groups):
            groups.append((name, held))
    return sorted(groups, key=lambda group: suite.tasks.index(group[1][0]))
