"""Write a ZeroSCROLLS submission.

    python -m benchmarks.zero_scrolls.submission FOLDER… OUT.csv [press=NAME …]

A FOLDER holds the results of a run with `benchmark=zero_scrolls benchmark.split=test`; or give `.jsonl` files
of rows with task, id, prediction. Where there are several variants, fields of the records choose one:
`press=snapkv compression_ratio=0.5`. The output has the columns Task, ID, Prediction of
submission/prepare_submission.py at c994676; all ten tasks are needed to send it in.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.text.jsonl import read_rows
from benchmarks.zero_scrolls import MAX_NEW_TOKENS
from longpress.errors import one_sentence

FIELDS = ("model", "press", "compression_ratio", "query_aware")
"""Of a record, which tell variants apart."""


class AnswerKey(NamedTuple):
    """What one line of the table answers."""

    task: str
    id: str


Answers = dict[AnswerKey, str]
"""What is answered -> the prediction."""


def read_answers(paths: Iterable[str | Path], chosen: Mapping[str, str]) -> Answers:
    """The predictions of one variant.

    Args:
        paths: result folders, or `.jsonl` files.
        chosen: fields of a record that must have this value, e.g. {"press": "snapkv", "compression_ratio":
            "0.5"}.

    Raises:
        ValueError: a choice by another field; no answer, or the answers of several variants, which are
            listed.
    """
    for name in chosen:
        if name not in FIELDS:
            raise ValueError(f"a variant has no {name}; choose by {', '.join(FIELDS)}")
    variants: dict[tuple[str, ...], Answers] = {}
    for row in _rows(paths):
        if row["task"] not in MAX_NEW_TOKENS or any(str(row.get(name)) != chosen[name] for name in chosen):
            continue
        identifier = str(row.get("data", row).get("id", row.get("id")))
        variant = tuple(f"{name}={row[name]}" for name in FIELDS if name in row)
        variants.setdefault(variant, {})[AnswerKey(row["task"], identifier)] = row["prediction"]
    if len(variants) > 1:
        listed = "; ".join(" ".join(variant) for variant in variants)
        raise ValueError(f"the answers of {len(variants)} variants; choose one of: {listed}")
    if not variants:
        raise ValueError(f"no answer to a ZeroSCROLLS task in {', '.join(map(str, paths))}")
    return next(iter(variants.values()))


def write_submission(answers: Answers, file: str | Path) -> list[str]:
    """Write the table, task by task in the suite's order.

    Returns:
        The tasks of the ten that have no answer.
    """
    with Path(file).open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["Task", "ID", "Prediction"])
        for task in MAX_NEW_TOKENS:
            table.writerows([*key, text] for key, text in answers.items() if key.task == task)
    return [task for task in MAX_NEW_TOKENS if all(key.task != task for key in answers)]


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        SystemExit: something was wrong, or tasks are missing in the table; after one sentence about it.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zero_scrolls.submission",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    given = parser.parse_args(arguments)
    with one_sentence():
        run(given)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="FOLDER OUT.csv FIELD=VALUE",
        help="folders of results, or .jsonl files; then OUT.csv, the table to write; "
        f"then, where there are several variants, FIELD=VALUE with one of {', '.join(FIELDS)}",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the table.

    Raises:
        ValueError: no answer, or the answers of several variants; or, when the table is written, tasks that
            are missing in it.
    """
    paths = [argument for argument in arguments.arguments if "=" not in argument]
    chosen = dict(argument.split("=", 1) for argument in arguments.arguments if "=" in argument)
    if len(paths) < 2:
        raise ValueError("give folders of results or .jsonl files, then the table to write: FOLDER OUT.csv")
    missing = write_submission(read_answers(paths[:-1], chosen), paths[-1])
    if missing:
        raise ValueError(f"{paths[-1]} is written; a submission needs {', '.join(missing)} too")


def _rows(paths: Iterable[str | Path]) -> Iterator[dict[str, Any]]:
    """Every record of folders and files.

    Raises:
        ValueError: a row has no task, or no prediction that is text; names the line.
    """
    for path in map(Path, paths):
        for file in sorted(path.glob("records/*.jsonl")) if path.is_dir() else [path]:
            for number, row in read_rows(file):
                if not isinstance(row.get("prediction"), str) or "task" not in row:
                    raise ValueError(
                        f"{file.name}, line {number}: no field 'task' or no text in 'prediction'"
                    )
                yield row


if __name__ == "__main__":
    main(sys.argv[1:])
