r"""Tables for papers: LaTeX with booktabs, the full cache first, then one block per budget.

Needs `\usepackage{booktabs}` and `\usepackage{graphicx}` (rotated heads, tables fitted to the line). A number is bold only where it is
the best of its block and the paired difference to the runner-up is significant after Holm's adjustment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation.views import Line, View

ROTATED_FROM = 8
"""Columns of scores from which on their heads are turned."""
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


def latex(views: Sequence[View]) -> str:
    """One `table` environment per view; see the module for the packages it needs."""
    head = (
        "% \\usepackage{booktabs} \\usepackage{graphicx}\n% Scores 0 to 100 with standard errors; bold: significantly best of its ratio.\n"
    )
    return head + "\n".join(_table(view) for view in views)


def escape(text: str) -> str:
    """Text as LaTeX prints it; line breaks become spaces."""
    return "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))


def _table(view: View) -> str:
    tasks = [column for column in view.columns if column not in view.averages]
    columns = [*tasks, *view.averages]
    body: list[str] = []
    block: str | None = None
    for line in sorted(view.lines, key=_order):
        if block is not None and line.budget != block:
            body.append(r"\midrule")
        block = line.budget
        start = [escape(line.press), escape(line.budget) or "--", escape(line.kept)]
        body.append(" & ".join([*start, *(_cell(line.cells.get(column)) for column in columns)]) + r" \\")
    rules = f"ll r *{{{len(tasks)}}}{{r}}" + (f" *{{{len(view.averages)}}}{{r}}" if view.averages else "")
    many = len(columns) >= ROTATED_FROM
    names = (rf"\rotatebox{{70}}{{{escape(column)}}}" if many else escape(column) for column in columns)
    heads = ["press", view.budget_heading, "kept", *names]
    rows = [r"\toprule", *_grouped(view, tasks), " & ".join(heads) + r" \\", r"\midrule", *body, r"\bottomrule"]
    tabular = "\n".join([rf"\begin{{tabular}}{{{rules}}}", *rows, r"\end{tabular}"])
    fitted = f"\\resizebox{{\\linewidth}}{{!}}{{%\n{tabular}%\n}}" if many else tabular
    caption = f"{escape(view.title)}. Scores (0 to 100) with standard errors; kept: measured share of cache entries."
    return "\n".join([r"\begin{table}[t]", r"\centering", r"\small", rf"\caption{{{caption}}}", fitted, r"\end{table}", ""])


def _grouped(view: View, tasks: Sequence[str]) -> list[str]:
    """The row of group names above the tasks, with rules below the groups."""
    if not view.groups:
        return []
    member = {task: name for name, group in view.groups for task in group}
    cells, rules, at = ["", "", ""], [], 0
    while at < len(tasks):
        name = member.get(tasks[at], "")
        size = 1
        while name and at + size < len(tasks) and member.get(tasks[at + size]) == name:
            size += 1
        cells.append(rf"\multicolumn{{{size}}}{{c}}{{{escape(name)}}}" if name else "")
        if name:
            rules.append(rf"\cmidrule(lr){{{at + 4}-{at + 3 + size}}}")
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


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or math.isnan(row["score"]):
        return "--"
    score = f"{row['score']:.1f}"
    if not math.isnan(row["p_lead"]) and row["p_lead"] < 0.05 and row["lead"] > 0:
        score = rf"\textbf{{{score}}}"
    error = rf"{{\scriptsize$\pm${row['se']:.1f}}}" if row["se"] > 0 else rf"{{\scriptsize[{row['ci_low']:.1f}, {row['ci_high']:.1f}]}}"
    return score + error + (r"$^\dagger$" if row["n_failed"] else "")
