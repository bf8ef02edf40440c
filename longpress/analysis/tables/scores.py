"""From records to one tidy frame of scores with their errors: a row per cell and per average. No model, no torch.

A table is what one reading of a benchmark gave on one model: same model, revision, dtype, benchmark, version
and options. Its lines are presses with their parameters and budget, its columns tasks and named averages
(`Benchmark.averages`, cut to the tasks present). Every line is compared with the full cache on the samples
that both answered. Records that would mix two things in one cell are refused, or stand in tables of their
own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from longpress.analysis.records import FIDELITY, Record, columns
from longpress.analysis.stats import clusters, intervals
from longpress.analysis.stats.clusters import Array, Clusters
from longpress.analysis.stats.multiple_testing import adjust_differences, adjust_leads
from longpress.analysis.tables.row_keys import ABSENT, LINE, baseline_of, lines_of
from longpress.catalogue import benchmarks

TABLE = ("model", "revision", "dtype", "benchmark", "benchmark_version", "benchmark_parameters")
"""Columns that name a table."""
MEANS = (
    *(
        "kept_fraction",
        "evidence_kept",
        "peak_entries",
        "cache_bytes",
        "full_cache_bytes",
        "context_tokens",
        "new_tokens",
    ),
    *("prefill_seconds", "observe_seconds", "compress_seconds", "decode_seconds", "cache_bits"),
    *FIDELITY,
)
"""Measured columns: means over a cell's samples that did not fail; bytes, tokens and seconds per sample."""
COUNTS = ("n", "n_contexts", "n_failed", "n_empty", "n_truncated", "n_common", "wins", "ties", "losses")
"""Numbers of samples; `n` those with a score, `n_common` those compared with the full cache."""
POINTS = (
    "score",
    "se",
    "ci_low",
    "ci_high",
    "delta",
    "delta_se",
    "delta_ci_low",
    "delta_ci_high",
    "lead",
    "behind",
)
"""Scores and differences, 0 to 100: mean, clustered standard error, 95 % interval; `delta` to the full cache, `lead` to the runner-up,
`behind` to the best press of the same budget."""
COLUMNS = (
    *(
        "model",
        "benchmark",
        "benchmark_version",
        "task",
        "press",
        "press_parameters",
        "compression_ratio",
        "kept_fraction",
        "query_aware",
    ),
    *(
        "metric",
        "n",
        "n_failed",
        "n_empty",
        "n_truncated",
        *POINTS[:8],
        "p_value",
        "p_holm",
        "p_bh",
        "n_common",
        "wins",
        "ties",
        "losses",
    ),
    *(
        "lead",
        "p_lead",
        "behind",
        "p_behind",
        "n_contexts",
        "n_tasks",
        "aggregate",
        "budget_tokens",
        "threshold",
        "prefill",
        "dtype",
        "revision",
        "benchmark_parameters",
        *MEANS[1:],
    ),
)
"""Columns of the frame. `p_holm` and `p_bh` (Benjamini-Hochberg) are adjusted over all task cells of a table, or over all its averages;
`p_lead`, of the best press of one budget against the second best, likewise by Holm; `p_behind`, of a press
against the best one of its budget on the first average (or the only task), by Holm over the presses of the
budget; `aggregate` marks averages, over `n_tasks`."""


@dataclass(frozen=True)
class _Cell:
    """The samples of one line and task: a label for errors; ids, prompt hashes, scores, weights, contexts (n,); the summed scores."""

    label: str
    ids: Any
    hashes: Any
    values: Array
    weights: Array
    contexts: Any
    samples: Clusters
    bounded: bool = True

    def minus(self, other: _Cell) -> _Paired:
        """Paired differences to another cell on the common samples."""
        try:
            left, right = clusters.pair(self.ids, self.hashes, other.ids, other.hashes)
        except ValueError as error:
            raise ValueError(f"{self.label} against {other.label}: {error}") from None
        change, weights, contexts = (
            self.values[left] - other.values[right],
            self.weights[left],
            self.contexts[left],
        )
        samples = clusters.cluster(change, weights, contexts, self.bounded)
        return _Paired(samples, int((change > 0).sum()), int((change < 0).sum()))


class _Paired(NamedTuple):
    """Summed differences, samples won and lost."""

    samples: Clusters
    wins: int
    losses: int


class _Part(NamedTuple):
    """A task's contribution to an average: the summed samples, the interval, bootstrap means (R,) if they can be resampled."""

    samples: Clusters
    low: float
    high: float
    replicates: Array | None


def scores(records: Iterable[Record], seed: int = 0, measure: str = "score") -> pd.DataFrame:
    """The tidy frame with `COLUMNS`, in the order of tables: full cache first, then by press and budget, tasks in the suite's order.

    Args:
        records: of any number of models and benchmarks, each key once (`read_records`).
        seed: of bootstrap and permutations; the same records in any order give the same frame.
        measure: "score", or one of `FIDELITY`, which then is what `score` and `metric` of the frame speak of,
            times 100.

    Raises:
        ValueError: no record, or records that cannot stand in one cell.
    """
    frame, bounded = _frame(records, measure), FIDELITY.get(measure, True)
    rows: list[dict[str, Any]] = []
    for names, part in frame.groupby(list(TABLE), sort=True):
        rows += _table(dict(zip(TABLE, names, strict=True)), part, seed, bounded)
    result = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    result[list(POINTS)] = (result[list(POINTS)] * 100).round(
        8
    )  # as the CSV holds them, so that all tables round alike
    return result.astype({**dict.fromkeys(COUNTS, "int64"), "n_tasks": "int64", "budget_tokens": "Int64"})


table_of = columns(*TABLE)
"""The values of `TABLE` of a record, as the frame has them."""


def headings(benchmark: str) -> Mapping[str, Sequence[str]]:
    """The suite's groups of tasks for the heads of tables; none of a benchmark that the catalogue lacks or that cannot be loaded here."""
    with suppress(KeyError, ImportError, AttributeError, ValueError, TypeError):
        found: Mapping[str, Sequence[str]] = benchmarks()[benchmark].load()().headings()
        return found
    return {}


def averages(benchmark: str, tasks: Iterable[str]) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Tasks in the suite's order, and the share of each task in every named average.

    Averages are the benchmark's own, cut to `tasks`; of a benchmark that the catalogue lacks, "average" is
    the plain mean.
    """
    present = sorted(tasks, key=_natural)
    named: Mapping[str, Sequence[Sequence[str]]] = {"average": [(task,) for task in present]}
    entry = benchmarks().get(benchmark)
    if entry is not None:
        try:
            cls = entry.load()
            suite = cls()
            present.sort(
                key=lambda task: suite.tasks.index(task) if task in suite.tasks else len(suite.tasks)
            )
            with suppress(ValueError, TypeError):  # tasks of another version: its averages are cut below
                suite = cls(tasks=tuple(present))
            named = suite.averages()
        except (ImportError, AttributeError, ValueError, TypeError):
            pass  # a suite that cannot be loaded here still has its records
    shares: dict[str, dict[str, float]] = {}
    for name, groups in named.items():
        kept = [group for group in ([task for task in group if task in present] for group in groups) if group]
        share: dict[str, float] = {}
        for group in kept:
            for task in group:
                share[task] = share.get(task, 0.0) + 1 / (len(kept) * len(group))
        if share:
            shares[name] = share
    return present, shares or {
        "average": dict.fromkeys(present, 1 / max(1, len(present)))
    }  # no task is the suite's


def _frame(records: Iterable[Record], measure: str) -> pd.DataFrame:
    names = [
        *TABLE,
        *LINE,
        "task",
        "metric",
        "sample_id",
        "context_id",
        "prompt_hash",
        "score",
        "weight",
        "truncated",
        *MEANS,
    ]
    read, rows = columns(*(measure if name == "score" else name for name in names)), []
    for record in records:
        failed = record.error is not None or getattr(record, measure) is None
        rows.append([*read(record), failed, not failed and not record.prediction.strip()])
    if not rows:
        raise ValueError("there are no records to make a table of")
    frame = pd.DataFrame(rows, columns=[*names, "failed", "empty"])
    numbers = ["score", "weight", "compression_ratio", "budget_tokens", "threshold", *MEANS]
    frame[numbers] = frame[numbers].astype(float)
    frame["compression_ratio"] = frame["compression_ratio"].round(6)
    if measure != "score":
        frame["metric"] = measure
    frame.loc[frame["failed"], ["score", *MEANS]] = math.nan
    return frame


def _table(names: dict[str, Any], frame: pd.DataFrame, seed: int, bounded: bool) -> list[dict[str, Any]]:
    """Rows of one table: task cells and averages of every line."""
    tasks, shares = averages(names["benchmark"], frame["task"].unique())
    shown, lines = lines_of(frame)
    line_of = {line: at for at, line in enumerate(lines)}
    keyed = zip(
        *(frame[name].fillna(ABSENT[name]) if name in ABSENT else frame[name] for name in LINE), strict=True
    )
    frame = frame.assign(
        line=[line_of[key] for key in keyed], failed=frame["failed"].astype(int)
    ).sort_values(["line", "task", "sample_id"])
    cells, measured = {}, {}
    for (line, task), part in _split(frame):
        label = f"{names['model']}, {names['benchmark']}/{task}, press {lines[line][0]}"
        cells[line, task] = _cell(part, label, bounded)
        measured[line, task] = _measured(part)
    reference = {at: baseline_of(at, lines) for at in range(len(lines))}
    against = {
        (line, task): cells.get((reference[line], task)) for line, task in cells if reference[line] != line
    }
    paired = {key: cells[key].minus(other) for key, other in against.items() if other is not None}
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for start in range(0, len(lines), 32):  # bounds the memory that replicates take
        chunk = range(start, min(start + 32, len(lines)))
        parts: dict[tuple[int, str], _Part] = {}
        changes: dict[tuple[int, str], _Part] = {}
        for stream, task in enumerate(tasks):
            here = [line for line in chunk if (line, task) in cells]
            new = _parts(
                {(line, task): cells[line, task].samples for line in here},
                {(line, task): paired[line, task] for line in here if (line, task) in paired},
                seed + stream,
            )
            parts, changes = parts | new[0], changes | new[1]
        for line in chunk:
            for task in tasks:
                if (line, task) in cells:
                    change = paired.get((line, task))
                    outcome = _outcome(change) if change else _outcome(_NOTHING)
                    errors = _errors(parts[line, task], changes.get((line, task)))
                    rows[line, task] = {
                        "task": task,
                        "aggregate": False,
                        "n_tasks": 1,
                        **measured[line, task],
                        **outcome,
                        **errors,
                    }
            for name, share in shares.items():
                found = [rows[line, task] for task in share if (line, task) in rows]
                if found:
                    rows[line, f"\0{name}"] = _average(name, share, line, found, parts, changes)
    adjust_differences(rows, {key: value.samples for key, value in paired.items()}, shares, seed)
    adjust_leads(rows, lines, cells, shares, seed)
    columns = [*tasks, *(f"\0{name}" for name in shares)]
    return [
        {**names, **dict(zip(LINE, shown[line], strict=True)), **rows[line, column]}
        for line in range(len(lines))
        for column in columns
        if (line, column) in rows
    ]


def _split(frame: pd.DataFrame) -> Iterator[tuple[tuple[int, str], dict[str, Any]]]:
    """Cells as arrays; the frame is sorted by line, task and sample."""
    arrays = {
        name: frame[name].to_numpy() for name in frame.columns if name not in TABLE and name not in LINE
    }
    line, task = arrays["line"], arrays["task"].astype(str)
    starts = [0, *(np.flatnonzero((line[1:] != line[:-1]) | (task[1:] != task[:-1])) + 1), len(line)]
    for begin, end in pairwise(starts):
        yield (int(line[begin]), str(task[begin])), {name: array[begin:end] for name, array in arrays.items()}


def _cell(part: Mapping[str, Any], label: str, bounded: bool) -> _Cell:
    ids, metrics = part["sample_id"].astype(str), set(part["metric"][part["failed"] == 0])
    repeated = np.flatnonzero(ids[1:] == ids[:-1])
    if len(repeated):
        raise ValueError(
            f"{label}: sample '{ids[repeated[0]]}' was answered twice with different prompts or references; these records come from "
            "different benchmark options: keep one results folder for each"
        )
    if len(metrics) > 1:
        raise ValueError(
            f"{label}: scores of different metrics ({', '.join(sorted(metrics))}) cannot be averaged; rescore the records"
        )
    good = part["failed"] == 0
    values, weights, contexts = (
        part["score"][good],
        part["weight"][good],
        part["context_id"][good].astype(str),
    )
    samples = clusters.cluster(values, weights, contexts, bounded)
    return _Cell(
        label, ids[good], part["prompt_hash"][good].astype(str), values, weights, contexts, samples, bounded
    )


def _measured(part: Mapping[str, Any]) -> dict[str, Any]:
    good = part["failed"] == 0
    means = {}
    for name in MEANS:
        known = part[name][good & ~np.isnan(part[name])]
        means[name] = float(known.mean()) if len(known) else math.nan
    return {
        "metric": str(part["metric"][good][0] if good.any() else part["metric"][0]),
        "n": int(good.sum()),
        "n_failed": int((~good).sum()),
        "n_empty": int(part["empty"].sum()),
        "n_truncated": int(part["truncated"].sum()),
        "n_contexts": len(set(part["context_id"][good])),
        **means,
    }


_NOTHING = _Paired(clusters.cluster([]), 0, 0)


def _outcome(change: _Paired) -> dict[str, int]:
    common = change.samples.n
    return {
        "n_common": common,
        "wins": change.wins,
        "ties": common - change.wins - change.losses,
        "losses": change.losses,
    }


def _parts(
    cells: Mapping[tuple[int, str], Clusters], paired: Mapping[tuple[int, str], _Paired], seed: int
) -> tuple[dict[tuple[int, str], _Part], dict[tuple[int, str], _Part]]:
    """Scores and differences of a task's lines with their intervals; all share their resamples."""
    wanted = [(False, key, cell) for key, cell in cells.items()] + [
        (True, key, change.samples) for key, change in paired.items()
    ]
    wanted = [one for one in wanted if one[2].resampled]
    replicates = intervals.bootstrap([cell for _, _, cell in wanted], seed)
    drawn = {(change, key): row for (change, key, _), row in zip(wanted, replicates, strict=True)}
    parts, changes = {}, {}
    for key, cell in cells.items():
        parts[key] = _Part(
            cell, *intervals.score_interval(cell, drawn.get((False, key))), drawn.get((False, key))
        )
    for key, (samples, _, _) in paired.items():
        low, high = intervals.difference_interval(samples, drawn.get((True, key)))
        changes[key] = _Part(samples, low, high, drawn.get((True, key)))
    return parts, changes


def _errors(score: _Part, change: _Part | None) -> dict[str, float]:
    row = _interval(
        "score", "se", "ci", score.samples.mean, score.samples.standard_error, score.low, score.high
    )
    if change is not None:
        row |= _interval(
            "delta",
            "delta_se",
            "delta_ci",
            change.samples.mean,
            change.samples.standard_error,
            change.low,
            change.high,
        )
    return row


def _interval(mean: str, error: str, interval: str, *values: float) -> dict[str, float]:
    return dict(zip((mean, error, f"{interval}_low", f"{interval}_high"), values, strict=True))


def _average(
    name: str,
    share: Mapping[str, float],
    line: int,
    found: Sequence[Mapping[str, Any]],
    parts: Mapping[tuple[int, str], _Part],
    changes: Mapping[tuple[int, str], _Part],
) -> dict[str, Any]:
    """An average of one line; withheld (NaN) where a task is missing."""
    weight = np.array([share[str(row["task"])] for row in found])
    row: dict[str, Any] = {"task": name, "aggregate": True, "n_tasks": len(share)}
    row["metric"] = ", ".join(dict.fromkeys(str(one["metric"]) for one in found))
    row |= {count: sum(one[count] for one in found) for count in COUNTS}
    for column in MEANS:
        row[column] = float(weight @ np.array([one[column] for one in found]) / weight.sum())
    of_scores, of_changes = ([found.get((line, task)) for task in share] for found in (parts, changes))
    row |= _macro(of_scores, list(share.values()), ("score", "se", "ci"))
    return row | _macro(of_changes, list(share.values()), ("delta", "delta_se", "delta_ci"), paired=True)


def _macro(
    parts: Sequence[_Part | None], shares: Sequence[float], names: tuple[str, str, str], paired: bool = False
) -> dict[str, float]:
    known = [part for part in parts if part is not None and part.samples.n]
    if len(known) < len(parts):
        return _interval(*names, *[math.nan] * 4)
    inside = [part.replicates is not None and len(parts) > 1 for part in known]
    drawn = [
        share * part.replicates
        for part, share in zip(known, shares, strict=True)
        if part.replicates is not None
    ]
    cells, lows, highs = zip(*((part.samples, part.low, part.high) for part in known), strict=True)
    total = np.sum(drawn, axis=0) if any(inside) else None
    return _interval(*names, *intervals.macro(cells, lows, highs, shares, total, inside, paired))


def _natural(text: str) -> list[Any]:
    return [
        (not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)
    ]
