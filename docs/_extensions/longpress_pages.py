"""Pages that are made from the code while Sphinx reads: presses, benchmarks, the options of a run, commands.

A page of the documentation holds a line `<!-- generated: NAME -->`, which is replaced by Markdown;
nothing of it is written to a file. What is not in the code is not on these pages, so they cannot be wrong
about it.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"^<!-- generated: ([a-z]+) -->$", re.MULTILINE)
"""The line of a page that is replaced."""

LABELS = ("Source", "Differs", "Cost")
"""Labels of the last lines of a docstring, in their order."""

HELP_WIDTH = "100"
"""Characters across the help of a command."""


LISTED = 3
"""Values of a default that are listed; of more, only their number is told."""

COMMON = {
    "tasks": "The tasks to run: each is a column of the table.",
    "hub": "Data set on the hub, read where no `path` is given.",
    "seed": "Of what is drawn; by default the seed of the run.",
}
"""What options mean that many benchmarks have, where a file does not say it."""


class Described(NamedTuple):
    """The docstring of a press or benchmark, in its parts.

    Attributes:
        summary: its first line.
        body: what follows, up to the first label.
        labels: the text behind `Source:`, `Differs:` and `Cost:`, as far as there is some.
    """

    summary: str
    body: str
    labels: Mapping[str, str]


def described(path: Path) -> Described:
    """What a file of the catalogue says about itself."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    summary, _, rest = docstring.partition("\n")
    # the labels begin a line, or a sentence where a paragraph was filled
    parts = re.split(rf"(?:^|(?<=[.;)] ))({'|'.join(LABELS)}):\s", rest, flags=re.MULTILINE)
    labels = {label: text.strip() for label, text in zip(parts[1::2], parts[2::2], strict=True)}
    return Described(summary.strip(), parts[0].strip(), labels)


def meanings(made: type[Any]) -> dict[str, str]:
    """What the options of a press or benchmark mean, those included that its class inherits."""
    texts = dict(COMMON)
    for base in reversed(made.__mro__):
        if base.__module__.split(".")[0] in ("presses", "benchmarks"):
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(node, ast.ClassDef)
            texts |= _option_texts(node)
    return texts


def _option_texts(node: ast.ClassDef) -> dict[str, str]:
    """What a class says of its fields: under `Attributes:` of its docstring, or in strings below them."""
    texts = {}
    attributes = (ast.get_docstring(node) or "").partition("Attributes:")[2]
    for name, text in re.findall(
        r"^ {4}(\w+): (.+?)(?=^ {4}\w|^\S|\Z)", attributes, re.MULTILINE | re.DOTALL
    ):
        texts[name] = " ".join(text.split())
    for field, below in zip(node.body, node.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def escaped(text: str) -> str:
    """Text of a docstring as Markdown: what formulas are full of means something there. Papers are linked."""
    pieces = re.split(r"(`[^`]*`)", text)
    pieces[::2] = [re.sub(r"([*<>\[\]_~$\\])", r"\\\1", piece) for piece in pieces[::2]]
    return re.sub(r"arXiv\s+(\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", "".join(pieces))


def cell(text: str) -> str:
    """The same for a cell of a table."""
    return " ".join(escaped(text).split()).replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a Markdown table."""
    head = list(head)
    return ["", *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)), ""]


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a docstring; one that is indented is a formula or an example, and stays as it is."""
    lines = []
    for block in re.split(r"\n\s*\n", text):
        if block.startswith("    "):
            lines += ["", "```text", *textwrap.dedent(block).splitlines(), "```"]
        elif block:
            lines += ["", escaped(" ".join(block.split()))]
    return lines


# -- presses and benchmarks --------------------------------------------------------------------------------


def methods() -> Iterator[str]:
    """A section per press, then the combinations of conf/press."""
    from longpress.catalogue import presses

    for name, entry in presses().items():
        yield from _section(name, entry, f"press={name}", f"presses.{name}")
    yield from ("", "## Combinations", "")
    yield "Presses with options of their own names, so that a table can hold both: files of `conf/press/`."
    for file in sorted((ROOT / "conf" / "press").glob("*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        comment = next(line.removeprefix("# ") for line in lines if re.match(r"# [^@]", line))
        settings = [line for line in lines if not line.startswith("#")]
        yield from ("", f"### {file.stem}", "", f"{escaped(comment)}.", "", "```yaml", *settings, "```")


def suites() -> Iterator[str]:
    """A section per benchmark."""
    from longpress.catalogue import benchmarks

    for name, entry in benchmarks().items():
        yield from _section(name, entry, f"benchmark={name}", "benchmark")


def _section(name: str, entry: Any, choice: str, prefix: str) -> Iterator[str]:
    says, texts, defaults = described(entry.path), meanings(entry.load()), entry.defaults()
    yield from ("", f"## {name}", "", f"**{escaped(says.summary)}**", *paragraphs(says.body))
    for label, text in says.labels.items():
        first, *others = paragraphs(text)[1:]
        yield from ("", f"*{label}:* {first}", *others)
    where = entry.path.relative_to(ROOT).as_posix()
    yield from ("", f"Class `{entry.class_name}`, file `{where}`, chosen by `{choice}`.")
    if entry.options:
        rows = [
            (f"`{prefix}.{key}`", _default(default), cell(texts.get(key, "")))
            for key, default in defaults.items()
        ]
        yield from table(("option", "default", "meaning"), rows)


def _default(value: Any) -> str:
    """A default for people: a press inside by its class, a list as a command gives it."""
    if isinstance(value, Mapping) and "class" in value:
        inside = ", ".join(f"{key}={given!r}" for key, given in value.items() if key != "class")
        return f"`{value['class']}({inside})`"
    if isinstance(value, tuple | list):
        if len(value) > LISTED:
            return f"{len(value)} values"
        text = f"[{', '.join(map(str, value))}]"
    else:
        text = _shown(value)
    return f"`{text}`".replace("|", "\\|") if text else "empty"


# -- options and commands ----------------------------------------------------------------------------------


def options() -> Iterator[str]:
    """The fields of `RunOptions` under their headings: name, default, meaning."""
    declared = import_module("longpress.evaluation.options").RunOptions
    inherited = import_module("longpress.pipeline.options").PipelineOptions
    headings: dict[str, list[tuple[str, str, str]]] = {}
    for field in fields(declared):
        heading = field.metadata.get("heading", (inherited.__doc__ or "").split("\n", 1)[0].rstrip("."))
        group = fields(field.default) if is_dataclass(field.default) else ()
        for option in group or (field,):
            name = f"{field.name}.{option.name}" if group else field.name
            row = (f"`{name}`", f"`{_shown(option.default)}`", cell(option.metadata["help"]))
            headings.setdefault(heading, []).append(row)
    for heading, rows in sorted(headings.items(), key=lambda item: item[0] == next(iter(headings))):
        yield from ("", f"## {heading}", *table(("option", "default", "meaning"), rows))


def _shown(default: Any) -> str:
    """A default as a command gives it."""
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def commands() -> Iterator[str]:
    """A section per subcommand of `longpress`, with what its `--help` prints."""
    cli = import_module("longpress.cli")
    os.environ["COLUMNS"] = HELP_WIDTH  # argparse fills its lines to it
    yield from ("", "```text", *cli.help_text().splitlines(), "```")
    for name, command in cli.COMMANDS.items():
        yield from ("", f"## longpress {name}", "", escaped(cli.summary(name)))
        yield from ("", "```bash", command.example, "```")
        if command.overrides is None:
            yield from ("", "```text", *cli.parser(name).format_help().rstrip().splitlines(), "```")
        else:
            yield from ("", f"What stands behind `longpress {name}` are [options of a run](options.md).")


# -- published results -------------------------------------------------------------------------------------


def published() -> Iterator[str]:
    """Of every published folder the ranking, as its `table.md` has it."""
    for folder in sorted((path.parent for path in (ROOT / "results").glob("*/table.md")), reverse=True):
        for part in re.split(r"^## ", (folder / "table.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[
            1:
        ]:
            title, _, rest = part.partition("\n")
            ranking = re.search(r"^### Which press.*?(?=^### )", rest, re.MULTILINE | re.DOTALL)
            if ranking is None:
                continue
            name = folder.relative_to(ROOT).as_posix()
            yield from ("", f"## {title}", "", f"All tables, plots and records: `{name}/`.", "")
            if (folder / "ranking-1.png").exists():
                yield f"![Presses ranked, with 95 % intervals](../{name}/ranking-1.png)"
            yield from ("", *ranking[0].splitlines())


# -- a table to read ---------------------------------------------------------------------------------------

EXAMPLE = ROOT / "results" / "ruler-2k-smollm2"
"""The published folder whose tables the page on reading one takes its examples from."""

SHOWN = ("press", "---", "full cache", "kvzip ", "compactor", "adakv_expected_attention", "think", "knorm")
"""Beginnings of the lines of its tables that are shown."""

COLUMNS = 7
"""Columns that are shown."""


def _excerpt(heading: str) -> Iterator[str]:
    """Some lines and columns of a table of the example."""
    text = (EXAMPLE / "table.md").read_text(encoding="utf-8")
    section = text.partition(f"\n### {heading}")[2].partition("\n### ")[0]
    for line in section.splitlines():
        cells = line.strip("|").split("|")
        if line.startswith("|") and line.removeprefix("| ").startswith(SHOWN):
            yield f"|{'|'.join(cells[:COLUMNS])}|"


def ranking() -> Iterator[str]:
    """Which press, best first."""
    return _excerpt("Which press")


def cells() -> Iterator[str]:
    """Scores."""
    return _excerpt("Score")


def differences() -> Iterator[str]:
    """Differences to the full cache."""
    return _excerpt("Difference")


def comparison() -> Iterator[str]:
    """What `longpress compare` prints of two presses, the single tasks left out."""
    cli = import_module("longpress.cli")
    module = import_module(cli.COMMANDS["compare"].module)
    with redirect_stdout(StringIO()) as printed:
        module.run(cli.parser("compare").parse_args(["kvzip", "compactor", str(EXAMPLE)]))
    lines = printed.getvalue().splitlines()
    shown = [line for line in lines if not line.startswith("  ratio") or "average" in line]
    return iter(("```text", *(line.rstrip() for line in shown), "```"))


# -- in Sphinx ---------------------------------------------------------------------------------------------

MADE: Mapping[str, Callable[[], Iterable[str]]] = {
    "methods": methods,
    "benchmarks": suites,
    "options": options,
    "commands": commands,
    "published": published,
    "ranking": ranking,
    "cells": cells,
    "differences": differences,
    "comparison": comparison,
}
"""What each name in `<!-- generated: NAME -->` stands for."""


def fill(text: str) -> str:
    """A page's source with its marks replaced."""
    return MARK.sub(lambda found: "\n".join(MADE[found[1]]()), text)


def doubled_backticks(lines: list[str]) -> None:
    """Our docstrings as reStructuredText, where code has two backticks, and `*` and `|` a meaning."""
    for at, line in enumerate(lines):
        pieces = re.split(r"(``[^`]+``|(?<!:)`[^`]+`)", line)
        pieces[1::2] = [f"``{piece.strip('`')}``" for piece in pieces[1::2]]
        pieces[::2] = [re.sub(r"(?<!\\)([*|])", r"\\\1", piece) for piece in pieces[::2]]
        lines[at] = "".join(pieces)


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""

    def read(_app: Any, _name: str, source: list[str]) -> None:
        source[0] = fill(source[0])

    def docstring(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
        doubled_backticks(lines)

    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
