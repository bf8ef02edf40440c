"""Score against bytes, and the front: what no other press beats in both."""

from __future__ import annotations

from typing import Any

import pandas as pd

from longpress.analysis.records import BASELINE
from longpress.analysis.tables.row_keys import row_budgets


def front(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other row beats in `cache_bytes` (fewer) and `score` (more) together, by rising bytes.

    Bytes count as equal to a percent of the largest: budgets are whole numbers of entries, rounded by presses
    in different ways.
    """
    best, kept = float("-inf"), []
    size = (rows["cache_bytes"] / rows["cache_bytes"].max()).round(2)
    by_size = rows.assign(size=size).sort_values(["size", "score"], ascending=[True, False])
    for index, row in by_size.iterrows():
        if row["score"] > best:
            best = row["score"]
            kept.append(index)
    return rows.loc[kept]


def pareto(part: pd.DataFrame, column: str, title: str) -> Any:
    """Score against bytes: every press and budget as a point, the full cache as a star.

    The front is drawn as steps, with names and 95 % intervals.

    Args:
        part: entries of one table, with a column `label`.
        column: the average or task.
        title: of the figure.

    Returns:
        The figure; None where nothing has a score.
    """
    from matplotlib.figure import Figure  # only here: the extra is optional

    known = (part["task"] == column) & part["score"].notna() & part["cache_bytes"].notna()
    rows = part[known].reset_index(drop=True)
    if not len(rows):
        return None
    best = front(rows)
    names = [
        f"{label} {budget}".strip() for label, budget in zip(best["label"], row_budgets(best), strict=True)
    ]
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()

    # all points, the front through some of them, and the full cache
    x = best["cache_bytes"] / 2**20
    axes.scatter(
        rows["cache_bytes"] / 2**20,
        rows["score"],
        s=14,
        color="0.7",
        linewidth=0,
        label="press at a budget",
        zorder=1,
    )
    axes.step(
        [*x, rows["full_cache_bytes"].max() / 2**20],
        [*best["score"], best["score"].max()],
        where="post",
        color="black",
        linewidth=1,
    )
    errors = [best["score"] - best["ci_low"], best["ci_high"] - best["score"]]
    axes.errorbar(
        x,
        best["score"],
        yerr=errors,
        fmt="o",
        color="black",
        markersize=5,
        linewidth=1,
        label="front, 95 % interval",
        zorder=3,
    )
    full = rows[rows["press"] == BASELINE]
    axes.scatter(
        full["cache_bytes"] / 2**20,
        full["score"],
        s=90,
        marker="*",
        color="black",
        label="full cache",
        zorder=4,
    )

    # number the front, and name it in the legend
    for number, (size, score, name) in enumerate(zip(x, best["score"], names, strict=True), start=1):
        axes.annotate(
            f"{number}", (size, score), textcoords="offset points", xytext=(-5, 5), ha="right", fontsize=8
        )
        axes.plot([], [], " ", label=f"{number}: {name}")
    axes.set_xlim(0, rows["full_cache_bytes"].max() / 2**20 * 1.04)
    axes.set_ylim(-3, 103)
    axes.grid(color="0.92", linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("cache of the context, mean (MiB)", fontsize=9)
    axes.set_ylabel(f"{column} (0 to 100)", fontsize=9)
    axes.set_title(
        f"{title}: the front is what no press\n"
        "beats in both score and bytes (of means; intervals may overlap)",
        fontsize=9,
    )

    # what signs mean first, then who stands on the front
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = sorted(handles, key=lambda label: label[0].isdigit())
    figure.legend(
        [handles[label] for label in order], order, loc="outside right upper", fontsize=8, frameon=False
    )
    return figure
