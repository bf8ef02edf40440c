"""`import longpress`: light, complete, and not in the way of what a user has beside it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import longpress
import presses

ROOT = Path(__file__).parents[2]


def run(script: str, folder: Path = ROOT, *flags: str) -> subprocess.CompletedProcess[str]:
    """What comes of a script that lies in `folder`."""
    return subprocess.run(
        [sys.executable, *flags, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("module", "seconds"), [("longpress", 0.2), ("longpress.analysis", 1.0), ("benchmarks", 1.0)]
)
def test_it_takes_no_time_and_no_torch(module: str, seconds: float) -> None:
    script = (
        "import json, sys, time; start = time.process_time()\n"
        f"import {module}\n"
        "print(json.dumps([time.process_time() - start, sorted(sys.modules)]))"
    )
    done = run(script)
    assert not done.returncode, done.stderr
    took, modules = json.loads(done.stdout)
    assert took < seconds
    assert not {"torch", "transformers"} & set(modules)


def test_every_public_name_is_there() -> None:
    for name in longpress.__all__:
        assert getattr(longpress, name) is not None
    assert set(longpress.PUBLIC) < set(longpress.__all__) == set(dir(longpress))
    assert {name for name in presses.__all__ if name.endswith("Press")} < set(longpress.__all__)
    assert longpress.SnapKVPress is presses.SnapKVPress


def test_what_type_checkers_read_is_what_is_imported() -> None:
    tree = ast.parse(Path(longpress.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    read = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name  # which makes it public to type checkers
    }
    assert read == longpress.PUBLIC


def test_a_name_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match="no 'Pipeline'; it has Budget, CompressingPipeline"):
        longpress.Pipeline  # noqa: B018
    with pytest.raises(AttributeError, match="SnapKVPress"):
        longpress.SnapPress  # noqa: B018
    assert not hasattr(longpress, "__wrapped__")


def own_folder(folder: Path, name: str, text: str = "raise RuntimeError('a module of the user')\n") -> None:
    """A package of the user's own."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)


@pytest.mark.slow
def test_folders_of_a_user_are_not_in_the_way_of_all_that_a_star_brings(tmp_path: Path) -> None:
    for name in ("models", "pipeline", "evaluation", "analysis", "benchmarks", "conf", "hydra_plugins"):
        own_folder(tmp_path, name)
    done = run("from longpress import *; print(CompressingPipeline.__name__, KnormPress(0.5))", tmp_path)
    assert done.stdout.startswith("CompressingPipeline KnormPress("), done.stderr


@pytest.mark.parametrize("name", ["presses", "kvcache"])
def test_a_folder_in_place_of_a_package_of_ours_is_named(name: str, tmp_path: Path) -> None:
    own_folder(tmp_path, name, "")
    script = "import longpress; print('SnapKVPress' in dir(longpress))"
    last = run(script, tmp_path).stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / name} is imported in place of the package {name} ")
    assert "-P" in last
    assert run(script, tmp_path, "-P").stdout == "True\n"


def test_the_command_as_a_module_does_not_look_into_the_current_folder(tmp_path: Path) -> None:
    for name in ("presses", "benchmarks", "kvcache", "models", "evaluation", "analysis"):
        own_folder(tmp_path, name)
    (tmp_path / "pipeline.py").write_text("raise RuntimeError('a module of the user')\n")
    done = subprocess.run(
        [sys.executable, "-m", "longpress", "ls", "benchmarks"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode and "ruler" in done.stdout, done.stderr
