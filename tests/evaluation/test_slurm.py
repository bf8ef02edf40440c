"""A one-node Slurm runs an array of shards; one of them is killed and queued again, and nothing is lost."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_runner import ROOT, content, records
from test_sweeper import evaluate, tiny

__all__ = ["tiny"]
pytestmark = pytest.mark.cluster
SWEEP = ["press=[knorm,snapkv]", "compression_ratio=[0.25,0.5]", "limit=12"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("slurm")
    script = str(ROOT / "tests" / "start_slurm.sh")
    subprocess.run([script, str(folder)], check=True, timeout=60)
    yield os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(ROOT)}
    subprocess.run([script, str(folder), "stop"], check=True, timeout=60)


def test_an_array_of_shards_with_one_killed_and_queued_again_equals_a_single_run(tiny: Path, tmp_path: Path, slurm: dict[str, str]) -> None:
    results = tmp_path / "shards"
    common = ["benchmark=ruler", "benchmark.tasks=[niah_single_1,vt]", "benchmark.length=2048", f"results={results}"]
    model = ["model=hub", f"model.path={tiny}", "model.name=tiny"]
    launcher = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null", f"hydra.sweep.dir={tmp_path}"]
    launcher += [f"hydra.launcher.submitit_folder={tmp_path}/jobs/%j", "hydra.launcher.timeout_min=20"]
    shards = ["shard.count=3", "shard.index=range(3)"]
    command = [sys.executable, str(ROOT / "evaluate.py"), "-m", *common, *model, *SWEEP, *launcher, *shards]
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=slurm, cwd=ROOT)
    deadline = time.monotonic() + 200
    while not list(results.glob("records/*.jsonl")) and sweep.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    queue = subprocess.run(["squeue", "-h", "-r", "-t", "R", "-o", "%A"], capture_output=True, text=True, check=True, env=slurm)
    running = queue.stdout.split()
    assert running, "no shard was running when the first record was written"
    for job in running:  # one of them wrote that record
        subprocess.run(["scontrol", "requeue", job], check=True, env=slurm)
    for path in results.glob("records/*.jsonl"):  # submitit ignores the SIGTERM of a requeue: end the process at once
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.stem.rsplit("-", 2)[1]), signal.SIGKILL)
    printed, _ = sweep.communicate(timeout=280)
    assert sweep.returncode == 0, printed
    assert "plan: 3 jobs, 24 prefills, 120 answers left" in printed
    logs = "".join(path.read_text() for path in (tmp_path / "jobs").rglob("*.err")) + printed
    evaluate(tiny, tmp_path / "single", *SWEEP)
    assert content(results) == content(tmp_path / "single"), logs
    assert len(records(results)) == 120
    assert len(list(results.glob("records/*.jsonl"))) > 3, "no shard was interrupted"
    assert (results / "table.md").read_text() == (tmp_path / "single" / "table.md").read_text()
