"""Several worker processes on one run: the records of one process, whoever dies; and a clean end."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from longpress.evaluation.config import composed, register, settings
from longpress.evaluation.runner import EvaluationRunner
from longpress.evaluation.workers import device_of, threads_of
from tests.support.running import command, content, records, run, table
from tests.support.warm_command import warm_context

DEADLY = '''"""Deadly: takes its process with it, once, and in long contexts always.

Source: a test.
Differs: nothing.
Cost: a process.
"""
import os
import signal
from dataclasses import dataclass
from presses.scorer import ScorerPress


@dataclass(frozen=True)
class DeadlyPress(ScorerPress):
    flag: str = ""
    longest: int = 100000

    def score(self, layer):
        try:
            os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
            first = True
        except FileExistsError:
            first = False
        if first or layer.keys.shape[2] > self.longest:
            os.kill(os.getpid(), signal.SIGKILL)
        return layer.values.norm(dim=-1)
'''


def prepared(model: Path, folder: Path, results: str, *arguments: str) -> EvaluationRunner:
    """A run under a press that kills the first process it is in."""
    own = folder / "own"
    own.mkdir(exist_ok=True)
    (own / "deadly.py").write_text(DEADLY)
    given = [
        f"presses_dir={own}",
        "press=[knorm,deadly]",
        f"presses.deadly.flag={folder / 'flag'}",
        "model=hub",
        f"model.path={model}",
    ]
    register(given)
    return EvaluationRunner(settings(composed([*given, f"results={folder / results}", *arguments])))


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers begin as forks of the warmed-up process, in a fraction of the time that a user's take."""
    warm = warm_context()
    monkeypatch.setattr("longpress.evaluation.workers.multiprocessing.get_context", lambda method: warm)


def test_records_are_those_of_one_process_though_a_worker_died(
    forked_workers: None, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "model.name=tiny",
        "benchmark.tasks=[niah_single_1,vt]",
        "benchmark.length=2048",
        "limit=3",
        "compression_ratio=[0.25,0.5]",
    ]
    shared = prepared(model_folder, tmp_path, "shared", *asked, "workers=2")
    shared.run()
    assert shared.failed == 0
    assert "ended with exit code -9" in capsys.readouterr().err
    writers = {path.stem.rsplit("-", 2)[1] for path in (tmp_path / "shared" / "records").iterdir()}
    assert len(writers) == 2
    prepared(model_folder, tmp_path, "single", *asked).run()
    assert content(tmp_path / "shared") == content(tmp_path / "single")
    assert len(records(tmp_path / "shared")) == 2 * 3 * 5
    assert table(tmp_path / "shared") == table(tmp_path / "single")
    assert '"workers": 2' in (tmp_path / "shared" / "environment.json").read_text()


@pytest.mark.slow
def test_a_context_that_kills_every_worker_becomes_failed_cells(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "flag").touch()
    asked = [
        "model.name=tiny",
        "benchmark=niah",
        "benchmark.tasks=['512','1024']",
        "limit=3",
        "presses.deadly.longest=600",
    ]
    deadly = prepared(model_folder, tmp_path, "results", *asked, "workers=2")
    deadly.run()
    found = records(tmp_path / "results")
    failed = [record for record in found if record["error"]]
    assert len(found) == len({record["key"] for record in found}) == 2 * 3 * 3
    assert {record["task"] for record in failed} == {"1024"}
    assert len(failed) == deadly.failed == 3 * 3, "a killed process answers nothing of its context"
    assert all("exit code -9 over this context" in record["error"] for record in failed)


MANY = ["limit=24", "compression_ratio=[0.1,0.2,0.3,0.4,0.5]", "benchmark.length=1024", "max_batch_gb=0.002"]
"""A run long enough to be stopped: few rows are decoded together, so records come context by context."""
MANY_RECORDS = 2 * 24 * 11


@pytest.fixture(scope="module")
def of_one_process(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> set[tuple]:
    """The records of that run, answered by one process."""
    results = tmp_path_factory.mktemp("single")
    run(model_folder, results, *MANY)
    return content(results)


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["SIGTERM", "Ctrl-C", "kill -9"])
def test_workers_end_with_the_run_and_lose_nothing(
    model_folder: Path, of_one_process: set[tuple], tmp_path: Path, stop: str
) -> None:
    shared = tmp_path / "shared"
    process = subprocess.Popen(
        command(model_folder, shared, *MANY, "workers=2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(shared.glob("records/*.jsonl")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    if stop == "Ctrl-C":  # a terminal sends it to every process
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM if stop == "SIGTERM" else signal.SIGKILL)
    _, said = process.communicate(timeout=120)  # workers hold the pipes: this waits for them as well
    assert process.returncode == {"SIGTERM": 143, "Ctrl-C": 130, "kill -9": -9}[stop], said
    assert "Traceback" not in said
    workers = {int(path.stem.rsplit("-", 2)[1]) for path in shared.glob("records/*.jsonl")}
    deadline = time.monotonic() + 10
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, workers))
    written = len(records(shared))
    assert 0 < written < MANY_RECORDS
    run(model_folder, shared, *MANY, "workers=2")
    assert len(records(shared)) == len({record["key"] for record in records(shared)}) == MANY_RECORDS
    assert content(shared) == of_one_process


def runs(process: int) -> bool:
    """Whether it is there and not only waiting to be reaped by the system's first process."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_gpus_are_taken_in_turn_and_what_was_asked_for_stays() -> None:
    assert [device_of(index, "auto", 2) for index in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_of(1, "cuda", 4) == "cuda:1"
    assert device_of(1, "cuda:0", 4) == "cuda:0"
    assert device_of(1, "cpu", 4) == "cpu"
    assert device_of(1, "auto", 0) == "auto"


def test_threads_are_shared_unless_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_of(workers) for workers in (2, 3, 20)] == [4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of(2) is None


@pytest.mark.parametrize(
    "wrong, sentence",
    [(["workers=-1"], "workers=-1"), (["workers=2", "model.device_map=auto"], "set workers=1")],
)
def test_workers_that_cannot_be_are_refused(
    model_folder: Path, tmp_path: Path, wrong: list[str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        prepared(model_folder, tmp_path, "results", "model.name=tiny", *wrong).run()
