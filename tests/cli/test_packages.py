"""The package: what is in the tree is in it, what it imports is declared, what it needs is pinned."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
import yaml

from longpress import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OURS = ("benchmarks", "hydra_plugins", "kvcache", "longpress", "presses")
PEER = ["longpress/speed/peer.py"]
"""Files that run in an environment of their own, beside kvpress."""


def normal(name: str) -> str:
    """A distribution's name as indexes compare it, without versions, extras and markers."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;(]", name, maxsplit=1)[0]).lower()


def declared(*extras: str) -> set[str]:
    """Names of the dependencies, and of those of extras; extras of ours inside them are followed."""
    optional = PROJECT["project"]["optional-dependencies"]
    names = {normal(one) for one in PROJECT["project"]["dependencies"]}
    for extra in extras:
        for one in optional[extra]:
            inside = re.fullmatch(r"longpress\[(.*)\]", one)
            names |= declared(*inside.group(1).split(",")) if inside else {normal(one)}
    return names


@cache
def providers() -> dict[str, list[str]]:
    """The distributions that provide a module."""
    return {module: [normal(one) for one in names] for module, names in packages_distributions().items()}


def brought_along(names: set[str]) -> set[str]:
    """What these distributions need themselves, which we may import as well: hydra-core brings omegaconf."""
    found = set()
    for name in names:
        try:
            found |= {normal(one) for one in requires(name) or () if "extra ==" not in one}
        except PackageNotFoundError:
            continue
    return found


def test_every_package_of_the_tree_is_in_the_wheel() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in OURS
        for path in (ROOT / name).rglob("__init__.py")
    }
    assert sorted(found | {"longpress.conf"}) == PROJECT["tool"]["setuptools"]["packages"]


def test_every_file_beside_modules_is_in_the_wheel() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    tree = {path for name in (*OURS, "conf") for path in (ROOT / name).rglob("*") if path.is_file()}
    beside = {path for path in tree if path.suffix not in (".py", ".pyc")}
    folders = {
        package: ROOT / ("conf" if package == "longpress.conf" else package.replace(".", "/"))
        for package in data
    }
    named = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in folders[package].glob(pattern)
    }
    assert beside == named


def test_every_package_tells_type_checkers_that_it_is_typed() -> None:
    for name in OURS:
        assert name == "hydra_plugins" or (ROOT / name / "py.typed").exists()


def imports(path: Path) -> set[str]:
    """Modules of others that a file imports, anywhere in it, by their first part."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - set(OURS)


@pytest.mark.parametrize("package", OURS)
def test_every_package_that_is_imported_is_declared(package: str) -> None:
    named = declared(*PROJECT["project"]["optional-dependencies"])
    allowed = named | brought_along(named)
    for path in (ROOT / package).rglob("*.py"):
        if str(path.relative_to(ROOT)) in PEER:
            continue
        for module in imports(path):
            names = providers().get(module, [normal(module)])
            assert allowed & set(names), f"{path} imports {module}, which pyproject.toml does not name"


def test_optional_packages_are_imported_only_where_they_are_needed() -> None:
    """A module that imports one at its top could not be imported without it."""
    optional = declared("all", "slurm", "joblib", "ray", "browser") - declared()
    for path in (path for name in OURS for path in (ROOT / name).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                )
                others = [module for module in modules if not ROOT.joinpath(*module.split(".")).exists()]
                names = {one for module in others for one in providers().get(module.split(".")[0], ())}
                assert not names & optional, f"{path} imports {ast.unparse(node)} at its top"


def test_messages_name_extras_that_exist() -> None:
    extras = set(PROJECT["project"]["optional-dependencies"])
    named = set()
    for path in (path for name in OURS for path in (ROOT / name).rglob("*.py")):
        for found in re.findall(r"longpress\[([\w,]+)\]", path.read_text(encoding="utf-8")):
            named |= set(found.split(","))
    assert {"benchmarks", "plots", "ray"} <= named <= extras


def test_every_dependency_is_pinned_for_ci() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {normal(line) for line in lines}
    assert declared(*PROJECT["project"]["optional-dependencies"]) - {"longpress"} <= pinned
    assert len(pinned) == len(lines)


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PROJECT["project"]["authors"]
    ]
    assert {"message", "title", "abstract"} < set(citation)
