"""The notebook runs from its first cell to its last, and prints what stands in it."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "first_look.ipynb"
LARGEST = 200_000
"""Bytes of the notebook with its picture."""

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def outputs(notebook: Any) -> list[dict[str, str]]:
    """Per cell of code its outputs: kind of content -> content, what is printed under "stdout"."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            held: dict[str, str] = {}
            for output in cell.outputs:
                assert output.output_type != "error", output.evalue
                if output.output_type == "stream":
                    held[output.name] = held.get(output.name, "") + output.text
                else:
                    held |= {kind: str(content) for kind, content in output.data.items()}
            cells.append(held)
    return cells


def words(text: str) -> list[str]:
    """What must be the same: words, and numbers to the whole."""
    return NUMBER.sub(lambda found: str(round(float(found[0]))), text).split()


@pytest.fixture(scope="module")
def written() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_small_has_outputs_and_names_no_machine(written: Any) -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < LARGEST
    assert str(ROOT) not in text and "/root" not in text and "/home" not in text and "/tmp" not in text
    held = outputs(written)
    assert all(held) and any("image/png" in output for output in held)
    assert [cell.execution_count for cell in written.cells if cell.cell_type == "code"] == list(
        range(1, len(held) + 1)
    )
    assert not any("stderr" in output for output in held)


@pytest.mark.slow
def test_it_prints_what_stands_in_it(written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PYTHONPATH", str(ROOT)), ("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    again = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        again, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for before, after in zip(outputs(written), outputs(again), strict=True):
        assert before.keys() == after.keys()
        for kind in before.keys() - {"image/png", "text/html"}:
            assert words(before[kind]) == words(after[kind])
