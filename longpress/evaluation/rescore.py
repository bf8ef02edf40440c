"""Score stored answers again, after a scorer has changed; needs no model.

The answers are read from the records in DIR and written, with the scores of today's benchmark files, to OUT,
a folder of their own: nothing that was measured is overwritten.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.base import Benchmark, Sample
from longpress.analysis.records import Record, RecordWriter, read_records
from longpress.analysis.tables.write import write_tables
from longpress.catalogue import benchmarks, find


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="results folder to read")
    parser.add_argument("out", type=Path, metavar="OUT", help="results folder to write, new or empty")


def run(arguments: argparse.Namespace) -> None:
    """Write the records with new scores, and their tables.

    Raises:
        ValueError: there are no records to read, or some where they would be written.
    """
    if list(arguments.out.glob("records/*.jsonl")):
        raise ValueError(f"{arguments.out} already holds records; give a new folder")
    with RecordWriter(arguments.out) as writer:
        for record in rescore(arguments.folder):
            writer.append(record)
    write_tables([arguments.out])


def rescore(folder: Path) -> Iterator[Record]:
    """The folder's records with the scores that their benchmark gives now; failed samples stay as they are.

    Raises:
        ValueError: no record, or one of a benchmark that does not exist here.
    """
    stored = list(read_records([folder]))
    if not stored:
        raise ValueError(f"{folder} holds no records; give the folder of a run (with records/*.jsonl in it)")
    suites: dict[str, Benchmark] = {}
    for record in stored:
        if record.benchmark not in suites:
            suites[record.benchmark] = find(record.benchmark, benchmarks(), "benchmark").load()()
        yield record if record.error is not None else _rescored(record, suites[record.benchmark])


def _rescored(record: Record, suite: Benchmark) -> Record:
    """A record with the scores that its benchmark gives now."""
    sample = Sample(
        id=record.sample_id,
        task=record.task,
        context="",
        question="",
        references=tuple(record.references),
        metadata=record.data,
    )
    scores = suite.score(sample, record.prediction)
    metric = next(iter(scores), "")
    return replace(
        record,
        benchmark_version=suite.version,
        metric=metric,
        scores=scores,
        score=scores.get(metric),
    )
