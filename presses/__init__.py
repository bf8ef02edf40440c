"""Compression methods ("presses"), one per file; a file's name is the press's name on the command line.

`from presses import SnapKVPress` imports only that press's file; there is no list to keep up to date.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import Any


@cache
def class_files() -> dict[str, str]:
    """Class name -> module name of every public class in this folder, read without importing anything."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name] = path.stem
    return found


def __getattr__(name: str) -> Any:
    if name in class_files():
        return getattr(importlib.import_module(f"presses.{class_files()[name]}"), name)
    raise AttributeError(f"presses has no {name!r}; it has {', '.join(sorted(class_files()))}")


def __dir__() -> list[str]:
    return [*globals(), *class_files()]
