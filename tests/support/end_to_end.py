"""A suite on the embedded model, offline: from a handful of rows to prompts, answers, scores, a table."""

from pathlib import Path

from hydra import compose, initialize_config_dir

from longpress.analysis.records import read_records
from longpress.evaluation.config import register, settings
from longpress.evaluation.runner import EvaluationRunner
from tests.support.documents import ROOT


def check_end_to_end(benchmark: str, results: Path, *options: str) -> None:
    """Run one context a task, with the full cache and with half of it, and look at what was written.

    Every suite's own tests call it (see test_every_suite.py): they know how its rows are made.
    """
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        chosen = ["press=knorm", f"benchmark={benchmark}", "limit=1", "plots=false", f"results={results}"]
        EvaluationRunner(settings(compose("config", overrides=[*chosen, *options]))).run()

    found = list(read_records([results]))
    assert {(record.press, record.compression_ratio) for record in found} == {("none", 0.0), ("knorm", 0.5)}
    assert {record.benchmark for record in found} == {benchmark}
    assert all(record.error is None and record.stop_reason for record in found)
    assert benchmark in (results / "table.md").read_text(encoding="utf-8")
