"""What exists: every press and benchmark is a file in its folder, found by scanning, described by its docstring.

`python -m longpress.catalogue [DIR]` lists them, one line each with the source paper, and what each press
costs; with those of a `presses_dir`, if one is named. Nothing is imported to list them, so that `--help`
needs no torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from longpress.arguments import command, exit_code

ROOT = Path(__file__).parents[1]
ABSTRACT = ("base", "scorer", "wrapper", "from_kvpress")
"""Files of `presses/` that hold what presses are built from."""


@dataclass(frozen=True)
class Option:
    """A field of a press or benchmark.

    Attributes:
        type: as written, e.g. "int" or "tuple[str, ...]".
        default: a JSON-like value; of a field that is a press, the mapping `{"name": …}` of the press inside;
            None if it has none.
        is_press: whether the field is itself a press.
    """

    type: str
    default: Any
    is_press: bool = False


@dataclass(frozen=True)
class Entry:
    """A press or benchmark, as its file states it.

    Attributes:
        name: on the command line and in tables.
        path: of its file.
        class_name: of the class to make.
        summary: first line of the file's docstring.
        source: paper or origin, the docstring's line `Source:`.
        cost: the docstring's line `Cost:`.
        options: fields, in order, those inherited included; `compression_ratio` left out.
    """

    name: str
    path: Path
    class_name: str
    summary: str
    source: str
    cost: str
    options: Mapping[str, Option]

    def load(self) -> type[Any]:
        """The class itself, imported.

        Raises:
            ValueError: a file of the user's own cannot be imported.
        """
        package = self.path.parent.name
        if self.path.parent.parent == ROOT:
            module = importlib.import_module(f"{package}.{self.path.stem}")
        else:
            module_name = f"longpress_user.{self.path.stem}"  # a press is named after the last part
            specification = importlib.util.spec_from_file_location(module_name, self.path)
            assert specification is not None and specification.loader is not None
            module = sys.modules.get(module_name) or importlib.util.module_from_spec(specification)
            if module_name not in sys.modules:
                sys.modules[module_name] = module
                try:
                    specification.loader.exec_module(module)
                except (Exception, SystemExit) as error:  # the file may do anything
                    del sys.modules[module_name]
                    raise ValueError(
                        f"{self.path} cannot be imported ({type(error).__name__}: {error}); mend the file"
                    ) from error
        loaded: type[Any] = getattr(module, self.class_name)
        return loaded


def presses(folder: str | Path | None = None) -> dict[str, Entry]:
    """Name -> entry of every press in `presses/`, and in a folder of the user's own.

    Raises:
        ValueError: the folder does not exist, or one of its files has the name of a press that is already
            there.
    """
    found = dict(_scan(ROOT / "presses", "Press", ABSTRACT))
    if folder is not None:
        path = Path(folder).expanduser()
        if not str(folder) or not path.is_dir():
            raise ValueError(f"presses_dir={folder}: no folder at {path.resolve()}")
        own = _scan(path, "Press", ())
        twice = sorted(own.keys() & found.keys())
        if twice:
            raise ValueError(
                f"presses_dir={folder}: {', '.join(twice)} already exist in the catalogue; rename the files"
            )
        found |= own
    return found


def benchmarks() -> dict[str, Entry]:
    """Name -> entry of every benchmark in `benchmarks/`."""
    return dict(_scan(ROOT / "benchmarks", "Benchmark", ("base",)))


def find(name: str, entries: Mapping[str, Entry], kind: str) -> Entry:
    """The entry called `name`.

    Raises:
        ValueError: there is none; lists what exists and the nearest name.
    """
    if name in entries:
        return entries[name]
    near = get_close_matches(name, entries, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"there is no {kind} {name!r}; {hint}existing: {', '.join(entries)}")


@cache
def _scan(folder: Path, suffix: str, without: tuple[str, ...]) -> dict[str, Entry]:
    classes: dict[str, ast.ClassDef] = {}
    trees = {path: _parsed(path) for path in sorted(folder.glob("[a-zA-Z]*.py")) if not path.is_dir()}
    if folder != ROOT / "presses" and suffix == "Press":
        for path in sorted((ROOT / "presses").glob("[a-z]*.py")):
            classes |= {
                node.name: node
                for node in ast.parse(path.read_text(encoding="utf-8")).body
                if isinstance(node, ast.ClassDef)
            }
    for tree in trees.values():
        classes |= {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found = {}
    for path, tree in trees.items():
        own = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith(suffix)]
        if not own or path.stem in without:
            continue
        docstring = ast.get_docstring(tree) or ast.get_docstring(own[-1]) or ""
        name = path.stem.removesuffix("_press")
        options = {
            key: value for key, value in _options(own[-1], classes).items() if key != "compression_ratio"
        }
        summary = docstring.split("\n", 1)[0].strip()
        found[name] = Entry(
            name, path, own[-1].name, summary, _line(docstring, "Source"), _line(docstring, "Cost"), options
        )
    return found


def _parsed(path: Path) -> ast.Module:
    """The syntax tree of a file.

    Raises:
        ValueError: it is no Python.
    """
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no Python file ({error}); mend or move it") from error


def _line(docstring: str, label: str) -> str:
    """The paragraph that begins with `label:`, up to the next label or blank line."""
    match = re.search(rf"^{label}:\s*(.+?)(?=^\w+:|\n\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    return " ".join(match.group(1).split()) if match else ""


def _options(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, Option]:
    options: dict[str, Option] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            options |= _options(classes[base.id], classes)
    for statement in node.body:
        if not (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value is not None
        ):
            continue
        kind = ast.unparse(statement.annotation)
        if kind.startswith("ClassVar"):
            continue
        options[statement.target.id] = Option(
            kind, _default(statement.value), kind.split(" ")[0].endswith("Press")
        )
    return options


def _default(node: ast.expr) -> Any:
    """The default's value: a literal, a tuple of a module's constant is read when the class is loaded, a press is `{"name": …}`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Press"):
        arguments = {keyword.arg: _default(keyword.value) for keyword in node.keywords if keyword.arg}
        return {"class": node.func.id, **arguments}
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...


def _print(folder: str | None = None) -> None:
    for title, entries in (("presses", presses(folder)), ("benchmarks", benchmarks())):
        print(f"{title}:")
        width = max(map(len, entries), default=0)
        for entry in entries.values():
            cost = f"  Cost: {entry.cost}" if entry.cost else ""
            print(f"  {entry.name:<{width}}  {entry.summary}  [{entry.source}]{cost}")


@exit_code
def main(arguments: Sequence[str]) -> None:
    """The command."""
    if len(arguments) > 1:
        raise ValueError(f"one folder with presses of your own can be listed, got {' '.join(arguments)}")
    _print(*arguments)


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]))
