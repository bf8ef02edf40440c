"""From records to one tidy frame of scores with their errors: an entry per cell and per average.

Tables and their rows are what `row_keys` says; columns are tasks and named averages (`Benchmark.averages`,
cut to the tasks present). Every row is compared with the full cache on the samples that both answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from longpress.analysis.records import FIDELITY, Record
from longpress.analysis.stats.clusters import Clusters
from longpress.analysis.stats.estimates import Estimate, TaskEstimate, macro_average, task_estimates
from longpress.analysis.tables.averages import averages
from longpress.analysis.tables.cells import MEANS, MEASURED, TaskCell, answers_of, cells_of
from longpress.analysis.tables.p_values import fill_differences, fill_leads
from longpress.analysis.tables.row_keys import CellKey, Column, TableKey, parameter_labels, tables_in

COUNTS = ("n", "n_contexts", "n_failed", "n_empty", "n_truncated", "n_common", "wins", "ties", "losses")
"""Numbers of samples: `n` are those with a score, `n_common` those compared with the full cache.

Where several answers to a sample were drawn, `n_failed`, `n_empty` and `n_truncated` count answers.
"""
ANSWERS = ("answers_least", "answers_most")
"""How many answers to a sample have a score, at least and at most; the mean over them is its score."""
SCORES = ("score", "se", "ci_low", "ci_high")
"""The mean score, its clustered standard error, and its 95 % interval."""
DELTAS = ("delta", "delta_se", "delta_ci_low", "delta_ci_high")
"""The same of the difference to the full cache."""
POINTS = (*SCORES, *DELTAS, "lead", "behind")
"""Columns from 0 to 100; `lead` is to the runner-up, `behind` to the best press of the same budget."""
COLUMNS = (
    *("model", "benchmark", "benchmark_version", "task", "press", "press_parameters", "compression_ratio"),
    *("kept_fraction", "query_aware", "metric", "n", "n_failed", "n_empty", "n_truncated"),
    *(*SCORES, *DELTAS, "p_value", "p_holm", "p_bh", "n_common", "wins", "ties", "losses"),
    *("lead", "p_lead", "behind", "p_behind", "n_contexts", "n_tasks", "aggregate"),
    *("budget_tokens", "threshold", "prefill", "dtype", "revision", "benchmark_parameters"),
    *(*MEASURED, *FIDELITY),
)
"""Columns of the frame.

`p_holm` and `p_bh` (Benjamini-Hochberg) are adjusted over all task cells of a table, or over all its
averages; `p_lead`, of the best press of one budget against the second best, likewise by Holm; `p_behind`, of
a press against the best one of its budget on the first average (or the only task), by Holm over the presses
of the budget; `aggregate` marks averages, over `n_tasks`.
"""
GENERATED = ("generation_parameters", *ANSWERS)
"""Columns of the frame behind `COLUMNS`; files leave them out where all answers are greedy ones."""
ROWS_AT_ONCE = 32
"""The bootstrap means of so many rows are held in memory at a time."""


class _Estimates(NamedTuple):
    """Estimates of a task's score, and of its difference to the full cache where there is one."""

    score: TaskEstimate
    change: TaskEstimate | None


def scores(records: Iterable[Record], seed: int = 0, measure: str = "score") -> pd.DataFrame:
    """The tidy frame with `COLUMNS` and `GENERATED`, in the order of tables.

    The full cache comes first, then presses by name and budget; tasks stand in the suite's order.

    Args:
        records: of any number of models and benchmarks, each key once (`read_records`).
        seed: of bootstrap and permutations; the same records in any order give the same frame.
        measure: "score", or one of `FIDELITY`, which then is what `score` and `metric` of the frame speak of,
            times 100.

    Raises:
        ValueError: no record, or records that cannot stand in one cell.
    """
    answers, bounded = answers_of(records, measure), FIDELITY.get(measure, True)
    entries: list[dict[str, Any]] = []
    for table, part in tables_in(answers, sort=True):
        entries += _table(table, part, seed, bounded)
    frame = pd.DataFrame(entries).reindex(columns=[*COLUMNS, *GENERATED])

    # rounded as the CSV holds them, so that all tables round alike
    frame[list(POINTS)] = (frame[list(POINTS)].astype(float) * 100).round(8)
    whole = dict.fromkeys((*COUNTS, *ANSWERS, "n_tasks"), "int64")
    return frame.astype({**whole, "budget_tokens": "Int64", "compression_ratio": float, "threshold": float})


def _table(table: TableKey, answers: pd.DataFrame, seed: int, bounded: bool) -> list[dict[str, Any]]:
    """The entries of one table: task cells and averages of every row."""
    tasks, named = averages(table.benchmark, answers["task"].unique())
    shares = {Column(task): {task: 1.0} for task in tasks} | {
        Column(name, is_average=True): share for name, share in named.items()
    }

    keys, cells = cells_of(table, answers, bounded)

    # estimate every cell and average; the bootstrap means of a few rows at a time
    entries: dict[CellKey, dict[str, Any]] = {}
    for start in range(0, len(keys), ROWS_AT_ONCE):
        rows = range(start, min(start + ROWS_AT_ONCE, len(keys)))
        estimated = _estimated(cells, tasks, rows, seed)
        for cell, estimates in estimated.items():
            entries[cell] = _task_entry(cell.column.name, cells[cell], estimates)
        for column, share in shares.items():
            if column.is_average:
                entries |= _average_entries(column, share, rows, entries, estimated)

    # test differences, and adjust the p-values
    changes = {cell: held.paired.summed for cell, held in cells.items() if held.paired is not None}
    fill_differences(entries, changes, shares, seed)
    fill_leads(entries, keys, {cell: held.samples for cell, held in cells.items()}, shares, seed)

    # name the rows, and give the entries row by row
    labels = parameter_labels((key.press, key.press_parameters) for key in keys)
    named_rows = [
        {**table._asdict(), **key._asdict(), "press_parameters": labels[key.press, key.press_parameters]}
        for key in keys
    ]
    places = (CellKey(row, column) for row in range(len(keys)) for column in shares)
    return [{**named_rows[cell.row], **entries[cell]} for cell in places if cell in entries]


def _estimated(
    cells: Mapping[CellKey, TaskCell], tasks: Sequence[str], rows: Iterable[int], seed: int
) -> dict[CellKey, _Estimates]:
    """Estimates of some rows' cells; the rows of a task share their resamples."""
    result: dict[CellKey, _Estimates] = {}
    for stream, task in enumerate(tasks):
        here = [cell for row in rows if (cell := CellKey(row, Column(task))) in cells]
        compared = [cell for cell in here if cells[cell].paired is not None]
        changes: list[Clusters] = [
            paired.summed for cell in compared if (paired := cells[cell].paired) is not None
        ]
        of_scores, of_changes = task_estimates(
            [cells[cell].samples.summed for cell in here], changes, seed + stream
        )
        change_of = dict(zip(compared, of_changes, strict=True))
        result |= {
            cell: _Estimates(score, change_of.get(cell)) for cell, score in zip(here, of_scores, strict=True)
        }
    return result


def _task_entry(task: str, cell: TaskCell, estimates: _Estimates) -> dict[str, Any]:
    """The entry of a task cell."""
    paired = cell.paired
    entry: dict[str, Any] = {"task": task, "aggregate": False, "n_tasks": 1, **cell.measured}
    entry |= {
        "n_common": paired.summed.n if paired else 0,
        "wins": paired.wins if paired else 0,
        "ties": paired.ties if paired else 0,
        "losses": paired.losses if paired else 0,
    }
    entry |= _named(SCORES, estimates.score.estimate)
    return entry if estimates.change is None else entry | _named(DELTAS, estimates.change.estimate)


def _average_entries(
    column: Column,
    share: Mapping[str, float],
    rows: Iterable[int],
    entries: Mapping[CellKey, Mapping[str, Any]],
    estimated: Mapping[CellKey, _Estimates],
) -> dict[CellKey, dict[str, Any]]:
    """The entries of an average of some rows; its scores are withheld (NaN) where a task is missing."""
    result = {}
    for row in rows:
        cells = [cell for task in share if (cell := CellKey(row, Column(task))) in estimated]
        if not cells:
            continue
        tasks = [entries[cell] for cell in cells]
        weight = np.array([share[cell.column.name] for cell in cells])
        entry: dict[str, Any] = {"task": column.name, "aggregate": True, "n_tasks": len(share)}
        entry["metric"] = ", ".join(dict.fromkeys(str(task["metric"]) for task in tasks))
        entry |= {count: sum(task[count] for task in tasks) for count in COUNTS}
        entry["answers_least"] = min(task["answers_least"] for task in tasks)
        entry["answers_most"] = max(task["answers_most"] for task in tasks)
        for name in MEANS:
            entry[name] = float(weight @ np.array([task[name] for task in tasks]) / weight.sum())
        of_scores = [estimated[cell].score for cell in cells]
        of_changes = [estimated[cell].change for cell in cells]
        entry |= _named(SCORES, _macro(of_scores, share))
        entry |= _named(DELTAS, _macro(of_changes, share, paired=True))
        result[CellKey(row, column)] = entry
    return result


def _macro(
    tasks: Sequence[TaskEstimate | None], share: Mapping[str, float], paired: bool = False
) -> Estimate:
    """The average of some tasks' estimates; NaN where not all of an average's tasks have samples."""
    known = [task for task in tasks if task is not None and task.summed.n]
    if len(known) < len(share):
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    return macro_average(known, list(share.values()), paired)


def _named(names: Sequence[str], estimate: Estimate) -> dict[str, float]:
    return dict(zip(names, estimate, strict=True))
