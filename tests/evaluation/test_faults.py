"""Faults of a run: what raises becomes a failed cell, signals and full disks lose nothing, the next run does what is left."""

import ast
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_records import make
from test_runner import ROOT, command, content, records

from evaluation.records import RecordWriter, read_records
from evaluation.sweeper import _in_a_sweep

BROKEN = '''"""Broken: raises from layer {layer} on, in long contexts.

Source: a test.
Differs: nothing.
Cost: none.
"""
from dataclasses import dataclass
from presses.scorer import ScorerPress


@dataclass(frozen=True)
class BrokenPress(ScorerPress):
    def score(self, layer):
        if {condition}:
            raise RuntimeError("broken on purpose")
        return layer.values.norm(dim=-1)
'''
SMALL = ["limit=1", "benchmark.tasks=[niah_single_1]"]


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from byte_tokenizer import VOCABULARY, byte_tokenizer
    from tiny_models import tiny_model

    folder = tmp_path_factory.mktemp("small")
    tiny_model("llama", vocab_size=VOCABULARY).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300, **options)


def test_a_press_that_raises_is_a_failed_cell_and_is_tried_again(small_model: Path, tmp_path: Path) -> None:
    own, results = tmp_path / "own", tmp_path / "results"
    own.mkdir()
    (own / "broken.py").write_text(BROKEN.format(layer=1, condition="layer.index == 1"))
    asked = command(small_model, results, *SMALL, f"presses_dir={own}", "press=[broken,knorm]", "compression_ratio=[0.25,0.5]")
    done = run(*asked)
    assert done.returncode == 1, done.stderr
    assert "2 answers failed" in done.stderr
    assert "broken on purpose" in done.stderr
    assert "Traceback" not in done.stderr
    assert "–†" in done.stdout
    assert "failed samples, left out" in done.stdout
    found = {(record["press"], record["compression_ratio"]): record for record in records(results)}
    assert {name for name, record in found.items() if record["error"]} == {("broken", 0.25), ("broken", 0.5)}
    assert "RuntimeError: broken on purpose" in found["broken", 0.5]["error"]
    assert found["broken", 0.5]["score"] is None
    assert all(record["score"] is not None for (press, _), record in found.items() if press != "broken")
    (own / "broken.py").write_text(BROKEN.format(layer=1, condition="False"))
    again = run(*asked)
    assert again.returncode == 0, again.stderr
    assert "†" not in again.stdout
    assert len(records(results)) == len(found) + 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_its_code_and_no_torn_line(small_model: Path, tmp_path: Path, number: int) -> None:
    asked = command(small_model, tmp_path, "limit=80")
    process = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("records/*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 128 + number, printed
    assert "the same command goes on from there" in printed
    assert "Traceback" not in printed
    found = records(tmp_path)
    assert len({record["key"] for record in found}) == len(found)
    assert 0 < len(found) < 2 * 80 * 5
    assert not any(record["error"] for record in found)


def test_a_full_disk_is_one_sentence_and_keeps_what_was_written(small_model: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    asked = ["limit=2", "benchmark.tasks=[niah_single_1]", "kept_maps=0"]
    assert run(*command(small_model, whole, *asked)).returncode == 0
    size = sum(path.stat().st_size for path in whole.glob("records/*.jsonl"))
    limit = size // 2 + 100

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = run(*command(small_model, cut, *asked), preexec_fn=limited)
    assert done.returncode == 2, done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    assert run(*command(small_model, cut, *asked)).returncode == 0
    assert {record.key for record in read_records([cut])} == {record["key"] for record in records(whole)}


@pytest.mark.parametrize("results", ["/proc/longpress", "/dev/null/results"])
def test_a_folder_that_cannot_be_written_is_refused_before_weights_are_loaded(small_model: Path, tmp_path: Path, results: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(small_model, model)
    (model / "model.safetensors").write_bytes(b"not weights")
    done = run(*command(model, Path(results), *SMALL))
    assert done.returncode == 2
    assert f"results={results} cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_command_twice_gives_the_same_records(small_model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run(*command(small_model, tmp_path / name, "limit=1")).returncode == 0
    timed = {"prefill_seconds", "observe_seconds", "compress_seconds", "decode_seconds"}
    first, second = ([{key: value for key, value in one.items() if key not in timed} for one in records(tmp_path / n)] for n in ("a", "b"))
    assert first == second
    described = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert described["dtype"] == "float32"
    assert "do not depend on which rows" in described["guarantee"]
    assert described["code"].keys() == {"commit", "dirty"}
    assert all(len(described[name]) == 64 for name in ("sample_ids_sha256", "contexts_sha256"))


def test_two_jobs_on_one_folder_give_the_records_of_one(small_model: Path, tmp_path: Path) -> None:
    assert run(*command(small_model, tmp_path / "one", "limit=2")).returncode == 0
    jobs = [subprocess.Popen(command(small_model, tmp_path / "two", "limit=2"), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [job.wait(300) for job in jobs] == [0, 0]
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_full_disk_under_a_record_is_a_sentence(tmp_path: Path) -> None:
    with RecordWriter(tmp_path) as writer, pytest.raises(ValueError, match=r"cannot be written \(No space left on device\)"):
        writer.path.parent.mkdir()
        writer.path.symlink_to("/dev/full")
        writer.append(make())


def test_no_clock_that_can_jump_is_read() -> None:
    """Durations are differences of a monotonic clock, and no name or decision depends on the time of day."""
    found = {}
    for package in ("benchmarks", "evaluation", "kvcache", "pipeline", "presses"):
        for path in (ROOT / package).glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            named = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
            imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
            used = {node.attr for node in named if node.value.id == "time" and "time" in imported}
            found[path.name] = (used - {"perf_counter", "monotonic"}) | (imported & {"datetime"})
    assert not {name: used for name, used in found.items() if used}


def test_the_other_jobs_of_a_multirun_go_on_after_failures_and_a_signal_ends_all(small_model: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "broken.py").write_text(BROKEN.format(layer=0, condition="True"))
    asked = command(small_model, tmp_path / "results", *SMALL, f"presses_dir={own}", "press=broken", "benchmark.length=768,1024", "-m")
    done = run(*asked)
    assert done.returncode == 1, done.stderr
    assert "2 of 2 jobs failed" in done.stderr
    assert "Traceback" not in done.stderr
    found = records(tmp_path / "results")
    assert {record["benchmark_parameters"]["length"] for record in found if record["press"] == "none"} == {768, 1024}
    with pytest.raises(SystemExit, match="143"):
        _in_a_sweep(lambda config: sys.exit(143), OmegaConf.create())
    with pytest.raises(RuntimeError, match="exit code 1"):
        _in_a_sweep(lambda config: sys.exit(1), OmegaConf.create())
