r"""Tables for papers: LaTeX with booktabs, the full cache first, then one block per budget.

The file compiles alone, and inside a paper that has `\usepackage{booktabs}` and `\usepackage{graphicx}`
(rotated heads, tables fitted to the line) where `\input{table.tex}` stands. A number is bold only where it is
the best of its block and the paired difference to the runner-up is significant after Holm's adjustment; an
asterisk marks a significant difference to the full cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from longpress.analysis.stats.multiple_testing import exceeds
from longpress.analysis.tables.costs import NOTE, Grid
from longpress.analysis.tables.layout import SIGNIFICANT, Line, View

ROTATED_FROM = 8
"""Columns of scores from which on their heads are turned and errors of single tasks are left to the caption."""
PAGE = 44
"""Lines that one page holds."""
START = 4
"""Columns before the scores: press, budget, kept, samples per task."""
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


def latex(views: Sequence[View], costs: Mapping[tuple[Any, ...], Grid] | None = None) -> str:
    """The tables of each view: presses by budgets, scores by task, costs; see the module.

    Args:
        views: of a frame of scores.
        costs: heads and rows of the cost table by `View.names`.
    """
    parts = []
    for view in views:
        parts += [*_by_budget(view), *_scores(view)]
        if costs and view.names in costs:
            parts.append(_cost(view.title, *costs[view.names]))
    return HEAD + "\n".join(parts) + TAIL


def escape(text: str) -> str:
    """Text as LaTeX prints it; line breaks become spaces."""
    return "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))


def _by_budget(view: View) -> list[str]:
    """A row per press, a column per budget: the first average, or the only task."""
    lines = sorted((line for line in view.lines if not line.is_baseline), key=_order)
    budgets, presses = (
        list(dict.fromkeys(line.budget for line in lines)),
        sorted({line.press for line in lines}),
    )
    if len(budgets) < 2 or len(presses) < 2:
        return []
    column = view.columns[0]
    cells = {(line.press, line.budget): line.cells.get(column) for line in lines}
    body = []
    for line in view.lines:
        if line.is_baseline:
            whole = rf"\multicolumn{{{len(budgets)}}}{{c}}{{{_cell(line.cells.get(column))}}}"
            body += [rf"{escape(line.press)} & {whole} \\", r"\midrule"]
    body += [
        " & ".join([escape(press), *(_cell(cells.get((press, budget)), mark=True) for budget in budgets)])
        + r" \\"
        for press in presses
    ]
    over = rf" & \multicolumn{{{len(budgets)}}}{{c}}{{{view.budget_heading if view.budget_heading == 'budget' else 'compression ratio'}}} \\"
    heads = [
        over,
        rf"\cmidrule(lr){{2-{1 + len(budgets)}}}",
        " & ".join(["press", *map(escape, budgets)]) + r" \\",
    ]
    caption = f"{escape(view.title)}: {escape(column)} (0 to 100) with standard error; {MARKS}."
    return [_environment(caption, f"l *{{{len(budgets)}}}{{r}}", heads, body)]


def _scores(view: View) -> list[str]:
    """A row per press and budget, a column per task; a table for each budget where one page would not hold them."""
    tasks = [column for column in view.columns if column not in view.averages]
    columns = [*tasks, *view.averages]
    lines = sorted(view.lines, key=_order)
    blocks: dict[str, list[Line]] = {}
    for line in lines:
        blocks.setdefault(line.budget, []).append(line)
    full = blocks.pop("", [])
    pages = [list(blocks.values())] if len(lines) <= PAGE else [[block] for block in blocks.values()]
    many = len(columns) >= ROTATED_FROM
    names = [rf"\rotatebox{{70}}{{{escape(column)}}}" if many else escape(column) for column in columns]
    heads = [
        *_grouped(view, tasks),
        " & ".join(["press", view.budget_heading, "kept", "$n$", *names]) + r" \\",
    ]
    rules = f"ll rr *{{{len(tasks)}}}{{r}}" + (f" *{{{len(view.averages)}}}{{r}}" if view.averages else "")
    errors = [
        line.cells[task]["se"]
        for line in lines
        for task in tasks
        if task in line.cells and line.cells[task]["se"] > 0
    ]
    said = f"standard errors of tasks up to {max(errors):.1f}" if many and errors else "with standard errors"
    said = said if errors else "in brackets 95\\,\\% intervals"
    caption = f"{escape(view.title)}. Scores (0 to 100), {said}; kept: measured share of the full cache; $n$: samples per task; {MARKS}."
    tables = []
    for page in pages or [[]]:
        body: list[str] = []
        for block in [full, *page]:
            body += [r"\midrule"] if body and block else []
            for line in block:
                cells = [
                    _cell(
                        line.cells.get(name), error=not many or name in view.averages, mark=bool(line.budget)
                    )
                    for name in columns
                ]
                start = [
                    escape(line.press),
                    escape(line.budget) or "--",
                    escape(line.kept),
                    escape(line.samples),
                ]
                body.append(" & ".join([*start, *cells]) + r" \\")
        tables.append(_environment(caption, rules, heads, body))
    return tables


def _cost(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = [" & ".join(map(escape, row)) + r" \\" for row in rows]
    if len(body) > 1 and rows[0][0].startswith("full cache"):
        body.insert(1, r"\midrule")
    heads = [" & ".join(map(escape, head)) + r" \\"]
    return _environment(f"{escape(title)}: cost. {escape(NOTE)}", f"l *{{{len(head) - 1}}}{{r}}", heads, body)


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


def _grouped(view: View, tasks: Sequence[str]) -> list[str]:
    """The row of group names above the tasks, with rules below the groups."""
    if not view.groups:
        return []
    member = {task: name for name, group in view.groups for task in group}
    cells, rules, at = [""] * START, [], 0
    while at < len(tasks):
        name = member.get(tasks[at], "")
        size = 1
        while name and at + size < len(tasks) and member.get(tasks[at + size]) == name:
            size += 1
        cells.append(rf"\multicolumn{{{size}}}{{c}}{{{escape(name)}}}" if name else "")
        if name:
            rules.append(rf"\cmidrule(lr){{{at + START + 1}-{at + START + size}}}")
        at += size
    cells += [""] * len(view.averages)
    return [" & ".join(cells) + r" \\", " ".join(rules)]


def _order(line: Line) -> tuple[bool, int, float, str]:
    """The full cache, then ratios rising, then tokens falling, then thresholds falling; presses by name within each."""
    if line.is_baseline:
        return False, 0, 0.0, ""
    try:
        return True, 0, float(line.budget), line.press
    except ValueError:
        first, *_, last = line.budget.split(" ") if " " in line.budget else ("", "inf")
        return True, 1 if first.isdigit() else 2, -float(first if first.isdigit() else last), line.press


def _cell(row: Mapping[str, Any] | None, *, error: bool = True, mark: bool = False) -> str:
    """A score, bold where significantly best; its error, or the interval where that says nothing; marks."""
    if row is None or math.isnan(row["score"]):
        return "--"
    score = f"{row['score']:.1f}"
    if not math.isnan(row["p_lead"]) and row["p_lead"] < SIGNIFICANT and row["lead"] > 0:
        score = rf"\textbf{{{score}}}"
    if error and row["se"] > 0:
        score += rf"{{\scriptsize$\pm${row['se']:.1f}}}"
    elif error:
        score += rf"{{\scriptsize\,[{row['ci_low']:.1f}, {row['ci_high']:.1f}]}}"
    more = mark and exceeds(row["kept_fraction"], row["compression_ratio"])
    marks = (
        ("*" if mark and row["p_holm"] < SIGNIFICANT else "")
        + (r"\ddagger" if more else "")
        + (r"\dagger" if row["n_failed"] else "")
    )
    return score + (f"$^{{{marks}}}$" if marks else "")
