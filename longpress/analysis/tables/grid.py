"""A small table of texts, and how it is aligned as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MISSING = "–"
"""What stands in a cell that has no value."""


class Grid(NamedTuple):
    """Heads and rows of a table, as text; every row has as many cells as there are heads."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def width(self) -> int:
        """Characters from edge to edge of `markdown_table`."""
        return 1 + sum(3 + max(3, *map(len, column)) for column in zip(self.heads, *self.rows, strict=True))


def markdown_table(grid: Grid) -> str:
    """The grid as Markdown with aligned columns, the first to the left, the others to the right."""
    table = [
        [text.replace("|", "\\|").replace("\n", " ") for text in row] for row in (grid.heads, *grid.rows)
    ]
    widths = [max(3, *map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * width if at < 1 else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    table.insert(1, rule)
    aligned = [
        [text.ljust(width) if at < 1 else text.rjust(width) for at, (text, width) in enumerate(cells)]
        for cells in (zip(row, widths, strict=True) for row in table)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in aligned)
