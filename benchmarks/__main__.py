"""Score a file of predictions: `python -m benchmarks BENCHMARK[/TASK] FILE.jsonl` prints the scores as JSON, 0 to 100.

The file has the benchmark's official format; no model, no network.
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.base import Benchmark, Sample
from benchmarks.jsonl import read_rows

USAGE = "python -m benchmarks BENCHMARK[/TASK] FILE.jsonl"


def find_benchmarks() -> dict[str, str]:
    """Name -> class of every benchmark beside this file, that is, of every file with a class `…Benchmark`; nothing is imported."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        classes = [
            node.name
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, ast.ClassDef)
        ]
        own = [name for name in classes if name.endswith("Benchmark")]
        if own and file.stem != "base":
            found[file.stem] = own[-1]
    return found


def load(name: str) -> Benchmark:
    """The benchmark called `name`, with its default options.

    Raises:
        ValueError: there is none; lists what exists.
    """
    found = find_benchmarks()
    if name not in found:
        near = get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no benchmark {name!r}; {hint}existing: {', '.join(found)}")
    benchmark: Benchmark = getattr(importlib.import_module(f"benchmarks.{name}"), found[name])()
    return benchmark


def score_file(benchmark: Benchmark, task: str | None, file: str) -> dict[str, Any]:
    """Scores of a predictions file, 0 to 100, two decimals: per task every metric and the number of rows; then the averages.

    An average is null where one of its tasks is missing.

    Raises:
        ValueError: the file is missing, broken, empty, or not of this benchmark; names the line.
    """
    values: dict[str, list[tuple[float, dict[str, float]]]] = defaultdict(list)
    empty: dict[str, int] = defaultdict(int)
    for sample, prediction, scores in _scored(benchmark, task, file):
        values[sample.task].append((sample.weight, scores))
        empty[sample.task] += not prediction.strip()
    if not values:
        raise ValueError(f"{file} holds no prediction")
    means = {name: _mean(rows) for name, rows in values.items()}
    tasks = {
        name: {
            **{metric: _rounded(value) for metric, value in mean.items()},
            "n": len(values[name]),
            "empty": empty[name],
        }
        for name, mean in means.items()
    }
    headline = {
        name: mean.get(benchmark.metrics.get(name, ""), next(iter(mean.values())))
        for name, mean in means.items()
    }
    averages = {name: _average(headline, groups) for name, groups in benchmark.averages().items()}
    return {"benchmark": benchmark.name, "version": benchmark.version, "tasks": tasks, "averages": averages}


def _scored(
    benchmark: Benchmark, task: str | None, file: str
) -> Iterator[tuple[Sample, str, dict[str, float]]]:
    name, line = Path(file).name, 0

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        nonlocal line
        for number, row in read_rows(file):
            line = number
            yield number, row

    try:
        for sample, prediction in benchmark.read_predictions(rows(), task):
            yield sample, prediction, benchmark.score(sample, prediction)
    except ValueError as error:
        raise ValueError(str(error) if name in str(error) else f"{name}, {error}") from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{name}, line {line}: not a row of {benchmark.name} predictions ({reason})"
        ) from error


def _mean(rows: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Weighted mean of each metric over the rows that have it."""
    means = {}
    for metric in dict.fromkeys(metric for _, scores in rows for metric in scores):
        pairs = [(weight, scores[metric]) for weight, scores in rows if metric in scores]
        total = sum(weight for weight, _ in pairs)
        means[metric] = sum(weight * value for weight, value in pairs) / total if total else 0.0
    return means


def _average(headline: Mapping[str, float], groups: Sequence[Sequence[str]]) -> float | None:
    if any(task not in headline for group in groups for task in group):
        return None
    return _rounded(fmean(fmean(headline[task] for task in group) for group in groups))


def _rounded(fraction: float) -> float:
    return round(100 * fraction, 2)


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0 if scores were printed, 2 if something was wrong."""
    if len(arguments) != 2 or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            print(f"usage: {USAGE}\nbenchmarks: {', '.join(find_benchmarks())}")
            return 0
        print(
            f"error: give a benchmark and a file: {USAGE}; benchmarks: {', '.join(find_benchmarks())}",
            file=sys.stderr,
        )
        return 2
    name, _, task = arguments[0].partition("/")
    try:
        print(json.dumps(score_file(load(name), task or None, arguments[1]), indent=2, ensure_ascii=False))
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
