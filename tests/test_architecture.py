"""The house stays as it was drawn: who may import whom, what is named where."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"benchmarks", "evaluation", "kvcache", "pipeline", "presses"}
ALLOWED = {
    "kvcache": set(),
    "presses": {"kvcache"},
    "pipeline": {"presses", "kvcache"},
    "benchmarks": set(),
    "evaluation": {"pipeline", "benchmarks", "presses", "kvcache"},
}
MODULES = sorted(path for package in OURS for path in (ROOT / package).glob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_imports_point_one_way(path: Path) -> None:
    package = path.parent.name
    tops = {name.split(".")[0] for name in imports(path)}
    assert tops & OURS <= ALLOWED[package] | {package}
    if package == "benchmarks":
        assert not tops & {"torch", "transformers"}
    if package == "kvcache":
        assert not tops & {"datasets", "pandas", "hydra"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_the_engine_names_no_press() -> None:
    presses = {path.stem for path in (ROOT / "presses").glob("*.py")} - {"__init__", "base", "scorer", "wrapper", "none"}
    for path in MODULES:
        if path.parent.name in ("kvcache", "pipeline", "evaluation"):
            named = {name.split(".")[1] for name in imports(path) if name.startswith("presses.")}
            assert not named & presses, path
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                    classes = ast.unparse(node.args[1])
                    assert not classes.endswith("Press") or classes == "BasePress", f"{path}: isinstance(…, {classes})"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_nothing_dangerous_is_called(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "os.system", "pickle.load", "pickle.loads"), f"{path}: {called}"


def test_transformers_internals_stay_in_kvcache() -> None:
    for path in MODULES:
        inside = {name for name in imports(path) if name.startswith("transformers.")}
        assert not inside or path.parent.name == "kvcache" or path.stem.startswith(("model", "gguf")), (path, inside)


def test_every_press_can_be_imported_by_name() -> None:
    import presses

    for name in presses.class_files():
        assert getattr(presses, name).__name__ == name
    with pytest.raises(AttributeError, match="SnapKVPress"):
        presses.SnapPress  # noqa: B018


@pytest.mark.parametrize("package", sorted(OURS))
def test_packages_import_alone(package: str) -> None:
    importlib.import_module(package)
