"""The list of everything, and a press author's path: one short file and nothing else."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from kvcache.budget import Budget
from longpress.catalogue import benchmarks, find, presses
from longpress.evaluation.choices import make_press
from tests.support.learned_weights import with_weights
from tests.support.prefilled_contexts import RATIOS, TOKENS, logits_after, model_of, read_context
from tests.support.tiny_models import tiny_ids

ROOT = Path(__file__).parents[2]
MINE = '''"""Mine: keep the values of largest norm.

Source: this test.
Differs: nothing.
Cost: one norm per value.
"""

from dataclasses import dataclass

from presses.scorer import ScorerPress


@dataclass(frozen=True)
class OneFilePress(ScorerPress):
    """Large values stay."""

    power: float = 1.0

    def score(self, layer):
        """(B, H, T)."""
        return layer.values.norm(dim=-1) ** self.power
'''


def listing(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "longpress", "ls", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_list_has_every_press_with_paper_and_cost() -> None:
    printed = listing("presses") + listing("benchmarks")
    lines = {line.split()[0]: line for line in printed.splitlines() if line.startswith("  ")}
    for entry in [*presses().values(), *benchmarks().values()]:
        assert f"[{entry.source}]" in lines[entry.name]
    assert all(entry.source and f"Cost: {entry.cost}" in lines[entry.name] for entry in presses().values())
    assert not {"base", "scorer", "wrapper", "from_kvpress"} & presses().keys()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert len(MINE.splitlines()) <= 30
    (tmp_path / "one_file.py").write_text(MINE)
    return tmp_path


def test_one_file_is_a_row_of_the_list(folder: Path) -> None:
    assert "one_file" in listing("--presses-dir", str(folder))
    row = "Mine: keep the values of largest norm.  [this test.]  Cost: one norm per value."
    assert row in listing("--presses-dir", str(folder))
    assert "no folder at" in listing("--presses-dir", "/nowhere", code=2)


def test_one_file_has_options_wrappers_and_the_laws(folder: Path) -> None:
    entries = presses(folder)
    entry = find("one_file", entries, "press")
    assert dict(entry.options).keys() == {"power"}
    press = make_press({"name": "one_file", "power": 2}, entries)
    assert press.name == "one_file"
    for name, wrapper in entries.items():
        if (
            next(iter(wrapper.options.values()), None)
            and wrapper.options.get("press")
            and wrapper.options["press"].is_press
        ):
            wrapped = with_weights(make_press({"name": name, "press": {"name": "one_file"}}, entries))
            assert "one_file" in str(wrapped.parameters()), name
            assert {field.name for field in fields(wrapped)} > {"press"}
            for ratio, context in zip(
                RATIOS, read_context(model_of("llama"), [wrapped]).compress(wrapped, RATIOS), strict=True
            ):
                context.check_budget(wrapped, Budget.of(ratio))
    (context,) = read_context(model_of("llama"), [press]).compress(press, [0.5])
    assert context.entries() == [[TOKENS // 2] * 2] * 3
    assert bool(logits_after(model_of("llama"), entry.load()(0.5), tiny_ids(3)).isfinite().all())
    assert torch.equal(
        *(
            press.select(
                read_context(model_of("llama"), [press]).observer.evidence[press.identity()],
                Budget(ratio=0.5),
            )[0].keep
            for _ in "ab"
        )
    )


def test_only_files_of_the_named_folder_are_loaded(folder: Path) -> None:
    (folder / "inside").mkdir()
    (folder / "inside" / "other.py").write_text("raise RuntimeError('never read')\n")
    (folder / "helper.py").write_text("raise RuntimeError('no press in here')\n")
    entries = presses(folder)
    assert entries["one_file"].load().__name__ == "OneFilePress"
    assert {"helper", "other", "inside"}.isdisjoint(entries)


@pytest.mark.slow
def test_one_file_among_the_others_is_all_there_is_to_do(tmp_path: Path) -> None:
    """A copy of the project with one file more: its row, its options and every law, without another edit."""
    for path in (
        "benchmarks",
        "conf",
        "hydra_plugins",
        "kvcache",
        "longpress",
        "presses",
        "tests",
    ):
        shutil.copytree(ROOT / path, tmp_path / path, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ("evaluate.py", "pyproject.toml"):
        shutil.copy(ROOT / path, tmp_path / path)
    (tmp_path / "presses" / "one_file.py").write_text(MINE)

    def python(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "one_file" in python("-m", "longpress", "ls", "presses")
    assert "one_file" in python("evaluate.py", "--help")
    laws = python(
        *("-m", "pytest", "-q", "tests/presses/test_laws.py", "-k", "one_file", "-p", "no:cacheprovider"),
        *("-m", "slow or not slow"),
    )
    passed = re.search(r"(\d+) passed", laws)
    assert passed is not None
    assert int(passed[1]) >= 47
    options = [
        "presses.one_file.power=2",
        "presses.adakv.press=one_file",
        "compression_ratio=[0.25,0.5]",
        "plan=true",
    ]
    assert "5 variants" in python("evaluate.py", "press=[one_file,adakv]", *options)
