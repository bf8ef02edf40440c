"""Presses ranked at each budget, with intervals: which one to choose, and how sure that is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd

from longpress.analysis.records import BASELINE
from longpress.analysis.stats.significance import SIGNIFICANT
from longpress.analysis.tables.row_keys import exceeds, is_ratio, removed, row_budgets

PANELS = 4
"""So many budgets are drawn at most: the middle ones."""
PRESSES = 60
"""So many presses are drawn at most: the best at the middle budget."""


def ranking(part: pd.DataFrame, column: str, title: str) -> Any:
    """A panel per budget with a row per press, best at the middle budget on top.

    Filled points cannot be told apart from the best of their budget (paired differences, p ≥ 0.05 after
    Holm's adjustment); hollow ones lie behind it. Diamonds keep more than the budget, as written beside them,
    and do not count as best. The full cache is a dashed line with its interval.

    Args:
        part: entries of one table, with a column `label`.
        column: the average or task to rank by.
        title: of the figure.

    Returns:
        The figure; None where no press has a score.
    """
    from matplotlib.figure import Figure  # only here: the extra is optional

    scored = part[(part["task"] == column) & part["score"].notna()]
    full, rows = scored[scored["press"] == BASELINE], scored[scored["press"] != BASELINE]
    rows = rows.assign(budget=row_budgets(rows))
    budgets = _shown_budgets(rows)
    if not budgets:
        return None

    # presses from top to bottom
    rows = rows[rows["budget"].isin(budgets)]
    middle = "0.5" if "0.5" in budgets else budgets[len(budgets) // 2]
    score = rows[rows["budget"] == middle].set_index("label")["score"]
    order = sorted(rows["label"].unique(), key=lambda label: (-score.get(label, -1.0), label))
    n_presses, order = len(order), order[:PRESSES]
    height = {label: -place for place, label in enumerate(order)}

    figure = Figure(figsize=(2.2 + 2.3 * len(budgets), 1.9 + 0.17 * len(order)), layout="constrained")
    grid = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    for axes, budget in zip(grid, budgets, strict=True):
        here = rows[(rows["budget"] == budget) & rows["label"].isin(height)]
        _panel(axes, full, here, height)
        counts = sorted(set(here["n"]))
        n = " or ".join(map(str, counts)) if len(counts) < 4 else f"{counts[0]} to {counts[-1]}"
        axes.set_title(f"{removed(budget)} (n = {n})", fontsize=9)
        axes.set_xlabel(f"{column}, 0 to 100", fontsize=8)
    grid[0].set_yticks(list(height.values()), list(height), fontsize=8)
    grid[0].set_ylim(-len(order) + 0.3, 0.7)

    # what the signs mean, wrapped to the width of the figure
    notes = [
        "filled: not distinguishable from the best of its panel",
        "hollow: behind it (paired, Holm)",
        "dashed: full cache",
    ]
    if any(map(exceeds, rows["kept_fraction"], rows["compression_ratio"])):
        notes.append("diamonds: keep more than the budget")
    if n_presses > PRESSES:
        notes.append(f"the {PRESSES} best of {n_presses} presses")
    wide = int(13 * figure.get_figwidth())
    above = textwrap.fill(f"{title}, 95 % intervals", wide)
    figure.suptitle(f"{above}\n{textwrap.fill('; '.join(notes), wide)}", fontsize=8.5)
    return figure


def _shown_budgets(rows: pd.DataFrame) -> list[str]:
    """The middle ones of the budgets that several presses have, or of all where none has; ratios first."""
    n_presses = rows["budget"].value_counts()
    known = sorted(n_presses.index, key=lambda budget: (not is_ratio(budget), budget))
    budgets: Sequence[str] = [budget for budget in known if n_presses[budget] > 1] or known
    surplus = max(0, len(budgets) - PANELS)
    return list(budgets[surplus // 2 : len(budgets) - (surplus + 1) // 2])


def _panel(axes: Any, full: pd.DataFrame, rows: pd.DataFrame, height: dict[str, int]) -> None:
    """One budget: the full cache, and a point with its interval for each press, at its height."""
    for _, row in full.iterrows():
        axes.axvline(row["score"], color="black", linewidth=1, linestyle=(0, (6, 2)), zorder=1)
        axes.axvspan(row["ci_low"], row["ci_high"], color="black", alpha=0.07, linewidth=0, zorder=0)
    for _, row in rows.iterrows():
        y, is_behind = height[row["label"]], row["p_behind"] < SIGNIFICANT
        keeps_more = exceeds(row["kept_fraction"], row["compression_ratio"])
        shade = "0.55" if is_behind else "black"
        axes.plot([row["ci_low"], row["ci_high"]], [y, y], color=shade, linewidth=1.2, zorder=2)
        axes.plot(
            row["score"],
            y,
            "D" if keeps_more else "o",
            color=shade,
            markerfacecolor="white" if is_behind else shade,
            markersize=4.5,
            zorder=3,
        )
        if keeps_more:  # on the side where there is space
            at_left = row["ci_low"] > 30
            axes.text(
                0 if at_left else 100,
                y,
                f"keeps {100 * row['kept_fraction']:.0f} %",
                fontsize=7,
                va="center",
                ha="left" if at_left else "right",
                color="0.3",
            )
    axes.set_xlim(-3, 103)
    axes.grid(axis="both", color="0.92", linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
