"""Metrics that several suites share: pure functions of texts, each with its official source."""

from __future__ import annotations

import re


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{…} (or \fbox{…}) with balanced braces holds; None if there is none."""
    for start in reversed([match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return text[start:end]
    return None
