"""The presses of the page on adding one work as it says, from a folder of one's own and in presses/."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import ROOT, blocks, commands

PAGE = ROOT / "docs" / "add-a-press.md"
FILES = {Path(block.caption).name: block.text for block in blocks(PAGE, "python") if block.caption}


def write(folder: Path) -> list[str]:
    """Put the presses of the page into a folder, and give their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [name.removesuffix(".py") for name in FILES]


def test_the_catalogue_reads_them(tmp_path: Path) -> None:
    from longpress.catalogue import presses

    names = write(tmp_path)
    assert len(names) == 2
    entries = presses(tmp_path)
    for name in names:
        entry = entries[name]
        assert entry.source and entry.cost and entry.summary.endswith(".")
        assert entry.load()().name == name


@pytest.mark.slow
def test_the_command_of_the_page_runs(tmp_path: Path) -> None:
    write(tmp_path / "my_presses")
    words = next(
        words
        for block in blocks(PAGE, "bash")
        for words in commands(block)
        if words[:2] == ["longpress", "run"]
    )
    ran = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr
    assert "norm_ratio" in ran.stdout and "knorm" in ran.stdout


@pytest.mark.slow
def test_they_are_under_every_law_as_files_of_the_catalogue(tmp_path: Path) -> None:
    for folder in ("presses", "kvcache", "benchmarks", "longpress", "conf", "tests", "hydra_plugins"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    names = write(tmp_path / "presses")
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/presses/test_laws.py",
            "-k",
            " or ".join(names),
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert "passed" in ran.stdout
