"""Tables as text: Markdown, and the same for a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from longpress.analysis.stats import significance
from longpress.analysis.stats.multiple_testing import exceeds
from longpress.analysis.tables.costs import NOTE, Grid
from longpress.analysis.tables.layout import MISSING, SIGNIFICANT, Line, View, views

MARGIN = 1.0
"""Points of loss that still count as lossless, if the whole interval of the difference lies above."""


def markdown(
    frame: pd.DataFrame, costs: Mapping[tuple[Any, ...], Grid] | None = None, margin: float = MARGIN
) -> str:
    """`table.md`: per table the scores, the paired differences to the full cache, notes, and what it cost."""
    parts = []
    for view in views(frame):
        wide = [
            (_header(view), [[*_start(line), *_row(view.columns, line, score_cell)] for line in view.lines])
        ]
        compared = _compared(view)
        if compared:
            wide.append(
                (
                    _header(view),
                    [[*_start(line), *_row(view.columns, line, difference_cell)] for line in compared],
                )
            )
        titles = (
            "Score (0 to 100) ± standard error",
            "Difference to the full cache on the same samples [95 % interval]",
        )
        best = _best_first(view)
        sections = [best] if best else []
        sections += [
            f"### {title}\n\n{grid(header, rows)}"
            for title, (header, rows) in zip(titles, wide, strict=False)
        ]
        spent = [f"### Cost\n\n{grid(*costs[view.names])}", NOTE] if costs and view.names in costs else []
        parts.append("\n\n".join([f"## {view.title}", *sections, *_notes(view, margin), *spent]))
    return "\n\n".join(parts) + "\n"


def terminal(frame: pd.DataFrame, width: int = 120, margin: float = MARGIN) -> str:
    """The same for a terminal of `width` columns: tasks become rows where presses fit side by side, else columns are split in blocks."""
    parts = []
    for view in views(frame):
        blocks = [_fit(view, view.lines, score_cell, width)]
        compared = _compared(view)
        if compared:
            blocks += [
                "difference to the full cache [95 % interval]:",
                _fit(view, compared, difference_cell, width),
            ]
        notes = (textwrap.fill(note, width, break_on_hyphens=False) for note in _notes(view, margin))
        parts.append("\n\n".join([view.title, *blocks, *notes]))
    return "\n\n\n".join(parts)


def _best_first(view: View) -> str:
    """Presses by budgets on the first average, best at the middle budget first: which one to choose, and how sure that is."""
    lines = [line for line in view.lines if not line.is_baseline and line.budget != MISSING]
    budgets, presses = (
        list(dict.fromkeys(line.budget for line in lines)),
        list(dict.fromkeys(line.press for line in lines)),
    )
    if len(presses) < 2:
        return ""
    column = view.columns[0]
    cells = {(line.press, line.budget): line.cells.get(column) for line in lines}
    middle = "0.5" if "0.5" in budgets else budgets[len(budgets) // 2]

    def rank(press: str) -> float:
        row = cells.get((press, middle))
        return math.inf if row is None or math.isnan(row["score"]) else -row["score"]

    def text(row: Mapping[str, Any] | None) -> str:
        if row is None or math.isnan(row["score"]):
            return MISSING
        more = (
            f" (keeps {100 * row['kept_fraction']:.0f} %)"
            if exceeds(row["kept_fraction"], row["compression_ratio"])
            else ""
        )
        return interval_cell(row) + more + (" =" if row["p_behind"] >= SIGNIFICANT else "")

    order = sorted(presses, key=lambda press: (rank(press), press))
    rows = [[press, *(text(cells.get((press, budget))) for budget in budgets)] for press in order]
    whole = [
        ["full cache", *[interval_cell(line.cells.get(column))] * len(budgets)]
        for line in view.lines
        if line.is_baseline
    ]
    note = (
        f"Brackets: 95 % intervals. =: not distinguishable from the best press that meets the {view.budget_heading} (paired differences on "
        "the same samples, p ≥ 0.05 after Holm's adjustment over the column)."
    )
    return f"### Which press: {column} by {view.budget_heading}, best first\n\n{grid(['press', *budgets], [*whole, *rows])}\n\n{note}"


def interval_cell(row: Mapping[str, Any] | None) -> str:
    """`41.5 [40.2, 42.8]`; – if missing."""
    if row is None or math.isnan(row["score"]):
        return MISSING
    return f"{row['score']:.1f} [{row['ci_low']:.1f}, {row['ci_high']:.1f}]"


def score_cell(row: Mapping[str, Any] | None) -> str:
    """`41.5 ± 0.6`; the interval where a standard error says nothing (all samples equal, or one); † after failed samples; – if missing."""
    if row is None or math.isnan(row["score"]):
        return MISSING + ("†" if row is not None and row["n_failed"] else "")
    error = row["se"]
    text = (
        f"{row['score']:.1f} ± {error:.1f}"
        if error > 0
        else f"{row['score']:.1f} [{row['ci_low']:.1f}, {row['ci_high']:.1f}]"
    )
    return text + ("†" if row["n_failed"] else "")


def difference_cell(row: Mapping[str, Any] | None) -> str:
    """`-0.3 [-0.9, 0.3]`, with * where the adjusted p-value is below 0.05; – if missing."""
    if row is None or math.isnan(row["delta"]):
        return MISSING
    mark = "*" if row["p_holm"] < SIGNIFICANT else ""
    return f"{row['delta']:+.1f} [{row['delta_ci_low']:+.1f}, {row['delta_ci_high']:+.1f}]{mark}"


def _compared(view: View) -> list[Line]:
    return [line for line in view.lines if any(not math.isnan(cell["delta"]) for cell in line.cells.values())]


def _start(line: Line) -> list[str]:
    return [line.press, line.budget or MISSING, line.kept, line.samples]


def _header(view: View) -> list[str]:
    return ["press", view.budget_heading, "kept", "n", *view.columns]


def _row(columns: Iterable[str], line: Line, cell: Callable[[Mapping[str, Any] | None], str]) -> list[str]:
    return [cell(line.cells.get(column)) for column in columns]


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table with aligned columns, the first `left` to the left."""
    table = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * width if at < left else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    table.insert(1, rule)
    pad = [str.ljust if at < left else str.rjust for at in range(len(widths))]
    aligned = [[put(text, width) for put, text, width in zip(pad, row, widths, strict=True)] for row in table]
    return "\n".join(f"| {' | '.join(row)} |" for row in aligned)


def _fit(
    view: View, lines: Sequence[Line], cell: Callable[[Mapping[str, Any] | None], str], width: int
) -> str:
    head = [_header(view)[:4], *map(_start, lines)]
    rows = [view.columns, *(_row(view.columns, line, cell) for line in lines)]
    names = ["task", *(f"{line.press} {line.budget}".strip() for line in lines)]
    turned = [names, *(list(column) for column in zip(*rows, strict=True))]
    taken, sizes = (
        _width(head),
        [_width([[text] for text in column]) - 1 for column in zip(*rows, strict=True)],
    )
    if taken + sum(sizes) > width and _width(turned) <= width:
        return grid(turned[0], turned[1:])
    blocks, start = [], 0
    while start < len(sizes):
        end = start + 1
        while end < len(sizes) and taken + sum(sizes[start : end + 1]) <= width:
            end += 1
        table = [left + right[start:end] for left, right in zip(head, rows, strict=True)]
        blocks.append(grid(table[0], table[1:]))
        start = end
    return "\n\n".join(blocks)


def _width(table: Sequence[Sequence[str]]) -> int:
    """Characters across the grid of a table."""
    return 1 + sum(3 + max(3, *map(len, column)) for column in zip(*table, strict=True))


def _notes(view: View, margin: float) -> list[str]:
    """What a reader needs to know about the cells of this table."""
    notes = []
    rows = [(line, row) for line in view.lines for row in line.cells.values()]
    held = {row["task"]: row["n_tasks"] for _, row in rows if row["aggregate"]}
    if view.averages:
        named = ", ".join(
            f"{name} of {held[name]} task{'s' if held[name] > 1 else ''}"
            for name in view.averages
            if name in held
        )
        notes.append(
            f"Averages: {named}. An average is left out where one of its tasks is missing for that press."
        )
    notes.append(
        "n: samples per task; kept: measured share of the full cache; brackets: 95 % interval; *: p < 0.05 (Holm)."
    )
    single = [(f"{line.press} {line.budget}".strip(), row) for line, row in rows if not row["aggregate"]]
    compared = [row for _, row in single if not math.isnan(row["p_holm"])]
    if compared:
        holm, bh = (sum(row[name] < SIGNIFICANT for row in compared) for name in ("p_holm", "p_bh"))
        found = f"{holm} after Holm's adjustment, {bh} after Benjamini-Hochberg's"
        notes.append(
            f"Differences to the full cache with p < 0.05, of {len(compared)} in single tasks: {found}."
        )
        first = [
            (f"{line.press} {line.budget}", line.cells.get(view.columns[0]))
            for line in view.lines
            if not line.is_baseline
        ]
        safe = [
            name
            for name, row in first
            if row is not None and significance.non_inferior(row["delta_ci_low"], margin)
        ]
        notes.append(
            f"Lossless within {margin:g} point{'' if margin == 1 else 's'} of {view.columns[0]} (the 95 % interval of the difference lies "
            f"above -{margin:g}): {', '.join(safe) or 'none'}."
        )
    failed = [f"{name} {row['task']}: {row['n_failed']}" for name, row in single if row["n_failed"]]
    if failed:
        notes.append(
            f"† failed samples, left out of the means: {'; '.join(failed[:20])}{'; …' if len(failed) > 20 else ''}."
        )
    empty, cut = (sum(row[name] for _, row in single) for name in ("n_empty", "n_truncated"))
    if empty or cut:
        notes.append(
            f"Of all lines, empty answers: {empty}; answers about contexts cut to fit the window: {cut}."
        )
    return notes
