"""Faults of a run: what raises becomes a failed cell, signals and full disks lose nothing.

The next run does what is left.
"""

import ast
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from benchmarks.ruler import RulerBenchmark
from longpress.analysis.records import RecordWriter, read_records
from longpress.evaluation.config import composed, register, settings
from longpress.evaluation.launch.sweeper import run_job
from longpress.evaluation.runner import EvaluationRunner
from tests.support.made_up_records import ruler_record
from tests.support.running import ROOT, command, content, records
from tests.support.warm_command import Command, completed

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
SMALL = ["limit=1", "benchmark.tasks=[vt]"]


FEW = ["benchmark.length=1024", "max_batch_gb=0.002"]
"""Few rows are decoded together, so that records come context by context."""


def run(*arguments: str, **surroundings: Any) -> subprocess.CompletedProcess[str]:
    """A command that was begun with the interpreter's name."""
    return completed(*arguments[1:], **surroundings)


def test_a_press_that_raises_is_a_failed_cell_and_is_tried_again(model_folder: Path, tmp_path: Path) -> None:
    own, results = tmp_path / "own", tmp_path / "results"
    own.mkdir()
    (own / "broken.py").write_text(BROKEN.format(layer=1, condition="layer.index == 1"))
    asked = command(
        model_folder,
        results,
        *SMALL,
        f"presses_dir={own}",
        "press=[broken,knorm]",
        "compression_ratio=[0.25,0.5]",
    )
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
def test_a_signal_ends_with_its_code_and_no_torn_line(
    model_folder: Path, tmp_path: Path, number: int
) -> None:
    asked = command(model_folder, tmp_path, *FEW, "limit=12")
    process = Command(tmp_path / "printed", *asked[1:])
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("records/*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    code, printed = process.wait(60), process.stderr
    assert code == 128 + number, printed
    assert "the same command goes on from there" in printed
    assert "Traceback" not in printed
    found = records(tmp_path)
    assert len({record["key"] for record in found}) == len(found)
    assert 0 < len(found) < 2 * 12 * 5
    assert not any(record["error"] for record in found)


def test_a_full_disk_is_one_sentence_and_keeps_what_was_written(model_folder: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    asked = ["limit=2", "benchmark.tasks=[vt]", "kept_maps=0"]
    assert run(*command(model_folder, whole, *asked)).returncode == 0
    size = sum(path.stat().st_size for path in whole.glob("records/*.jsonl"))
    limit = size // 2 + 100
    done = run(*command(model_folder, cut, *asked), largest_file=limit)
    assert done.returncode == 2, done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    assert run(*command(model_folder, cut, *asked)).returncode == 0
    assert {record.key for record in read_records([cut])} == {record["key"] for record in records(whole)}


@pytest.mark.parametrize("results", ["/proc/longpress", "/dev/null/results"])
def test_a_folder_that_cannot_be_written_is_refused_before_weights_are_loaded(
    model_folder: Path, tmp_path: Path, results: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    (model / "model.safetensors").write_bytes(b"not weights")
    done = run(*command(model, Path(results), *SMALL))
    assert done.returncode == 2
    assert f"results={results} cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_command_twice_gives_the_same_records(model_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run(*command(model_folder, tmp_path / name, "limit=1")).returncode == 0
    timed = {"prefill_seconds", "observe_seconds", "compress_seconds", "decode_seconds"}
    first, second = (
        [{key: value for key, value in one.items() if key not in timed} for one in records(tmp_path / n)]
        for n in ("a", "b")
    )
    assert first == second
    described = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert described["dtype"] == "float32"
    assert "do not depend on which rows" in described["guarantee"]
    assert described["code"].keys() == {"commit", "dirty"}
    assert all(len(described[name]) == 64 for name in ("sample_ids_sha256", "contexts_sha256"))


def test_two_jobs_on_one_folder_give_the_records_of_one(model_folder: Path, tmp_path: Path) -> None:
    assert run(*command(model_folder, tmp_path / "one", "limit=2")).returncode == 0
    asked = command(model_folder, tmp_path / "two", "limit=2")
    jobs = [Command(tmp_path / f"printed {at}", *asked[1:]) for at in range(2)]
    assert [job.wait(300) for job in jobs] == [0, 0]
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_full_disk_under_a_record_is_a_sentence(tmp_path: Path) -> None:
    with (
        RecordWriter(tmp_path) as writer,
        pytest.raises(ValueError, match=r"cannot be written \(No space left on device\)"),
    ):
        writer.path.parent.mkdir()
        writer.path.symlink_to("/dev/full")
        writer.append(ruler_record())


def test_no_clock_that_can_jump_is_read() -> None:
    """Durations are differences of a monotonic clock, and no name or decision depends on the time of day."""
    found = {}
    for package in ("benchmarks", "kvcache", "longpress", "presses"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            named = [
                node
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            ]
            imported = {
                name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
            }
            used = {node.attr for node in named if node.value.id == "time" and "time" in imported}
            found[path.relative_to(ROOT)] = (used - {"perf_counter", "monotonic"}) | (imported & {"datetime"})
    assert not {name: used for name, used in found.items() if used}


def test_the_other_jobs_of_a_multirun_go_on_after_failures_and_a_signal_ends_all(
    model_folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "broken.py").write_text(BROKEN.format(layer=0, condition="True"))
    asked = command(
        model_folder,
        tmp_path / "results",
        *SMALL,
        f"presses_dir={own}",
        "press=broken",
        "benchmark.length=1024,1536",
        "-m",
    )
    done = run(*asked)
    assert done.returncode == 1, done.stderr
    assert "2 of 2 jobs failed" in done.stderr
    assert "Traceback" not in done.stderr
    found = records(tmp_path / "results")
    assert {record["benchmark_parameters"]["length"] for record in found if record["press"] == "none"} == {
        1024,
        1536,
    }
    with pytest.raises(SystemExit, match="143"):
        run_job(lambda config: sys.exit(143), OmegaConf.create())
    with pytest.raises(RuntimeError, match="exit code 1"):
        run_job(lambda config: sys.exit(1), OmegaConf.create())


def prepared(model_folder: Path, results: Path, *arguments: str) -> EvaluationRunner:
    """A run in this process."""
    given = [
        argument for argument in command(model_folder, results, *SMALL, *arguments)[2:] if "=" in argument
    ]
    register(given)
    return EvaluationRunner(settings(composed(given)))


def test_a_scorer_that_raises_or_gives_no_score_is_a_failed_cell(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score = RulerBenchmark.score
    odd = {
        0: ZeroDivisionError("in the scorer"),
        1: {"string_match_all": float("nan")},
        2: {"string_match_all": 1.5},
    }

    def broken(self, sample, prediction):
        given = odd.get(int(sample.id.rsplit("/", 1)[1]))
        if isinstance(given, Exception):
            raise given
        return given or score(self, sample, prediction)

    monkeypatch.setattr(RulerBenchmark, "score", broken)
    run = prepared(model_folder, tmp_path, "limit=4", "press=knorm", "compression_ratio=0.5")
    run.run()
    assert run.failed == 2 * 3
    found = {(record["press"], record["sample_id"][-1]): record for record in records(tmp_path)}
    assert len(found) == 2 * 4
    for (_, row), record in found.items():
        assert (record["score"] is None) == (row != "3") == bool(record["error"])
        assert record["prediction"] or not record["new_tokens"], "the answer is kept: it can be scored again"
    assert (
        "Traceback" in found["knorm", "0"]["error"]
        and "ZeroDivisionError: in the scorer" in found["knorm", "0"]["error"]
    )
    assert "string_match_all=nan, which does not lie in [0, 1]" in found["none", "1"]["error"]
    assert "failed samples, left out" in capsys.readouterr().out


def test_a_model_of_nan_gives_errors_and_no_score(model_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: one * float("nan") if "layers.1.mlp" in name else one for name, one in weights.items()},
        model / "model.safetensors",
    )
    asked = [
        *command(model, tmp_path / "results", *SMALL, "press=streaming_llm", "compression_ratio=0.5")[2:]
    ]
    run = Command(tmp_path / "printed", "evaluate.py", *asked)
    assert run.wait() == 1
    assert "Traceback" not in run.stderr
    found = records(tmp_path / "results")
    assert len(found) == 2
    assert all(record["score"] is None and "NaN" in record["error"] for record in found)
    assert pd.read_csv(tmp_path / "results" / "scores.csv")["score"].isna().all()


def test_a_data_row_that_raises_fails_alone_or_is_named(model_folder: Path, tmp_path: Path) -> None:
    row = {"context": "words " * 50, "answers": ["a"], "all_classes": None, "length": 50}
    rows = [{**row, "input": f"Question {n}?"} for n in range(3)]
    rows[1]["context"] += "\ud800"  # which no tokenizer takes
    (tmp_path / "qasper.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [
        "benchmark=longbench",
        "benchmark.tasks=[qasper]",
        f"benchmark.path={tmp_path}",
        "press=knorm",
        "compression_ratio=0.5",
    ]
    base = [
        "model=hub",
        f"model.path={model_folder}",
        "model.name=tiny",
        "plots=false",
        f"results={tmp_path / 'results'}",
    ]
    run = Command(tmp_path / "printed", "evaluate.py", *asked, *base)
    assert run.wait() == 1
    assert "2 answers failed" in run.stderr and "Traceback" not in run.stderr
    found = records(tmp_path / "results")
    assert [record["sample_id"] for record in found if record["error"]] == ["qasper/1"] * 2
    assert all("Traceback" in record["error"] for record in found if record["error"])
    assert sum(record["score"] is not None for record in found) == 2 * 2
    cut = Command(
        tmp_path / "printed", "evaluate.py", *asked, *base, "benchmark.max_length=100"
    )  # while prompts are made
    assert cut.wait() == 2
    assert cut.stderr.startswith(
        "error: benchmark longbench cannot read its data behind sample qasper/0 (TypeError"
    )
    assert len(records(tmp_path / "results")) == len(found)


def test_no_secret_reaches_the_folder(model_folder: Path, tmp_path: Path) -> None:
    own, secret = tmp_path / "own", "a-plain-looking-password"
    own.mkdir()
    raising = BROKEN.format(layer=0, condition="True").replace(
        '"broken on purpose"', "os.environ['HUB_TOKEN'] + ' hf_' + 30 * 'x'"
    )
    (own / "broken.py").write_text(raising.replace("from dataclasses", "import os\nfrom dataclasses"))
    asked = command(
        model_folder,
        tmp_path / "results",
        *SMALL,
        f"presses_dir={own}",
        "press=broken",
        "compression_ratio=0.5",
    )
    done = run(*asked, environment={"HUB_TOKEN": secret})
    assert done.returncode == 1, done.stderr
    for path in (
        path for path in (tmp_path / "results").rglob("*") if path.is_file() and path.name != "scores.parquet"
    ):
        written = path.read_text(encoding="utf-8")
        assert "hf_xxx" not in written and (secret not in written), path
    assert secret not in done.stderr + done.stdout and "hf_xxx" not in done.stderr + done.stdout
    assert "<redacted>" in next(
        record["error"] for record in records(tmp_path / "results") if record["error"]
    )


@pytest.mark.parametrize("name", ["../../../etc/x", "/etc/x", "a b;rm -rf *", "..", "a\\b", "org/model"])
def test_names_of_users_become_one_safe_folder(model_folder: Path, name: str) -> None:
    folder = prepared(model_folder, Path("x"), f"model.name='{name}'", "results=null").settings.results
    assert folder.parent == Path("results")
    assert re.fullmatch(r"ruler-[\w.-]+", folder.name)


def test_bfloat16_says_what_it_does_not_guarantee(model_folder: Path, tmp_path: Path) -> None:
    asked = command(
        model_folder,
        tmp_path / "results",
        *SMALL,
        "press=knorm",
        "compression_ratio=0.5",
        "model.dtype=bfloat16",
    )[2:]
    assert Command(tmp_path / "printed", "evaluate.py", *asked).wait() == 0
    described = json.loads((tmp_path / "results" / "environment.json").read_text())
    assert described["dtype"] == "bfloat16"
    assert "other batches round differently and may change answers" in described["guarantee"]
    assert {record["dtype"] for record in records(tmp_path / "results")} == {"bfloat16"}
