"""Metrics that several suites share: pure functions of texts, each with its official source."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{…} (or \fbox{…}) with balanced braces holds; None if there is none."""
    for start in reversed([match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return text[start:end]
    return None


def load_scorer(module: str, package: str, fix: str = "pip install 'longpress[benchmarks]'") -> Any:
    """A module of an optional scorer package, imported when it is needed.

    Raises:
        ValueError: the package is missing; names it and the fix.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"this metric needs the package {package}: {fix}") from error
