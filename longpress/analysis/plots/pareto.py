"""Score against bytes, and the front: what no other press beats in both."""

from __future__ import annotations

from typing import Any

import pandas as pd

from longpress.analysis.records import BASELINE
from longpress.analysis.tables.layout import line_budget


def front(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other row beats in `cache_bytes` (fewer) and `score` (more) together, by rising bytes.

    Bytes count as equal to a percent of the largest: budgets are whole numbers of entries, rounded by presses
    in different ways.
    """
    best, kept = float("-inf"), []
    size = (rows["cache_bytes"] / rows["cache_bytes"].max()).round(2)
    for index, row in (
        rows.assign(size=size).sort_values(["size", "score"], ascending=[True, False]).iterrows()
    ):
        if row["score"] > best:
            best = row["score"]
            kept.append(index)
    return rows.loc[kept]


def pareto(part: pd.DataFrame, column: str, title: str) -> Any:
    """Every press and budget as a point, the front as steps with names and 95 % intervals, the full cache as a star.

    Args:
        part: rows of one table, with a column `label`.
        column: the average or task.
        title: of the figure.

    Returns:
        The figure; None where nothing has a score.
    """
    from matplotlib.figure import Figure  # only here: the extra is optional

    rows = part[(part["task"] == column) & part["score"].notna() & part["cache_bytes"].notna()].reset_index(
        drop=True
    )
    if not len(rows):
        return None
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    best = front(rows)
    names = [
        row["label"] if row["press"] == BASELINE else f"{row['label']} {_budget(row)}".strip()
        for _, row in best.iterrows()
    ]
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
    for number, (at, score, name) in enumerate(zip(x, best["score"], names, strict=True), start=1):
        axes.annotate(
            f"{number}", (at, score), textcoords="offset points", xytext=(-5, 5), ha="right", fontsize=8
        )
        axes.plot([], [], " ", label=f"{number}: {'full cache' if name == BASELINE else name}")
    axes.set_xlim(0, rows["full_cache_bytes"].max() / 2**20 * 1.04)
    axes.set_ylim(-3, 103)
    axes.grid(color="0.92", linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("cache of the context, mean (MiB)", fontsize=9)
    axes.set_ylabel(f"{column} (0 to 100)", fontsize=9)
    axes.set_title(
        f"{title}: the front is what no press\nbeats in both score and bytes (of means; intervals may overlap)",
        fontsize=9,
    )
    known = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = sorted(
        known, key=lambda label: label[0].isdigit()
    )  # what signs mean first, then who stands on the front
    figure.legend(
        [known[label] for label in order], order, loc="outside right upper", fontsize=8, frameon=False
    )
    return figure


def _budget(row: pd.Series) -> str:
    return line_budget(row["press"], row["compression_ratio"], row["budget_tokens"], row["threshold"])
