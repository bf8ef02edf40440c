"""A one-node Slurm runs an array of shards; one is killed, one told to make room, and nothing is lost."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import ROOT, content, multirun, multirun_command, records, table

pytestmark = pytest.mark.cluster
SWEEP = ["press=[knorm,snapkv]", "compression_ratio=[0.1,0.2,0.3,0.4,0.5]", "limit=45"]
"""30 contexts a shard, of which at most 18 (192 rows) are decoded together.

Half of a shard's records come before its end.
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("slurm")
    script = str(ROOT / "tests" / "support" / "start_slurm.sh")
    subprocess.run([script, str(folder)], check=True, timeout=60)
    yield os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(ROOT)}
    subprocess.run([script, str(folder), "stop"], check=True, timeout=60)


def test_shards_that_are_killed_or_preempted_are_queued_again_and_nothing_is_lost(
    model_folder: Path, tmp_path: Path, slurm: dict[str, str]
) -> None:
    results = tmp_path / "shards"
    launcher = [
        "hydra/launcher=slurm",
        "hydra.launcher.cpus_per_task=1",
        "hydra.launcher.mem_gb=null",
        "hydra.launcher.timeout_min=20",
    ]
    launcher += [f"hydra.launcher.submitit_folder={tmp_path}/jobs/%j", f"hydra.sweep.dir={tmp_path}"]
    command = multirun_command(
        model_folder, results, "-m", *SWEEP, *launcher, "shard.count=3", "shard.index=range(3)"
    )
    sweep = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=slurm, cwd=ROOT
    )
    seen: set[Path] = set()
    killed = next_writer(results, seen, sweep)
    variables = dict(
        line.split("=", 1) for line in Path(f"/proc/{killed}/environ").read_text().split("\0") if "=" in line
    )
    subprocess.run(
        ["scontrol", "requeue", variables["SLURM_JOB_ID"]], check=True, env=slurm
    )  # as Slurm does when a node fails
    os.kill(killed, signal.SIGKILL)
    os.kill(
        next_writer(results, seen, sweep), signal.SIGUSR2
    )  # Slurm's warning before a time limit or preemption; submitit requeues
    printed, _ = sweep.communicate(timeout=280)
    assert sweep.returncode == 0, printed
    assert "plan: 3 jobs, 90 prefills, 990 answers left" in printed
    multirun(model_folder, tmp_path / "single", *SWEEP)
    assert content(results) == content(tmp_path / "single")
    assert len(records(results)) == 990
    assert len(list(results.glob("records/*.jsonl"))) == 5, (
        "two shards were to be interrupted before their end"
    )
    assert table(results) == table(tmp_path / "single")


def next_writer(results: Path, seen: set[Path], sweep: subprocess.Popen[str]) -> int:
    """The process that has just begun a record file."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and sweep.poll() is None:
        for path in set(results.glob("records/*.jsonl")) - seen:
            seen.add(path)
            return int(path.stem.rsplit("-", 2)[1])
        time.sleep(0.02)
    sweep.kill()
    raise AssertionError(sweep.communicate(timeout=280)[0])
