"""Compression methods ("presses"), one per file; a file's name is the press's name on the command line.

`from presses import SnapKVPress` imports only that press's file; there is no list to keep up to date.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from longpress.catalogue import class_files


def __getattr__(name: str) -> Any:
    files = class_files(Path(__file__).parent)
    if name == "__all__":
        return sorted(name for name in files if name.endswith("Press"))
    if name in files:
        return getattr(importlib.import_module(f"presses.{files[name]}"), name)
    raise AttributeError(f"presses has no {name!r}; it has {', '.join(sorted(files))}")


def __dir__() -> list[str]:
    return [*globals(), *class_files(Path(__file__).parent)]
