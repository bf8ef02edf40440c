"""A frame of `scores` as tables: their columns, groups of columns, and lines as they are named for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from longpress.analysis.records import BASELINE
from longpress.analysis.tables.row_keys import LINE
from longpress.analysis.tables.scores import TABLE, averages, headings

MISSING = "–"
SIGNIFICANT = 0.05
"""Level of the marks: p-values adjusted by Holm over the cells of a table."""


class Line(NamedTuple):
    """A line of a table: label of the press, budget, measured kept fraction in percent, samples per task, cells by column name."""

    press: str
    budget: str
    kept: str
    samples: str
    cells: Mapping[str, Mapping[str, Any]]

    @property
    def is_baseline(self) -> bool:
        """Whether this is the full cache."""
        return not self.budget


class View(NamedTuple):
    """One table: heading, columns (named averages first, then tasks), the averages among them, groups of tasks, lines, its `TABLE`."""

    title: str
    columns: list[str]
    averages: list[str]
    groups: list[tuple[str, list[str]]]
    lines: list[Line]
    names: tuple[Any, ...] = ()

    @property
    def budget_heading(self) -> str:
        """`ratio` where every budget is one, else `budget`: tokens and thresholds name themselves, a bare number is a ratio."""
        return "budget" if any(" " in line.budget for line in self.lines) else "ratio"


def views(frame: pd.DataFrame) -> list[View]:
    """The tables of a frame of `scores`, one per model and reading of a benchmark."""
    result = []
    for names, part in frame.groupby(list(TABLE), sort=False):
        keys = dict(zip(TABLE, names, strict=True))
        tasks, shares = averages(keys["benchmark"], part.loc[~part["aggregate"], "task"].unique())
        named = [name for name in shares if len(tasks) > 1]
        modes, columns = set(part["query_aware"]), [*named, *tasks]
        of_line: dict[str, list[dict[str, Any]]] = {}
        for row in part.to_dict("records"):
            of_line.setdefault(repr([row[name] for name in LINE]), []).append(row)
        lines = [_line(rows, len(modes) > 1) for rows in of_line.values()]
        result.append(
            View(
                _title(keys, frame, modes),
                columns,
                named,
                _groups(tasks, shares, headings(keys["benchmark"])),
                lines,
                names,
            )
        )
    return result


def line_label(press: str, parameters: str, aware: bool, prefill: str) -> str:
    """How a press is called in tables; `parameters` as `differing` gives them."""
    label = "full cache" if press == BASELINE else press + (f" ({parameters})" if parameters else "")
    return (
        label + (" (query-aware)" if aware else "") + ("" if prefill == "shared" else f" (prefill {prefill})")
    )


def line_budget(press: str, ratio: float | None, budget: float | None, threshold: float | None) -> str:
    """How a budget stands in tables: a ratio, tokens, a threshold, or nothing for the full cache."""
    if press == BASELINE:
        return ""
    for value, text in ((threshold, "score ≥ {:g}"), (ratio, "{:g}"), (budget, "{:.0f} tokens")):
        if value is not None and not pd.isna(value):
            return text.format(value)
    return MISSING


def _line(rows: Sequence[Mapping[str, Any]], tell_mode: bool) -> Line:
    press, parameters, ratio, budget, aware, threshold, prefill = (rows[0][name] for name in LINE)
    label, limit = (
        line_label(press, parameters, aware and tell_mode, prefill),
        line_budget(press, ratio, budget, threshold),
    )
    single = [row for row in rows if not row["aggregate"]]
    cells = {row["task"]: row for row in [*(row for row in rows if row["aggregate"]), *single]}
    known = [row["kept_fraction"] for row in single if not math.isnan(row["kept_fraction"])]
    counts = sorted({int(row["n"]) for row in single})
    samples = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    kept = f"{100 * sum(known) / len(known):.1f} %" if known else MISSING
    return Line(label, limit, kept, samples, cells)


def _title(keys: Mapping[str, Any], frame: pd.DataFrame, modes: set[bool]) -> str:
    """Benchmark and model, and what tells this table from the others of the frame."""
    details = [f"version {keys['benchmark_version']}", str(keys["dtype"])]
    if frame["revision"].nunique() > 1 and keys["revision"]:
        details.append(f"revision {str(keys['revision'])[:12]}")
    if frame["benchmark_parameters"].nunique() > 1:
        details.append(str(keys["benchmark_parameters"]))
    details += ["query-aware"] if modes == {True} else []
    return f"{keys['benchmark']} on {keys['model']} ({', '.join(details)})"


def _groups(
    tasks: Sequence[str], shares: Mapping[str, Mapping[str, float]], named: Mapping[str, Sequence[str]]
) -> list[tuple[str, list[str]]]:
    """Disjoint groups of neighbouring tasks for grouped heads: the suite's own, then those that have an average of their own."""
    groups: list[tuple[str, list[str]]] = []
    for name, members in [*named.items(), *sorted(shares.items(), key=lambda item: len(item[1]))]:
        held = [task for task in tasks if task in members]
        if not held or (name not in named and len(held) < 2) or len(held) == len(tasks):
            continue
        start = tasks.index(held[0])
        if list(tasks[start : start + len(held)]) == held and not any(
            set(held) & set(other) for _, other in groups
        ):
            groups.append((name, held))
    return sorted(groups, key=lambda group: tasks.index(group[1][0]))
