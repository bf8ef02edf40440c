"""The project's own source as a test reads it: modules, what each imports, and what is called where."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("benchmarks", "kvcache", "longpress", "presses")


def dotted(path: Path) -> str:
    """The name under which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
"""Files of the four packages, by the names of their modules."""
TESTS = {dotted(path): path for path in sorted((ROOT / "tests").rglob("*.py"))}
"""Files of the tests and of what supports them, likewise."""


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def within(*parts: str) -> dict[str, Path]:
    """The modules of some packages, or of modules."""
    return {name: path for name, path in MODULES.items() if any(belongs(name, part) for part in parts)}


def belongs(name: str, part: str) -> bool:
    """Whether a module is `part` or lies inside it."""
    return name == part or name.startswith(f"{part}.")


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, inside functions included; not what only type checkers read.

    A name that is imported from a module counts as a module below it where there is such a module. So does
    a text that is given to `import_module`.
    """
    found: set[str] = set()
    waiting: list[ast.AST] = [tree_of(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(path, node)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and _name(node.func) == "import_module" and node.args:
            (given, *_) = node.args
            found |= {given.value} if isinstance(given, ast.Constant) else set()
        for_checkers = isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING"
        waiting += node.orelse if for_checkers else ast.iter_child_nodes(node)  # type: ignore[attr-defined]
    return frozenset(found)


def _name(node: ast.AST) -> str:
    """The last part of a name, as `b` of `a.b`; empty where a node is none."""
    return getattr(node, "attr", getattr(node, "id", ""))


def _absolute(path: Path, node: ast.ImportFrom) -> str:
    """The module of `from … import`, whose dots count from the file's package."""
    if not node.level:
        return node.module or ""
    package = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


def own_imports(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which of the modules each of them imports, packages on the way to a module included."""
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        wanted = set()
        for imported in imports(path):
            parts = imported.split(".")
            wanted |= {".".join(parts[: at + 1]) for at in range(len(parts))}
        graph[name] = {other for other in wanted & modules.keys() if not belongs(name, other)}
    return graph


def cycles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Groups of more than one node in which each can be reached from each: strongly connected components."""
    reached = {node: _reached(graph, node) for node in graph}
    groups = {
        frozenset({node, *(other for other in reached[node] if node in reached[other])}) for node in graph
    }
    return sorted((set(group) for group in groups if len(group) > 1), key=sorted)


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def calls(paths: Mapping[str, Path]) -> Iterator[tuple[str, ast.Call]]:
    """Every call in some modules, with the module's name."""
    for name, path in paths.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                yield name, node


def texts(path: Path) -> Iterator[str]:
    """Every text of a file that is a value, docstrings left out."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
