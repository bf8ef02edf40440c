"""Every Python block of the pages compiles, imports public names only, and runs where it is short."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import PAGES, ROOT, Block, blocks

PYTHON = [block for page in PAGES for block in blocks(page, "python")]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
OURS = {"longpress", "presses", "kvcache", "benchmarks"}
HELPERS = {"presses.support", "benchmarks.text"}
"""What presses and benchmarks may use besides: what several of them need."""


def documented_modules() -> set[str]:
    """Modules of which the page on Python documents a class or function."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    return {
        name.rpartition(".")[0]
        for name in re.findall(r"autoclass:: (\S+)|autofunction:: (\S+)", text)
        for name in name
        if name
    }


def check_imports(text: str) -> None:
    """Refuse a name of ours that does not exist, or that is not public."""
    allowed = documented_modules() | {"longpress"}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & (OURS - {"longpress"}), (
                ast.unparse(node)
            )
        if (
            not isinstance(node, ast.ImportFrom)
            or node.module is None
            or node.module.split(".")[0] not in OURS
        ):
            continue
        public = node.module in allowed or any(node.module.startswith(f"{one}.") for one in HELPERS)
        assert public, f"{ast.unparse(node)}: the page on Python does not document {node.module}"
        module = importlib.import_module(node.module)
        for alias in node.names:
            assert hasattr(module, alias.name), ast.unparse(node)


def test_there_are_blocks() -> None:
    assert {block.page.name for block in PYTHON} >= {
        "README.md",
        "index.md",
        "add-a-press.md",
        "add-a-benchmark.md",
    }


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_block_compiles_and_imports_public_names(block: Block) -> None:
    compile(block.text, str(block), "exec")
    check_imports(block.text)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_imports_public_names(path: Path) -> None:
    check_imports(path.read_text(encoding="utf-8"))


def test_a_name_that_does_not_exist_is_found() -> None:
    with pytest.raises((AssertionError, AttributeError)):
        check_imports("from longpress import SnapPress")
    with pytest.raises(AssertionError):
        check_imports("from longpress.pipeline.decode import Decoder")


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in PYTHON if not block.caption], ids=str)
def test_a_short_block_runs(block: Block, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", block.text],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr


def test_the_eight_lines_are_the_same_in_readme_and_index_and_are_eight() -> None:
    first = {
        name: next(block for block in PYTHON if block.page.name == name) for name in ("README.md", "index.md")
    }
    assert first["README.md"].text == first["index.md"].text
    assert len([line for line in first["README.md"].text.splitlines() if line.strip()]) == 8
