"""Shards as jobs of joblib and of Ray: the table of a single run; two processes are faster than one."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.running import ROOT, content, multirun, multirun_command, records, table

pytestmark = pytest.mark.cluster
SWEEP = ["press=[knorm,snapkv]", "compression_ratio=[0.25,0.5]", "limit=6"]


def test_shards_on_ray_fill_one_folder_as_a_single_run(model_folder: Path, tmp_path: Path) -> None:
    shards = ["shard.count=3", "shard.index=range(3)"]
    multirun(model_folder, tmp_path / "shards", "-m", *SWEEP, *shards, "hydra/launcher=ray")
    assert len(list((tmp_path / "shards" / "records").iterdir())) == 3
    multirun(model_folder, tmp_path / "single", *SWEEP)
    assert content(tmp_path / "shards") == content(tmp_path / "single")
    assert len(records(tmp_path / "shards")) == 60
    assert table(tmp_path / "shards") == table(tmp_path / "single")


def test_a_job_that_fails_on_ray_fails_alone(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folders = f"results={tmp_path / 'file'},{tmp_path / 'good'}"
    done = multirun(
        model_folder, tmp_path, "-m", folders, "limit=1", "press=knorm", "hydra/launcher=ray", code=1
    )
    assert "1 of 2 jobs failed" in done.stderr
    assert len(records(tmp_path / "good")) == 4


def test_processes_of_ray_find_our_packages_beside_those_of_a_user(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("benchmarks", "presses", "kvcache", "longpress"):
        (folder := tmp_path / "own" / name).mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('of somebody else')")
    monkeypatch.chdir(tmp_path / "own")
    launched = ["-m", "press=knorm", "compression_ratio=0.5", "shard.index=0,1", "hydra/launcher=ray"]
    given = [*multirun_command(model_folder, tmp_path / "results", *launched, "shard.count=2")[2:]]
    script = Path(sys.executable).with_name("longpress")
    done = subprocess.run([script, "run", *given], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(records(tmp_path / "results")) == 8


def test_two_processes_of_joblib_are_faster_than_one_and_lose_nothing(tmp_path: Path) -> None:
    rows = [
        "model=smollm2",
        "benchmark=ruler",
        "benchmark.tasks=[niah_single_2]",
        "benchmark.length=1024",
        "limit=32",
        "press=knorm",
    ]
    seconds = {}
    shards = ["shard.count=2", "shard.index=range(2)"]
    for name, arguments in {
        "single": [],
        "joblib": ["-m", *shards, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    }.items():
        command = [sys.executable, str(ROOT / "evaluate.py"), *arguments, *rows, f"results={tmp_path / name}"]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
        seconds[name] = time.perf_counter() - started
        assert done.returncode == 0, done.stdout + done.stderr
    assert content(tmp_path / "joblib") == content(tmp_path / "single")
    assert len(records(tmp_path / "joblib")) == 64
    print(f"single {seconds['single']:.1f} s, joblib {seconds['joblib']:.1f} s")
    assert seconds["joblib"] < seconds["single"]
