"""Presses ranked at each budget, with intervals: which one to choose, and how sure that is."""

from __future__ import annotations

import textwrap
from typing import Any

import pandas as pd

from longpress.analysis.records import BASELINE
from longpress.analysis.stats.multiple_testing import exceeds
from longpress.analysis.tables.layout import SIGNIFICANT, line_budget

PANELS = 4
"""Budgets drawn, at most: the middle ones."""
LINES = 60
"""Presses drawn, at most: the best at the middle budget."""


def ranking(part: pd.DataFrame, column: str, title: str) -> Any:
    """A panel per budget with a line per press, best at the middle budget on top.

    Filled points cannot be told apart from the best of their budget (paired differences, p ≥ 0.05 after
    Holm's adjustment); hollow ones lie behind it. Diamonds keep more than the budget, as written beside them,
    and do not count as best. The full cache is a dashed line with its interval.

    Args:
        part: rows of one table, with a column `label`.
        column: the average or task to rank by.
        title: of the figure.

    Returns:
        The figure; None where no press has a score.
    """
    from matplotlib.figure import Figure  # only here: the extra is optional

    rows = part[(part["task"] == column) & part["score"].notna()]
    full = rows[rows["press"] == BASELINE]
    rows = rows[rows["press"] != BASELINE]
    budgets = [
        line_budget(*key)
        for key in zip(
            rows["press"], rows["compression_ratio"], rows["budget_tokens"], rows["threshold"], strict=True
        )
    ]
    rows = rows.assign(budget=budgets)
    lines = rows["budget"].value_counts()
    known = sorted(lines.index, key=lambda text: (" " in text, text))
    shared = [budget for budget in known if lines[budget] > 1] or known
    if not shared:
        return None
    surplus = max(0, len(shared) - PANELS)
    shared = shared[surplus // 2 : len(shared) - (surplus + 1) // 2]
    middle = "0.5" if "0.5" in shared else shared[len(shared) // 2]
    rows = rows[rows["budget"].isin(shared)]
    at = rows[rows["budget"] == middle].set_index("label")["score"]
    order = sorted(rows["label"].unique(), key=lambda label: (-at.get(label, -1.0), label))
    cut, order = len(order) - LINES, order[:LINES]
    place = {label: -number for number, label in enumerate(order)}
    figure = Figure(figsize=(2.2 + 2.3 * len(shared), 1.9 + 0.17 * len(order)), layout="constrained")
    grid = figure.subplots(1, len(shared), sharey=True, squeeze=False)[0]
    for axes, budget in zip(grid, shared, strict=True):
        here = rows[(rows["budget"] == budget) & rows["label"].isin(place)]
        for _, row in full.iterrows():
            axes.axvline(row["score"], color="black", linewidth=1, linestyle=(0, (6, 2)), zorder=1)
            axes.axvspan(row["ci_low"], row["ci_high"], color="black", alpha=0.07, linewidth=0, zorder=0)
        for _, row in here.iterrows():
            y, behind = place[row["label"]], row["p_behind"] < SIGNIFICANT
            shade = "0.55" if behind else "black"
            axes.plot([row["ci_low"], row["ci_high"]], [y, y], color=shade, linewidth=1.2, zorder=2)
            more = exceeds(row["kept_fraction"], row["compression_ratio"])
            face = "white" if behind else shade
            axes.plot(
                row["score"],
                y,
                "D" if more else "o",
                color=shade,
                markerfacecolor=face,
                markersize=4.5,
                zorder=3,
            )
            if more:
                left = row["ci_low"] > 30
                text = f"keeps {100 * row['kept_fraction']:.0f} %"
                axes.text(
                    0 if left else 100,
                    y,
                    text,
                    fontsize=7,
                    va="center",
                    ha="left" if left else "right",
                    color="0.3",
                )
        counts = sorted(set(here["n"]))
        said = " or ".join(map(str, counts)) if len(counts) < 4 else f"{counts[0]} to {counts[-1]}"
        axes.set_title(
            (budget if " " in budget else f"{100 * float(budget):g} % removed") + f" (n = {said})", fontsize=9
        )
        axes.set_xlim(-3, 103)
        axes.grid(axis="both", color="0.92", linewidth=0.6)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(f"{column}, 0 to 100", fontsize=8)
    grid[0].set_yticks(list(place.values()), list(place), fontsize=8)
    grid[0].set_ylim(-len(order) + 0.3, 0.7)
    notes = [
        "filled: not distinguishable from the best of its panel",
        "hollow: behind it (paired, Holm)",
        "dashed: full cache",
    ]
    if any(map(exceeds, rows["kept_fraction"], rows["compression_ratio"])):
        notes.append("diamonds: keep more than the budget")
    if cut > 0:
        notes.append(f"the {LINES} best of {cut + LINES} presses")
    wide = int(13 * figure.get_figwidth())
    figure.suptitle(
        textwrap.fill(f"{title}, 95 % intervals", wide) + "\n" + textwrap.fill("; ".join(notes), wide),
        fontsize=8.5,
    )
    return figure
