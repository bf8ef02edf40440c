"""Every suite on the embedded model, offline: from a handful of rows to prompts, answers, scores, a table."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from longpress.analysis.records import read_records
from longpress.catalogue import benchmarks
from longpress.evaluation.config import register, settings
from longpress.evaluation.runner import EvaluationRunner

CONF = Path(__file__).parents[2] / "conf"


def rows_of(module: str) -> Callable[[Path], str]:
    """The rows that a suite's own tests make."""
    return lambda path: import_module(f"tests.benchmarks.{module}").folder(path)


def boxed(path: Path) -> str:
    made = import_module("tests.benchmarks.test_math500")
    return made.rows(path, made.PROBLEMS)


def integers(path: Path) -> str:
    made = import_module("tests.benchmarks.test_math500")
    return made.rows(path, made.INTEGERS)


SUITES: dict[str, tuple[Callable[[Path], str] | None, list[str]]] = {
    "ruler": (None, ["benchmark.length=1024", "benchmark.haystack=walden"]),
    "niah": (None, ["benchmark.tasks=['1024']", "benchmark.haystack=walden"]),
    "longbench": (rows_of("test_longbench"), ["benchmark.tasks=[qasper,samsum,lcc]"]),
    "longbench_v2": (lambda path: import_module("tests.benchmarks.test_longbench_v2").made(path).path, []),
    "infinitebench": (rows_of("test_infinitebench"), ["benchmark.tasks=[passkey,kv_retrieval]"]),
    "babilong": (rows_of("test_babilong"), ["benchmark.length=1k", "benchmark.tasks=[qa1,qa4]"]),
    "loogle": (rows_of("test_loogle"), ["benchmark.tasks=[shortdep_cloze]"]),
    "zero_scrolls": (rows_of("test_zero_scrolls"), ["benchmark.tasks=[qasper,quality]"]),
    "scbench": (rows_of("test_scbench"), ["benchmark.tasks=[scbench_kv]"]),
    "helmet": (rows_of("test_helmet"), []),
    "math500": (boxed, ["benchmark.max_new_tokens=16"]),
    "aime25": (integers, ["benchmark.max_new_tokens=16"]),
}


def test_every_suite_is_here() -> None:
    assert SUITES.keys() == benchmarks().keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
def test_a_suite_runs_on_the_embedded_model(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, options = SUITES[name]
    (tmp_path / "rows").mkdir()
    where = [f"benchmark.path={make(tmp_path / 'rows')}"] if make else []
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = [
            "press=knorm",
            f"benchmark={name}",
            "limit=1",
            "plots=false",
            f"results={tmp_path / 'results'}",
            *where,
            *options,
        ]
        EvaluationRunner(settings(compose("config", overrides=chosen))).run()
    found = list(read_records([tmp_path / "results"]))
    assert {(record.press, record.compression_ratio) for record in found} == {("none", 0.0), ("knorm", 0.5)}
    assert all(record.error is None and record.stop_reason for record in found)
    assert (tmp_path / "results" / "scores.csv").is_file()
    assert name in capsys.readouterr().out
