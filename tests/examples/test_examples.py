"""Every example is short, says how it is run, runs offline, and prints what a reader would expect."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples"
LONGEST = 40
"""Lines of an example, its docstring included."""

PRINTED = {
    "list_of_prompts": ("snapkv", "kvzip", "48213", "90177", "31506"),
    "one_press": ("full cache  keeps 100 %", "snapkv      keeps  50 %", "kvzip       keeps  50 %", "48213"),
    "own_press": ("NormRatioPress", "AdaKVPress", "generate", "48213"),
    "sweep": ("knorm", "adakv", "snapkv", "one prefill"),
    "tables_from_records": ("416 answers", "none", "kvzip", "against the full cache"),
}
"""What the output of each contains."""

SECONDS = {"tables_from_records"}
"""Examples that need no model, and so take seconds."""


def test_all_are_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == PRINTED.keys()


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_is_short_and_says_how_it_is_run(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < LONGEST
    assert f"python examples/{name}.py" in (ast.get_docstring(ast.parse(text)) or "")


@pytest.mark.parametrize(
    "name", [name if name in SECONDS else pytest.param(name, marks=pytest.mark.slow) for name in PRINTED]
)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    for text in PRINTED[name]:
        assert text in ran.stdout, ran.stdout
