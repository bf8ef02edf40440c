"""Tables as text: Markdown, and the same for a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from longpress.analysis.stats import significance
from longpress.analysis.stats.significance import SIGNIFICANT
from longpress.analysis.tables.costs import NOTE
from longpress.analysis.tables.grid import MISSING, Grid, markdown_table
from longpress.analysis.tables.layout import LayoutRow, TableLayout, layouts
from longpress.analysis.tables.pass_at_k import NOTE as PASSES
from longpress.analysis.tables.row_keys import TableKey, exceeds

MARGIN = 1.0
"""So many points of loss still count as lossless, if the whole interval of the difference lies above."""
START = 4
"""So many columns stand before the scores: press, budget, kept fraction, samples."""
NAMED = 20
"""So many cells with failed samples are named in a note."""

Entry = Mapping[str, Any]
"""An entry of a frame of scores: one cell."""


def markdown(
    frame: pd.DataFrame,
    costs: Mapping[TableKey, Grid] | None = None,
    margin: float = MARGIN,
    passes: Mapping[TableKey, Grid] | None = None,
) -> str:
    """`table.md`: per table the scores, the paired differences to the full cache, notes, and what it cost.

    Where several answers to a question were drawn, also pass@k.
    """
    tables = (_sections(table, costs or {}, passes or {}, margin) for table in layouts(frame))
    return "\n\n".join(tables) + "\n"


def terminal(frame: pd.DataFrame, width: int = 120, margin: float = MARGIN) -> str:
    """The same for a terminal of `width` columns.

    Tasks become rows where presses fit side by side, else columns are split in blocks.
    """
    parts = []
    for table in layouts(frame):
        blocks = [_fitted(table, table.rows, score_cell, width)]
        compared = _compared(table)
        if compared:
            blocks.append("difference to the full cache [95 % interval]:")
            blocks.append(_fitted(table, compared, difference_cell, width))
        notes = (textwrap.fill(note, width, break_on_hyphens=False) for note in _notes(table, margin))
        parts.append("\n\n".join([table.title, *blocks, *notes]))
    return "\n\n\n".join(parts)


def interval_cell(entry: Entry | None) -> str:
    """`41.5 [40.2, 42.8]`; – if missing."""
    if entry is None or math.isnan(entry["score"]):
        return MISSING
    return f"{entry['score']:.1f} [{entry['ci_low']:.1f}, {entry['ci_high']:.1f}]"


def score_cell(entry: Entry | None) -> str:
    """`41.5 ± 0.6`; † after failed samples; – if missing.

    The interval instead where a standard error says nothing (all samples equal, or one).
    """
    if entry is None:
        return MISSING
    failed = "†" if entry["n_failed"] else ""
    if math.isnan(entry["score"]):
        return MISSING + failed
    if entry["se"] > 0:
        return f"{entry['score']:.1f} ± {entry['se']:.1f}{failed}"
    return interval_cell(entry) + failed


def difference_cell(entry: Entry | None) -> str:
    """`-0.3 [-0.9, 0.3]`, with * where the adjusted p-value is below 0.05; – if missing."""
    if entry is None or math.isnan(entry["delta"]):
        return MISSING
    mark = "*" if entry["p_holm"] < SIGNIFICANT else ""
    return f"{entry['delta']:+.1f} [{entry['delta_ci_low']:+.1f}, {entry['delta_ci_high']:+.1f}]{mark}"


def _sections(
    table: TableLayout, costs: Mapping[TableKey, Grid], passes: Mapping[TableKey, Grid], margin: float
) -> str:
    """One table of `table.md` under its heading."""
    sections = [f"## {table.title}"]
    best = _best_first(table)
    if best:
        sections.append(best)
    scores = markdown_table(_grid(table, table.rows, score_cell))
    sections.append(f"### Score (0 to 100) ± standard error\n\n{scores}")
    compared = _compared(table)
    if compared:
        differences = markdown_table(_grid(table, compared, difference_cell))
        heading = "### Difference to the full cache on the same samples [95 % interval]"
        sections.append(f"{heading}\n\n{differences}")
    sections += _notes(table, margin)
    if table.key in passes:
        sections += [f"### pass@k (0 to 100)\n\n{markdown_table(passes[table.key])}", PASSES]
    if table.key in costs:
        sections += [f"### Cost\n\n{markdown_table(costs[table.key])}", NOTE]
    return "\n\n".join(sections)


def _best_first(table: TableLayout) -> str:
    """Presses by budgets on the first average, best at the middle budget first.

    It answers which press to choose, and how sure that is; empty where there is one press only.
    """
    rows = [row for row in table.rows if not row.is_baseline and row.budget != MISSING]
    budgets, presses = dict.fromkeys(row.budget for row in rows), dict.fromkeys(row.press for row in rows)
    if len(presses) < 2:
        return ""
    column = table.columns[0]
    cells = {(row.press, row.budget): row.cells.get(column) for row in rows}
    middle = "0.5" if "0.5" in budgets else list(budgets)[len(budgets) // 2]

    def loss(press: str) -> float:
        entry = cells.get((press, middle))
        return math.inf if entry is None or math.isnan(entry["score"]) else -entry["score"]

    def text(entry: Entry | None) -> str:
        if entry is None or math.isnan(entry["score"]):
            return MISSING
        keeps_more = exceeds(entry["kept_fraction"], entry["compression_ratio"])
        kept = f" (keeps {100 * entry['kept_fraction']:.0f} %)" if keeps_more else ""
        return interval_cell(entry) + kept + (" =" if entry["p_behind"] >= SIGNIFICANT else "")

    # the full cache in every column, then the presses
    body = [
        ["full cache", *[interval_cell(row.cells.get(column))] * len(budgets)]
        for row in table.rows
        if row.is_baseline
    ]
    for press in sorted(presses, key=lambda press: (loss(press), press)):
        body.append([press, *(text(cells.get((press, budget))) for budget in budgets)])
    note = (
        f"Brackets: 95 % intervals. =: not distinguishable from the best press that meets the "
        f"{table.budget_heading} (paired differences on the same samples, p ≥ 0.05 after Holm's adjustment "
        "over the column)."
    )
    heading = f"### Which press: {column} by {table.budget_heading}, best first"
    return f"{heading}\n\n{markdown_table(Grid(['press', *budgets], body))}\n\n{note}"


def _compared(table: TableLayout) -> list[LayoutRow]:
    """The rows that differ from the full cache by a known amount anywhere."""
    return [row for row in table.rows if any(not math.isnan(entry["delta"]) for entry in row.cells.values())]


def _grid(table: TableLayout, rows: Sequence[LayoutRow], text: Callable[[Entry | None], str]) -> Grid:
    """Rows of a table with all its columns; `text` shows a cell."""
    heads = ["press", table.budget_heading, "kept", "n", *table.columns]
    body = [
        [
            *(row.press, row.budget or MISSING, row.kept, row.samples),
            *(text(row.cells.get(column)) for column in table.columns),
        ]
        for row in rows
    ]
    return Grid(heads, body)


def _fitted(
    table: TableLayout, rows: Sequence[LayoutRow], text: Callable[[Entry | None], str], width: int
) -> str:
    """`_grid` in a terminal of `width` columns: as it is, turned, or in blocks below each other."""
    grid = _grid(table, rows, text)
    columns = list(zip(grid.heads, *grid.rows, strict=True))
    if grid.width > width:
        names = ["task", *(row.name for row in rows)]
        turned = Grid(names, columns[START:])
        if turned.width <= width:
            return markdown_table(turned)

    # as many columns in each block as fit beside the first ones, one at least
    blocks: list[list[tuple[str, ...]]] = []
    for column in columns[START:]:
        block = _of_columns([*columns[:START], *(blocks[-1] if blocks else []), column])
        if blocks and block.width <= width:
            blocks[-1].append(column)
        else:
            blocks.append([column])
    return "\n\n".join(markdown_table(_of_columns([*columns[:START], *block])) for block in blocks)


def _of_columns(columns: Sequence[Sequence[str]]) -> Grid:
    """A grid from its columns, heads included."""
    heads, *rows = zip(*columns, strict=True)
    return Grid(heads, rows)


def _notes(table: TableLayout, margin: float) -> list[str]:
    """What a reader needs to know about the cells of this table."""
    notes = []
    cells = [(row.name, entry) for row in table.rows for entry in row.cells.values()]
    single = [(name, entry) for name, entry in cells if not entry["aggregate"]]

    # what the averages and the signs are
    sizes = {entry["task"]: entry["n_tasks"] for _, entry in cells if entry["aggregate"]}
    if table.averages:
        named = ", ".join(
            f"{name} of {sizes[name]} task{'s' if sizes[name] > 1 else ''}"
            for name in table.averages
            if name in sizes
        )
        notes.append(
            f"Averages: {named}. An average is left out where one of its tasks is missing for that press."
        )
    notes.append(
        "n: samples per task; kept: measured share of the full cache; brackets: 95 % interval; "
        "*: p < 0.05 (Holm)."
    )

    # several answers to a question
    most = max((entry["answers_most"] for _, entry in single), default=1)
    if most > 1:
        notes.append(
            f"Up to {most} answers to each question were drawn (n: questions × answers). A score is the mean "
            f"over questions of the mean over their answers (avg@{most}); errors are clustered by question."
        )

    # what the differences to the full cache say
    compared = [entry for _, entry in single if not math.isnan(entry["p_holm"])]
    if compared:
        holm, bh = (sum(entry[name] < SIGNIFICANT for entry in compared) for name in ("p_holm", "p_bh"))
        notes.append(
            f"Differences to the full cache with p < 0.05, of {len(compared)} in single tasks: "
            f"{holm} after Holm's adjustment, {bh} after Benjamini-Hochberg's."
        )
        lossless = [row.name for row in table.rows if _is_lossless(row, table.columns[0], margin)]
        notes.append(
            f"Lossless within {margin:g} point{'' if margin == 1 else 's'} of {table.columns[0]} "
            f"(the 95 % interval of the difference lies above -{margin:g}): {', '.join(lossless) or 'none'}."
        )

    # what went wrong
    failed = [f"{name} {entry['task']}: {entry['n_failed']}" for name, entry in single if entry["n_failed"]]
    if failed:
        more = "; …" if len(failed) > NAMED else ""
        notes.append(f"† failed samples, left out of the means: {'; '.join(failed[:NAMED])}{more}.")
    empty, cut = (sum(entry[name] for _, entry in single) for name in ("n_empty", "n_truncated"))
    if empty or cut:
        notes.append(
            f"Of all lines, empty answers: {empty}; answers about contexts cut to fit the window: {cut}."
        )
    return notes


def _is_lossless(row: LayoutRow, column: str, margin: float) -> bool:
    """Whether a press loses less than `margin` points in a column."""
    entry = row.cells.get(column)
    if row.is_baseline or entry is None:
        return False
    return bool(significance.non_inferior(entry["delta_ci_low"], margin))
