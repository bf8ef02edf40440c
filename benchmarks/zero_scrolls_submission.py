"""Write a ZeroSCROLLS submission: `python -m benchmarks.zero_scrolls_submission FOLDER… OUT.csv [press=NAME] [compression_ratio=R]`.

A FOLDER holds the results of a run with `benchmark=zero_scrolls benchmark.split=test`; or give `.jsonl` files
of rows with task, id, prediction.
The output has the columns Task, ID, Prediction of submission/prepare_submission.py at c994676; all ten tasks
are needed to send it in.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.jsonl import read_rows
from benchmarks.zero_scrolls import MAX_NEW_TOKENS


def read_answers(paths: Iterable[str | Path], chosen: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """(task, id) -> prediction of one variant.

    Args:
        paths: result folders, or `.jsonl` files.
        chosen: fields of a record that must have this value, e.g. {"press": "snapkv", "compression_ratio":
            "0.5"}.

    Raises:
        ValueError: no answer, or the answers of several variants; lists them.
    """
    variants: dict[tuple[str, ...], dict[tuple[str, str], str]] = {}
    for row in _rows(paths):
        task, identifier = str(row["task"]), str(row.get("data", row).get("id", row.get("id")))
        if task in MAX_NEW_TOKENS and all(str(row.get(name)) == value for name, value in chosen.items()):
            variant = tuple(
                f"{name}={row[name]}"
                for name in ("model", "press", "compression_ratio", "query_aware")
                if name in row
            )
            variants.setdefault(variant, {})[task, identifier] = row["prediction"]
    if len(variants) > 1:
        raise ValueError(
            f"the answers of {len(variants)} variants; choose one of: {'; '.join(' '.join(variant) for variant in variants)}"
        )
    if not variants:
        raise ValueError(f"no answer to a ZeroSCROLLS task in {', '.join(map(str, paths))}")
    return next(iter(variants.values()))


def write_submission(answers: Mapping[tuple[str, str], str], file: str | Path) -> list[str]:
    """Write the table, task by task in the suite's order.

    Returns:
        The tasks of the ten that have no answer.
    """
    with Path(file).open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["Task", "ID", "Prediction"])
        for wanted in MAX_NEW_TOKENS:
            table.writerows(
                [task, identifier, text] for (task, identifier), text in answers.items() if task == wanted
            )
    return [task for task in MAX_NEW_TOKENS if all(task != other for other, _ in answers)]


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0 if a complete table was written, 1 if tasks are missing, 2 if something was wrong."""
    paths = [argument for argument in arguments if "=" not in argument]
    chosen = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if len(paths) < 2 or set(chosen) - {"model", "press", "compression_ratio", "query_aware"}:
        print(str(__doc__).split("`")[1], file=sys.stderr)
        return 2
    try:
        missing = write_submission(read_answers(paths[:-1], chosen), paths[-1])
    except (ValueError, KeyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if missing:
        print(f"{paths[-1]} is written; a submission needs {', '.join(missing)} too", file=sys.stderr)
    return int(bool(missing))


def _rows(paths: Iterable[str | Path]) -> Iterator[dict[str, Any]]:
    for path in map(Path, paths):
        for file in sorted(path.glob("records/*.jsonl")) if path.is_dir() else [path]:
            for number, row in read_rows(file):
                if not isinstance(row.get("prediction"), str) or "task" not in row:
                    raise ValueError(
                        f"{file.name}, line {number}: no field 'task' or no text in 'prediction'"
                    )
                yield row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
