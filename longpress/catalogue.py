"""What exists: every press and every benchmark, found by reading its file, described by its docstring.

The only scanner and the only registry of the project; every package may import it, since it needs nothing but
the standard library. Files are parsed and not imported, so that to list a press takes no torch.

A press is a file `presses/<name>.py`. A benchmark is a file `benchmarks/<name>.py`, or, where it is large, a
folder `benchmarks/<name>/` whose `__init__.py` defines its class.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
"""The folder in which the packages `longpress`, `presses` and `benchmarks` lie."""

FOUNDATIONS = {
    "presses": ("base", "scorer", "wrapper", "from_kvpress"),
    "benchmarks": ("base",),
}
"""For each of our packages, the modules that hold what its entries are built from, which are no entries."""


class Option(NamedTuple):
    """A field of a press or benchmark.

    Attributes:
        type: as written, e.g. "int" or "tuple[str, ...]".
        default: a plain value; of a field that is a press, `{"class": …}` with the fields that it is given;
            `...` where the file computes it, so that only the loaded class knows it (see `Entry.defaults`).
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
        module: that defines it, e.g. "presses.knorm"; None in a folder of the user's own.
        class_name: of the class to make.
        summary: first line of the file's docstring.
        source: paper or origin, the docstring's line `Source:`.
        cost: the docstring's line `Cost:`.
        options: fields, in order, those inherited included; `compression_ratio` left out.
    """

    name: str
    path: Path
    module: str | None
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
        module = importlib.import_module(self.module) if self.module else _imported(self.path)
        loaded: type[Any] = getattr(module, self.class_name)
        return loaded

    def defaults(self) -> dict[str, Any]:
        """The default of every option; the class is loaded only where a file computes one of them.

        Raises:
            ValueError: the class has to be loaded, and cannot be.
        """
        stated = {name: option.default for name, option in self.options.items()}
        computed = [name for name, default in stated.items() if default is ...]
        if not computed:
            return stated
        made_of = getattr(self.load(), "__dataclass_fields__", {})
        for name in computed:
            field = made_of.get(name)
            if field is None or (field.default is MISSING and field.default_factory is MISSING):
                stated[name] = None
            else:
                stated[name] = field.default_factory() if field.default is MISSING else field.default
        return stated


def presses(folder: str | Path | None = None) -> dict[str, Entry]:
    """Name -> entry of every press in `presses/`, and in a folder of the user's own.

    Raises:
        ValueError: the folder does not exist, or one of its files is no Python or has the name of a press of
            ours.
    """
    entries = dict(_entries(ROOT / "presses", "Press"))
    if folder is None:
        return entries
    path = Path(folder).expanduser()
    if not str(folder) or not path.is_dir():
        raise ValueError(f"presses_dir={folder}: no folder at {path.resolve()}")
    own = _entries(path, "Press")
    if twice := sorted(own.keys() & entries.keys()):
        raise ValueError(
            f"presses_dir={folder}: {', '.join(twice)} already exist in the catalogue; rename the files"
        )
    return entries | own


def benchmarks() -> dict[str, Entry]:
    """Name -> entry of every benchmark in `benchmarks/`."""
    return dict(_entries(ROOT / "benchmarks", "Benchmark"))


def find(name: str, entries: Mapping[str, Entry], kind: str) -> Entry:
    """The entry called `name`.

    Args:
        name: as the user gave it.
        entries: those that exist.
        kind: what they are, for the message: "press" or "benchmark".

    Raises:
        ValueError: there is none; names the nearest, and lists what exists.
    """
    if name in entries:
        return entries[name]
    near = get_close_matches(name, entries, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"there is no {kind} {name!r}; {hint}existing: {', '.join(entries)}")


@cache
def class_files(folder: str | Path) -> dict[str, str]:
    """Class name -> module name, within the package `folder`, of every public class of its files.

    `{"SnapKVPress": "snapkv", …}` for the folder `presses/`: the class is in `presses.snapkv`.
    """
    return {
        name: file.module
        for file in _files(Path(folder))
        for name in file.classes
        if not name.startswith("_")
    }


def conf_folder() -> Path:
    """The folder of `config.yaml` and its choices: in the installed package, or at the root of a checkout."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else ROOT / "conf"


class _File(NamedTuple):
    """What one parsed file defines.

    Attributes:
        path: of the file.
        module: its name within its package; of a folder with an `__init__.py`, that of the folder.
        docstring: of the module, empty where it has none.
        classes: by name, in the order of the file.
    """

    path: Path
    module: str
    docstring: str
    classes: Mapping[str, ast.ClassDef]


@cache
def _files(folder: Path) -> tuple[_File, ...]:
    """Every module of a folder, parsed; of a folder inside one of our packages, its `__init__.py`.

    Raises:
        ValueError: a file is no Python.
    """
    paths = {path.stem: path for path in folder.glob("[a-zA-Z]*.py") if path.is_file()}
    if _is_ours(folder):
        paths |= {path.parent.name: path for path in folder.glob("[a-zA-Z]*/__init__.py")}
    return tuple(_parsed(paths[module], module) for module in sorted(paths))


def _parsed(path: Path, module: str) -> _File:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:  # bytes that are no UTF-8, and NUL, are ValueErrors
        raise ValueError(f"{path} is no Python file ({error}); mend or move it") from error
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return _File(path, module, ast.get_docstring(tree) or "", classes)


@cache
def _entries(folder: Path, suffix: str) -> dict[str, Entry]:
    """Name -> entry of every file with a class whose name ends with `suffix`, of which the last counts."""
    ours = _is_ours(folder)
    left_out = FOUNDATIONS[folder.name] if ours else ()
    entries = {}
    for file in _files(folder):
        names = [name for name in file.classes if name.endswith(suffix)]
        if not names or file.module in left_out:
            continue
        name = file.module.removesuffix(
            "_press"
        )  # which the names of standard modules carry, as random_press
        node = file.classes[names[-1]]
        docstring = file.docstring or ast.get_docstring(node) or ""
        options = _options(node, _classes(folder, suffix))
        entries[name] = Entry(
            name=name,
            path=file.path,
            module=f"{folder.name}.{file.module}" if ours else None,
            class_name=node.name,
            summary=docstring.split("\n", 1)[0].strip(),
            source=_paragraph(docstring, "Source"),
            cost=_paragraph(docstring, "Cost"),
            options={key: option for key, option in options.items() if key != "compression_ratio"},
        )
    return entries


def _is_ours(folder: Path) -> bool:
    return folder.parent == ROOT and folder.name in FOUNDATIONS


@cache
def _classes(folder: Path, suffix: str) -> dict[str, ast.ClassDef]:
    """Every class that an entry of the folder may inherit: those of its files, and always those of ours."""
    ours = ROOT / ("presses" if suffix == "Press" else "benchmarks")
    files = _files(folder) if folder == ours else (*_files(ours), *_files(folder))
    return {name: node for file in files for name, node in file.classes.items()}


def _options(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, Option]:
    """The fields of a dataclass with a default, those of its bases first."""
    options: dict[str, Option] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            options |= _options(classes[base.id], classes)
    return options | dict(_own_options(node))


def _own_options(node: ast.ClassDef) -> Iterator[tuple[str, Option]]:
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or statement.value is None:
            continue
        kind = ast.unparse(statement.annotation)
        if isinstance(statement.target, ast.Name) and not kind.startswith("ClassVar"):
            is_press = kind.split(" ")[0].endswith("Press")
            yield statement.target.id, Option(kind, _default(statement.value), is_press)


def _default(node: ast.expr) -> Any:
    """A default as `Option.default` has it."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Press"):
        arguments = {keyword.arg: _default(keyword.value) for keyword in node.keywords if keyword.arg}
        return {"class": node.func.id, **arguments}
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...


def _paragraph(docstring: str, label: str) -> str:
    """The paragraph that begins with `label:`, up to the next label or blank line, on one line."""
    match = re.search(rf"^{label}:\s*(.+?)(?=^\w+:|\n\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    return " ".join(match.group(1).split()) if match else ""


def _imported(path: Path) -> Any:
    """The module of a file of the user's own, imported once.

    Raises:
        ValueError: it cannot be imported.
    """
    module_name = f"longpress_user.{path.stem}"  # a press is named after the last part
    if module_name in sys.modules:
        return sys.modules[module_name]
    specification = importlib.util.spec_from_file_location(module_name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module_name] = module
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the file may do anything
        del sys.modules[module_name]
        raise ValueError(
            f"{path} cannot be imported ({type(error).__name__}: {error}); mend the file"
        ) from error
    return module
