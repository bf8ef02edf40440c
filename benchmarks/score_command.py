"""Score a file of predictions that was made anywhere, by the benchmark's official rules.

The file has the benchmark's official format where it has one: JSON lines, or CSV as BABILong's authors
publish. The scores are printed as JSON, 0 to 100. No model and no network are needed.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.base import Benchmark, Sample
from benchmarks.text.jsonl import read_rows
from longpress.catalogue import benchmarks, find


class ScoredPrediction(NamedTuple):
    """One row of a predictions file.

    Attributes:
        sample: what the row's answer is scored against.
        prediction: the answer.
        scores: metric -> value in [0, 1].
    """

    sample: Sample
    prediction: str
    scores: dict[str, float]


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "benchmark",
        metavar="BENCHMARK[/TASK]",
        help="a benchmark, and one of its tasks where the rows do not name theirs; benchmarks: "
        + ", ".join(benchmarks()),
    )
    parser.add_argument("file", metavar="FILE", help="the predictions")


def run(arguments: Namespace) -> None:
    """Print the scores of one file.

    Raises:
        ValueError: there is no such benchmark, task or file, or a row is broken; names the line.
    """
    name, _, task = arguments.benchmark.partition("/")
    benchmark = find(name, benchmarks(), "benchmark").load()()
    print(json.dumps(score_file(benchmark, task or None, arguments.file), indent=2, ensure_ascii=False))


def score_file(benchmark: Benchmark, task: str | None, file: str) -> dict[str, Any]:
    """Scores of a predictions file, 0 to 100, two decimals.

    Returns:
        `tasks`: per task every metric, the number of rows `n` and of those without an answer, `empty`.
        `averages`: the benchmark's, None where one of its tasks is missing.

    Raises:
        ValueError: the file is missing, broken, empty, or not of this benchmark; names the line.
    """
    rows: dict[str, list[ScoredPrediction]] = defaultdict(list)
    for row in _scored(benchmark, task, file):
        rows[row.sample.task].append(row)
    if not rows:
        raise ValueError(f"{file} holds no prediction")

    means = {name: _weighted_means(of_task) for name, of_task in rows.items()}
    tasks = {
        name: {
            **{metric: _percent(value) for metric, value in mean.items()},
            "n": len(rows[name]),
            "empty": sum(not row.prediction.strip() for row in rows[name]),
        }
        for name, mean in means.items()
    }
    headline = {
        name: mean.get(benchmark.metrics.get(name, ""), next(iter(mean.values())))
        for name, mean in means.items()
    }
    averages = {name: _average(headline, groups) for name, groups in benchmark.averages().items()}
    return {"benchmark": benchmark.name, "version": benchmark.version, "tasks": tasks, "averages": averages}


def _scored(benchmark: Benchmark, task: str | None, file: str) -> Iterator[ScoredPrediction]:
    """Every prediction of a file with its scores.

    Raises:
        ValueError: as in `score_file`.
    """
    name, line = Path(file).name, 0

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        nonlocal line  # the line that is being read, for errors that do not know theirs
        for number, row in read_rows(file):
            line = number
            yield number, row

    try:
        for sample, prediction in benchmark.read_predictions(rows(), task):
            yield ScoredPrediction(sample, prediction, benchmark.score(sample, prediction))
    except ValueError as error:
        raise ValueError(str(error) if name in str(error) else f"{name}, {error}") from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{name}, line {line}: not a row of {benchmark.name} predictions ({reason})"
        ) from error


def _weighted_means(rows: Sequence[ScoredPrediction]) -> dict[str, float]:
    """The mean of each metric over the rows that have it, by the weights of the samples."""
    means = {}
    for metric in dict.fromkeys(metric for row in rows for metric in row.scores):
        having = [row for row in rows if metric in row.scores]
        total = sum(row.sample.weight for row in having)
        weighted = sum(row.sample.weight * row.scores[metric] for row in having)
        means[metric] = weighted / total if total else 0.0
    return means


def _average(headline: Mapping[str, float], groups: Sequence[Sequence[str]]) -> float | None:
    """The mean over groups of the mean over a group's tasks; None where a task is missing."""
    if any(task not in headline for group in groups for task in group):
        return None
    return _percent(fmean(fmean(headline[task] for task in group) for group in groups))


def _percent(fraction: float) -> float:
    return round(100 * fraction, 2)
