"""The pages that strangers read, their code blocks, and the commands in these, as the tests run them."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PUBLISHED = sorted(
    path.parent
    for path in (ROOT / "results").glob("*/scores.csv")
    if list(path.parent.glob("records/*.jsonl.gz"))
)
"""Folders of results that belong to the repository: their records are packed."""

FENCE = re.compile(r"^(`{3,})(.*)$")


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        page: where it stands.
        line: of its first line.
        language: behind the fence, e.g. "python".
        caption: the file whose content it is, or "".
        text: without the fences and options.
    """

    page: Path
    line: int
    language: str
    caption: str
    text: str

    def __str__(self) -> str:
        """A name for a test."""
        return f"{self.page.name}:{self.line}"


@cache
def generated() -> ModuleType:
    """The extension that makes pages from the code."""
    place = ROOT / "docs" / "_extensions" / "longpress_pages.py"
    specification = importlib.util.spec_from_file_location("longpress_pages", place)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@cache
def source(page: Path) -> str:
    """A page as Sphinx reads it: with what is made from the code."""
    text: str = generated().fill(page.read_text(encoding="utf-8"))
    return text


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """The blocks of a page, those of some languages alone if any is named."""
    opened: tuple[int, str, str] | None = None
    held: list[str] = []
    for number, line in enumerate(source(page).splitlines(), start=1):
        fence = FENCE.match(line)
        if opened is None and fence is not None:
            opened, held = (number + 1, fence[1], fence[2].strip()), []
        elif opened is not None and fence is not None and fence[1] == opened[1]:
            block = _block(page, opened[0], opened[2], held)
            if not languages or block.language in languages:
                yield block
            opened = None
        elif opened is not None:
            held.append(line)
    assert opened is None, f"{page.name}:{opened}: a block has no end"


def _block(page: Path, line: int, information: str, lines: list[str]) -> Block:
    language = information.removeprefix("{code-block}").strip()
    caption = ""
    while lines and (option := re.match(r":(\w+): (.*)", lines[0])):
        caption = option[2] if option[1] == "caption" else caption
        lines = lines[1:]
    return Block(page, line, language, caption, "\n".join(lines).strip("\n") + "\n")


def commands(block: Block) -> list[list[str]]:
    """The words of every command of a block for a shell."""
    return [shlex.split(line) for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]


def prose(page: Path) -> str:
    """A page without its blocks."""
    text = source(page)
    return re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
