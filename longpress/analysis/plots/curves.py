"""Score, and fidelity, against what is kept of the cache: a panel per task or measure, a line per press.

Lines differ by marker and dash, so that they can be told apart in grey; of many presses the `TOP` best are
named and the rest drawn in grey, which the title states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from longpress.analysis.records import BASELINE, FIDELITY
from longpress.analysis.tables.averages import headline
from longpress.analysis.tables.row_keys import row_labels

TOP = 8
"""So many presses are drawn with a name."""
BANDS = 3
"""So many of the best presses have a band."""
MARKERS = "osD^vPX*"
"""Signs of the named presses, by place."""
DASHES = ("-", "--", "-.", ":")
"""Dashes of the named presses, by place, again and again."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#882255")
"""Colours of the named presses, by place; they stay distinct without red or green."""


def ranked(part: pd.DataFrame, column: str) -> list[str]:
    """Labels of the presses, best first.

    By the mean of their scores in a column over their budgets, then by name; those without a score last.
    """
    rows = part[part["press"] != BASELINE]
    means = rows[rows["task"] == column].groupby("label")["score"].mean().dropna()
    return sorted(rows["label"].unique(), key=lambda label: (-float(means.get(label, -math.inf)), label))


def score_curves(part: pd.DataFrame, columns: Sequence[str], ranking: Sequence[str], title: str) -> Any:
    """Scores against kept fraction, a panel per column of a table, with one legend below all of them.

    Args:
        part: entries of one table, with a column `label`.
        columns: averages and tasks.
        ranking: labels of the presses, best first.
        title: of the figure.
    """
    from matplotlib.figure import Figure  # only here: the extra is optional

    wide = min(4, len(columns))
    high = math.ceil(len(columns) / wide)
    size = (7, 4.8) if len(columns) == 1 else (3.1 * wide + 0.5, 2.6 * high + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(high, wide, squeeze=False)
    for axes in grid.flat[len(columns) :]:
        axes.set_axis_off()
    for axes, column in zip(grid.flat, columns, strict=False):
        _panel(axes, part[part["task"] == column], ranking)
        axes.set_title(column, fontsize=9)
        axes.set_xlabel("kept fraction of the cache", fontsize=8)  # not supxlabel: it is laid over the legend

    # what the title says besides
    in_grey = len(ranking) - TOP
    if in_grey > 0:
        title += (
            f"\nthe {TOP} best of {len(ranking)} presses on {columns[0]} by mean over budgets are named; "
            f"{in_grey} in grey"
        )
    if len(ranking) > BANDS:
        title += f"\nbands: 95 % intervals of the {BANDS} best and of the full cache"
    figure.suptitle(title, fontsize=10)
    figure.supylabel("score (0 to 100)", fontsize=9)
    _legend(figure, list(grid.flat), ranking)
    return figure


def fidelity_curves(frame: pd.DataFrame, title: str) -> Any:
    """Fidelity against kept fraction, averaged over the tasks of one table, a panel per measure.

    Named are the presses of least divergence.
    """
    from matplotlib.figure import Figure  # only here: the extra is optional

    column = headline(frame)
    part = frame[frame["task"] == column].rename(columns={"value": "score"})
    part = part.assign(label=row_labels(part))
    divergence = part[part["measure"] == "answer_kl"]
    ranking = ranked(divergence.assign(score=-divergence["score"]), column)

    # what agrees with itself does so without error
    exact = (part["press"] == BASELINE) & ~part["measure"].str.endswith("nll")
    part.loc[exact, "ci_low"] = part.loc[exact, "ci_high"] = part["score"]

    # above each other the same measure along both texts
    figure = Figure(figsize=(9.8, 6.6), layout="constrained")
    measures = sorted(FIDELITY, key=lambda name: name.split("_")[::-1])
    for axes, measure in zip(figure.subplots(2, 3).T.flat, measures, strict=True):
        rows = part[part["measure"] == measure]
        _panel(axes, rows, ranking)
        axes.set_ylim(*((-0.03, 1.03) if FIDELITY[measure] else (0, 1.05 * rows["score"].max() or 1)))
        above = rows.loc[rows["score"] > 0, "score"]
        is_spread = len(above) and above.max() > 20 * above.min()  # over orders of magnitude
        if measure.endswith("kl") and is_spread:
            axes.set_yscale("log")
            axes.set_ylim(above.min() / 1.5, 1.5 * above.max())
        unit = "share of tokens" if FIDELITY[measure] else "nats per token"
        axes.set_title(f"{measure} ({unit})", fontsize=9)
        axes.set_xlabel("kept fraction of the cache", fontsize=8)
    figure.suptitle(f"{title}, {column}: how far presses move the model along known answers", fontsize=10)
    _legend(figure, figure.axes[:1], ranking)
    return figure


def _panel(axes: Any, rows: pd.DataFrame, ranking: Sequence[str]) -> None:
    """The full cache as a dashed line with its interval, and a line per press, the best on top."""
    full = rows[(rows["press"] == BASELINE) & rows["score"].notna()]
    if len(full):
        dashed = {"color": "black", "linewidth": 1, "linestyle": (0, (6, 2))}
        axes.axhline(full["score"].iloc[0], label="full cache", zorder=1, **dashed)
        axes.axhspan(full["ci_low"].iloc[0], full["ci_high"].iloc[0], color="black", alpha=0.06, linewidth=0)

    known = rows[rows["press"] != BASELINE].dropna(subset=["score", "kept_fraction"])
    curves = {label: curve.sort_values("kept_fraction") for label, curve in known.groupby("label")}
    for place, label in reversed(list(enumerate(ranking))):
        curve = curves.get(label)
        if curve is None:
            continue
        x, y = curve["kept_fraction"], curve["score"]
        if place >= TOP:
            axes.plot(x, y, color="0.8", linewidth=0.8, marker=".", markersize=3, zorder=0)
            continue
        style = {
            "color": COLOURS[place],
            "marker": MARKERS[place],
            "linestyle": DASHES[place % len(DASHES)],
            "linewidth": 1.3,
            # the worse, the smaller and the higher: equal points stay visible
            "markersize": 8 - 0.6 * place,
            "zorder": 3 + place,
        }
        axes.plot(x, y, label=label, **style)
        if place < BANDS:
            axes.fill_between(
                x, curve["ci_low"], curve["ci_high"], color=COLOURS[place], alpha=0.1, linewidth=0
            )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-3, 103)
    axes.grid(color="0.92", linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, panels: Sequence[Any], ranking: Sequence[str]) -> None:
    """One legend below all panels, in the order of the ranking; each label once."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    shown = [label for label in ("full cache", *ranking) if label in handles]
    figure.legend(
        [handles[label] for label in shown],
        shown,
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
