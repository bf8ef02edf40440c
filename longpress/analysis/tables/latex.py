r"""Tables for papers: LaTeX with booktabs, the full cache first, then one block per budget.

The file compiles alone, and inside a paper that has `\usepackage{booktabs}` and `\usepackage{graphicx}`
(rotated heads, tables fitted to the line) where `\input{table.tex}` stands. A number is bold only where it is
the best of its block and the paired difference to the runner-up is significant after Holm's adjustment; an
asterisk marks a significant difference to the full cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from longpress.analysis.stats.significance import SIGNIFICANT
from longpress.analysis.tables.costs import NOTE
from longpress.analysis.tables.grid import MISSING, Grid
from longpress.analysis.tables.layout import LayoutRow, TableLayout
from longpress.analysis.tables.row_keys import TableKey, exceeds, is_ratio

ROTATED_FROM = 8
"""From so many columns of scores on, heads are turned and errors of single tasks are left to the caption."""
PAGE = 44
"""So many rows stand on one page."""
START = 4
"""So many columns stand before the scores: press, budget, kept, samples per task."""
MARKS = (
    r"bold: significantly best of its budget; $^*$: differs from the full cache ($p<0.05$, Holm); "
    r"$^\ddagger$: keeps more than the ratio allows, and does not run for best"
)
HEAD = r"""% Alone: pdflatex table.tex. In a paper: \usepackage{booktabs,graphicx} and \input{table.tex}.
\ifdefined\thepage\else
  \documentclass{article}
  \usepackage[margin=2cm]{geometry}
  \usepackage{booktabs,graphicx}
  \def\longpressend{\end{document}}
  \begin{document}
\fi
"""
TAIL = "\\ifdefined\\longpressend\\expandafter\\longpressend\\fi\n"
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "≥": r"$\geq$",
    "…": r"\ldots{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex(tables: Sequence[TableLayout], costs: Mapping[TableKey, Grid] | None = None) -> str:
    """The LaTeX of each table: presses by budgets, scores by task, costs; see the module.

    Args:
        tables: of a frame of scores.
        costs: of the tables that have any.
    """
    parts = []
    for table in tables:
        parts += [*_by_budget(table), *_scores(table)]
        if costs and table.key in costs:
            parts.append(_cost(table.title, costs[table.key]))
    return HEAD + "\n".join(parts) + TAIL


def escape(text: str) -> str:
    """Text as LaTeX prints it; line breaks become spaces."""
    return "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))


def _by_budget(table: TableLayout) -> list[str]:
    """A row per press, a column per budget: the first average, or the only task."""
    rows = sorted((row for row in table.rows if not row.is_baseline), key=_order)
    budgets, presses = list(dict.fromkeys(row.budget for row in rows)), sorted({row.press for row in rows})
    if len(budgets) < 2 or len(presses) < 2:
        return []
    column = table.columns[0]
    cells = {(row.press, row.budget): row.cells.get(column) for row in rows}

    # the full cache across all budgets, then the presses
    body = []
    for row in table.rows:
        if row.is_baseline:
            whole = rf"\multicolumn{{{len(budgets)}}}{{c}}{{{_cell(row.cells.get(column))}}}"
            body += [_typeset([escape(row.press), whole]), r"\midrule"]
    for press in presses:
        scores = (_cell(cells.get((press, budget)), mark=True) for budget in budgets)
        body.append(_typeset([escape(press), *scores]))

    named = "budget" if table.budget_heading == "budget" else "compression ratio"
    heads = [
        _typeset(["", rf"\multicolumn{{{len(budgets)}}}{{c}}{{{named}}}"]),
        rf"\cmidrule(lr){{2-{1 + len(budgets)}}}",
        _typeset(["press", *map(escape, budgets)]),
    ]
    caption = f"{escape(table.title)}: {escape(column)} (0 to 100) with standard error; {MARKS}."
    return [_environment(caption, f"l *{{{len(budgets)}}}{{r}}", heads, body)]


def _scores(table: TableLayout) -> list[str]:
    """A row per press and budget, a column per task; one per budget where a page would not hold them."""
    columns = [*table.tasks, *table.averages]
    is_wide = len(columns) >= ROTATED_FROM
    rows = sorted(table.rows, key=_order)

    # blocks of rows, one per budget, on one page or each on its own
    blocks: dict[str, list[LayoutRow]] = {}
    for row in rows:
        blocks.setdefault(row.budget, []).append(row)
    baseline = blocks.pop("", [])
    pages = [list(blocks.values())] if len(rows) <= PAGE else [[block] for block in blocks.values()]

    # heads, column rules and caption, which all pages share
    names = [rf"\rotatebox{{70}}{{{escape(column)}}}" if is_wide else escape(column) for column in columns]
    heads = [*_grouped(table), _typeset(["press", table.budget_heading, "kept", "$n$", *names])]
    rules = f"ll rr *{{{len(table.tasks)}}}{{r}}"
    if table.averages:
        rules += f" *{{{len(table.averages)}}}{{r}}"
    caption = (
        f"{escape(table.title)}. Scores (0 to 100), {_said_of_errors(table, is_wide)}; "
        f"kept: measured share of the full cache; $n$: samples per task; {MARKS}."
    )

    tables = []
    for page in pages or [[]]:
        body: list[str] = []
        for block in [baseline, *page]:
            body += [r"\midrule"] if body and block else []
            body += [_score_row(row, table, columns, is_wide) for row in block]
        tables.append(_environment(caption, rules, heads, body))
    return tables


def _score_row(row: LayoutRow, table: TableLayout, columns: Sequence[str], is_wide: bool) -> str:
    """A row of scores; errors of single tasks are left out where the table is wide."""
    start = [escape(row.press), escape(row.budget) or "--", escape(row.kept), escape(row.samples)]
    cells = [
        _cell(
            row.cells.get(column),
            error=not is_wide or column in table.averages,
            mark=not row.is_baseline,
        )
        for column in columns
    ]
    return _typeset([*start, *cells])


def _said_of_errors(table: TableLayout, is_wide: bool) -> str:
    """What the caption says of the errors of single tasks."""
    cells = (row.cells[task] for row in table.rows for task in table.tasks if task in row.cells)
    errors = [entry["se"] for entry in cells if entry["se"] > 0]
    if not errors:
        return "in brackets 95\\,\\% intervals"
    return f"standard errors of tasks up to {max(errors):.1f}" if is_wide else "with standard errors"


def _cost(title: str, grid: Grid) -> str:
    body = [_typeset(map(escape, row)) for row in grid.rows]
    if len(body) > 1 and grid.rows[0][0].startswith("full cache"):
        body.insert(1, r"\midrule")
    heads, rules = [_typeset(map(escape, grid.heads))], f"l *{{{len(grid.heads) - 1}}}{{r}}"
    return _environment(f"{escape(title)}: cost. {escape(NOTE)}", rules, heads, body)


def _typeset(cells: Iterable[str]) -> str:
    """One row of a tabular."""
    return " & ".join(cells) + r" \\"


def _environment(caption: str, rules: str, heads: Sequence[str], body: Sequence[str]) -> str:
    rows = [r"\toprule", *heads, r"\midrule", *body, r"\bottomrule"]
    tabular = "\n".join([rf"\begin{{tabular}}{{{rules}}}", *rows, r"\end{tabular}"])
    # shrinks, never stretches
    fitted = f"\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n{tabular}%\n}}"
    return "\n".join(
        [
            r"\begin{table}[p]",
            r"\centering",
            r"\small",
            rf"\caption{{{caption}}}",
            r"\smallskip",
            fitted,
            r"\end{table}",
            "",
        ]
    )


def _grouped(table: TableLayout) -> list[str]:
    """The row of group names above the tasks, with rules below the groups."""
    if not table.groups:
        return []
    group_of = {task: name for name, group in table.groups for task in group}
    cells, rules, at = [""] * START, [], 0
    while at < len(table.tasks):
        name = group_of.get(table.tasks[at], "")
        size = 1
        while name and at + size < len(table.tasks) and group_of.get(table.tasks[at + size]) == name:
            size += 1
        cells.append(rf"\multicolumn{{{size}}}{{c}}{{{escape(name)}}}" if name else "")
        if name:
            rules.append(rf"\cmidrule(lr){{{at + START + 1}-{at + START + size}}}")
        at += size
    cells += [""] * len(table.averages)
    return [_typeset(cells), " ".join(rules)]


def _order(row: LayoutRow) -> tuple[bool, int, float, str]:
    """Sorts rows: the full cache, then ratios rising, then tokens falling, then thresholds falling.

    Presses stand by name within each.
    """
    if row.is_baseline:
        return False, 0, 0.0, ""
    if is_ratio(row.budget):
        return True, 0, float(row.budget), row.press
    if row.budget == MISSING:
        return True, 2, -math.inf, row.press
    first, *_, last = row.budget.split(" ")  # "128 tokens", "score ≥ 0.1"
    return (True, 1, -float(first), row.press) if first.isdigit() else (True, 2, -float(last), row.press)


def _cell(entry: Mapping[str, Any] | None, *, error: bool = True, mark: bool = False) -> str:
    """A score, bold where significantly best, with its error and marks.

    The interval in place of the error where that says nothing.
    """
    if entry is None or math.isnan(entry["score"]):
        return "--"
    text = f"{entry['score']:.1f}"
    if not math.isnan(entry["p_lead"]) and entry["p_lead"] < SIGNIFICANT and entry["lead"] > 0:
        text = rf"\textbf{{{text}}}"
    if error and entry["se"] > 0:
        text += rf"{{\scriptsize$\pm${entry['se']:.1f}}}"
    elif error:
        text += rf"{{\scriptsize\,[{entry['ci_low']:.1f}, {entry['ci_high']:.1f}]}}"
    marks = "*" if mark and entry["p_holm"] < SIGNIFICANT else ""
    if mark and exceeds(entry["kept_fraction"], entry["compression_ratio"]):
        marks += r"\ddagger"
    if entry["n_failed"]:
        marks += r"\dagger"
    return text + (f"$^{{{marks}}}$" if marks else "")
