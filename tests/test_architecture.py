"""The house stays as it was drawn: who may import whom, what is named where."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "kvcache": set(),
    "presses": {"kvcache"},
    "benchmarks": set(),
    "longpress.errors": {"longpress.arguments"},
    "longpress.catalogue": {"longpress.arguments"},
    "longpress.models": {"kvcache"},
    "longpress.pipeline": {"longpress.models", "presses", "kvcache"},
    "longpress.analysis": {"benchmarks", "longpress.catalogue", "longpress.arguments"},
    "longpress.evaluation": {
        *("longpress.analysis", "longpress.pipeline", "longpress.models", "benchmarks", "presses", "kvcache"),
        *("longpress.catalogue", "longpress.arguments", "longpress.errors"),
    },
    "longpress.speed": {
        "longpress.pipeline",
        "longpress.models",
        "longpress.catalogue",
        "benchmarks",
        "presses",
        "kvcache",
    },
}
"""Each part of the house, and the parts that it may import."""
MODULES = sorted(
    path
    for package in ("benchmarks", "kvcache", "longpress", "presses")
    for path in (ROOT / package).rglob("*.py")
)


def dotted(path: Path) -> str:
    """The name of a module by its file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def part_of(name: str) -> str | None:
    """The part of the house to which a module belongs, or None where it is not ours."""
    return next((part for part in ALLOWED if name == part or name.startswith(f"{part}.")), None)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(dotted(path))
    imported = imports(path)
    tops = {name.split(".")[0] for name in imported}
    if part is not None:
        assert {found for name in imported if (found := part_of(name))} <= ALLOWED[part] | {part}
    if part in ("benchmarks", "longpress.analysis"):
        assert not tops & {"torch", "transformers"}
    if part == "kvcache":
        assert not tops & {"datasets", "pandas", "hydra"}


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_the_engine_names_no_press() -> None:
    presses = {path.stem for path in (ROOT / "presses").glob("*.py")} - {
        "__init__",
        "base",
        "scorer",
        "wrapper",
        "none",
    }
    for path in MODULES:
        if dotted(path).startswith(("kvcache", "longpress")):
            named = {name.split(".")[1] for name in imports(path) if name.startswith("presses.")}
            assert not named & presses, path
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id == "isinstance"
                ):
                    classes = ast.unparse(node.args[1])
                    assert not classes.endswith("Press") or classes == "BasePress", (
                        f"{path}: isinstance(…, {classes})"
                    )


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_dangerous_is_called(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "os.system", "pickle.load", "pickle.loads"), (
                f"{path}: {called}"
            )


def test_transformers_internals_stay_in_kvcache() -> None:
    for path in MODULES:
        inside = {name for name in imports(path) if name.startswith("transformers.")}
        assert not inside or dotted(path).startswith(("kvcache", "longpress.models")), (path, inside)


def test_every_press_can_be_imported_by_name() -> None:
    import presses

    for name in presses.class_files():
        assert getattr(presses, name).__name__ == name
    with pytest.raises(AttributeError, match="SnapKVPress"):
        presses.SnapPress  # noqa: B018


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_alone(package: str) -> None:
    importlib.import_module(package)
