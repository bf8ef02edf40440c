"""Score stored answers again, after a scorer has changed: `python -m longpress.evaluation.rescore DIR OUT` needs no model.

The answers are read from `DIR/records` and written, with the scores of today's benchmark files, to a folder
of their own: nothing that was measured is overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.base import Benchmark, Sample
from longpress.analysis.records import Record, RecordWriter, read_records
from longpress.analysis.tables.write import report
from longpress.arguments import Parser, command, exit_code
from longpress.catalogue import benchmarks, find


def rescore(folder: Path) -> Iterator[Record]:
    """The folder's records with the scores that their benchmark gives now; failed samples stay as they are.

    Raises:
        ValueError: no record, or one of a benchmark that does not exist here.
    """
    suites: dict[str, Benchmark] = {}
    stored = list(read_records([folder]))
    if not stored:
        raise ValueError(f"{folder} holds no records; give the folder of a run (with records/*.jsonl in it)")
    for record in stored:
        if record.benchmark not in suites:
            suites[record.benchmark] = find(record.benchmark, benchmarks(), "benchmark").load()()
        suite = suites[record.benchmark]
        if record.error is not None:
            yield record
            continue
        references = tuple(record.references)
        scores = suite.score(
            Sample(record.sample_id, record.task, "", "", references, metadata=record.data), record.prediction
        )
        metric = next(iter(scores), "")
        yield replace(
            record, benchmark_version=suite.version, metric=metric, scores=scores, score=scores.get(metric)
        )


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(prog="python -m longpress.evaluation.rescore", description=__doc__)
    parser.add_argument("folder", type=Path, help="results folder to read")
    parser.add_argument("out", type=Path, help="results folder to write, new or empty")
    given = parser.parse_args(arguments)
    if list(given.out.glob("records/*.jsonl")):
        raise ValueError(f"{given.out} already holds records; give a new folder")
    with RecordWriter(given.out) as writer:
        for record in rescore(given.folder):
            writer.append(record)
    report([given.out])


if __name__ == "__main__":
    command(main)
