"""Plots from records alone: `python -m longpress.analysis.plots.draw DIR…` needs no model, but matplotlib (extra `plots`).

For each table k, into the first folder, as .png and .pdf:

- `ranking-<k>`: presses ranked at each budget, with intervals, and which cannot be told apart from the best.
- `curves-<k>`: score against measured kept fraction, 95 % bands, full-cache line; the average first, then a
  panel per task.
- `pareto-<k>`: score against bytes; the front is named.
- `fidelity-<k>`: how far presses move the model, against kept fraction, where it was measured.
- `heatmap-<k>-<budget>`: length × depth per press, where the suite hides needles at stated depths.

Lines differ by marker and dash, so that they can be told apart in grey; of many presses the `TOP` best are
named and the rest drawn in grey, which the title states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from longpress.analysis.plots.heatmap import heat_maps
from longpress.analysis.plots.pareto import pareto
from longpress.analysis.plots.ranking import ranking
from longpress.analysis.records import BASELINE, FIDELITY, Record
from longpress.analysis.result_io import read
from longpress.analysis.tables.fidelity import fidelity, shown_task
from longpress.analysis.tables.layout import line_label
from longpress.analysis.tables.scores import TABLE, averages, scores, table_of
from longpress.arguments import Parser, command, exit_code

TOP = 8
"""Presses drawn with a name,"""
BANDS = 3
"""of which the best have a band."""
_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", "-.", ":")
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#000000",
    "#882255",
)  # distinct without red or green


def available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(
    frame: pd.DataFrame, records: Sequence[Record], folder: Path, moved: pd.DataFrame | None = None
) -> list[Path]:
    """Write every plot of records, of their frame of `scores` and of theirs of `fidelity` (made here if it is not given) into `folder`.

    Returns:
        The files written.

    Raises:
        ValueError: matplotlib is not installed.
    """
    if not available():
        raise ValueError("plots need matplotlib; install it with: pip install 'longpress[plots]'")
    written: list[Path] = []
    of_table: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if "depth" in record.data:
            of_table.setdefault(table_of(record), []).append(record)
    of_names = dict(iter((fidelity(records) if moved is None else moved).groupby(list(TABLE), sort=False)))
    for number, (names, part) in enumerate(frame.groupby(list(TABLE), sort=False), start=1):
        keys = dict(zip(TABLE, names, strict=True))
        title = f"{keys['benchmark']} on {keys['model']}"
        tasks, shares = averages(str(keys["benchmark"]), part.loc[~part["aggregate"], "task"].unique())
        shown = [*(name for name in shares if len(tasks) > 1), *tasks]
        part = part.assign(label=_labels(part))
        figures = {
            "ranking": ranking(part, shown[0], title),
            "curves": _curves(part, shown, ranked(part, shown[0]), title),
            "pareto": pareto(part, shown[0], title),
            "fidelity": fidelity_curves(of_names[names], title) if names in of_names else None,
        }
        maps = heat_maps(of_table.get(names, ()), title)
        figures |= {f"heatmap-{budget.replace(' ', '_')}": figure for budget, figure in maps.items()}
        for name, figure in figures.items():
            if figure is not None:
                stem, *budget = name.split("-")
                written += _save(figure, folder / "-".join([stem, str(number), *budget]))
    return written


def fidelity_curves(frame: pd.DataFrame, title: str) -> Any:
    """The measures of one table of a fidelity frame, averaged over tasks; named are the presses of least divergence."""
    from matplotlib.figure import Figure  # only here: the extra is optional

    task = shown_task(frame)
    part = frame[frame["task"] == task].rename(columns={"value": "score"})
    part = part.assign(label=_labels(part))
    divergence = part[part["measure"] == "answer_kl"]
    order = ranked(divergence.assign(score=-divergence["score"]), task)
    exact = (part["press"] == BASELINE) & ~part["measure"].str.endswith(
        "nll"
    )  # what agrees with itself does so without error
    part.loc[exact, "ci_low"] = part.loc[exact, "ci_high"] = part["score"]
    figure = Figure(figsize=(9.8, 6.6), layout="constrained")
    for axes, measure in zip(
        figure.subplots(2, 3).T.flat, sorted(FIDELITY, key=lambda name: name.split("_")[::-1]), strict=True
    ):
        rows = part[part["measure"] == measure]
        _panel(axes, rows, order)
        axes.set_ylim(*((-0.03, 1.03) if FIDELITY[measure] else (0, 1.05 * rows["score"].max() or 1)))
        above = rows.loc[rows["score"] > 0, "score"]
        if (
            measure.endswith("kl") and len(above) and above.max() > 20 * above.min()
        ):  # orders of magnitude apart
            axes.set_yscale("log")
            axes.set_ylim(above.min() / 1.5, 1.5 * above.max())
        axes.set_title(
            f"{measure} ({'share of tokens' if FIDELITY[measure] else 'nats per token'})", fontsize=9
        )
        axes.set_xlabel("kept fraction of the cache", fontsize=8)
    figure.suptitle(f"{title}, {task}: how far presses move the model along known answers", fontsize=10)
    named = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
    shown = [label for label in ("full cache", *order) if label in named]
    figure.legend(
        [named[label] for label in shown],
        shown,
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    return figure


def ranked(part: pd.DataFrame, task: str) -> list[str]:
    """Labels of the presses, best mean score on `task` over their budgets first, then by name; those without a score last."""
    rows = part[part["press"] != BASELINE]
    means = rows[rows["task"] == task].groupby("label")["score"].mean()
    return sorted(
        rows["label"].unique(),
        key=lambda label: (-float(means.get(label, math.nan)) if label in means.dropna() else 1.0, label),
    )


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(
        prog="python -m longpress.analysis.plots.draw", description="Draw plots from records; needs no model."
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="results folders; the first receives the plots"
    )
    folders = parser.parse_args(arguments).folders
    records = read(folders)
    drawn = draw(scores(records), records, folders[0])
    print(*drawn, sep="\n")


def _labels(part: pd.DataFrame) -> list[str]:
    """As in tables: press, its differing parameters, whether it saw the question where only some did, and a prefill of its own."""
    told = part["query_aware"].nunique() > 1
    rows = zip(part["press"], part["press_parameters"], part["query_aware"], part["prefill"], strict=True)
    return [line_label(name, more, told and aware, prefill) for name, more, aware, prefill in rows]


def _curves(part: pd.DataFrame, panels: Sequence[str], ranking: Sequence[str], title: str) -> Any:
    """A panel per task, with one legend below all of them."""
    from matplotlib.figure import Figure  # only here: the extra is optional

    columns = min(4, len(panels))
    height = math.ceil(len(panels) / columns)
    single = len(panels) == 1
    figure = Figure(
        figsize=(7, 4.8) if single else (3.1 * columns + 0.5, 2.6 * height + 1.6), layout="constrained"
    )
    grid = figure.subplots(height, columns, squeeze=False)
    for at, axes in enumerate(grid.flat):
        if at >= len(panels):
            axes.set_axis_off()
            continue
        _panel(axes, part[part["task"] == panels[at]], ranking)
        axes.set_title(panels[at], fontsize=9)
    rest = len(ranking) - TOP
    note = (
        f"\nthe {TOP} best of {len(ranking)} presses on {panels[0]} by mean over budgets are named; {rest} in grey"
        if rest > 0
        else ""
    )
    bands = (
        f"\nbands: 95 % intervals of the {BANDS} best and of the full cache" if len(ranking) > BANDS else ""
    )
    figure.suptitle(title + note + bands, fontsize=10)
    for axes in grid.flat[: len(panels)]:
        axes.set_xlabel("kept fraction of the cache", fontsize=8)  # not supxlabel: it is laid over the legend
    figure.supylabel("score (0 to 100)", fontsize=9)
    known: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    order = [label for label in ("full cache", *ranking) if label in known]
    figure.legend(
        [known[label] for label in order],
        order,
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    return figure


def _panel(axes: Any, rows: pd.DataFrame, ranking: Sequence[str]) -> None:
    full = rows[(rows["press"] == BASELINE) & rows["score"].notna()]
    if len(full):
        axes.axhline(
            full["score"].iloc[0],
            color="black",
            linewidth=1,
            linestyle=(0, (6, 2)),
            label="full cache",
            zorder=1,
        )
        axes.axhspan(full["ci_low"].iloc[0], full["ci_high"].iloc[0], color="black", alpha=0.06, linewidth=0)
    curves = {label: curve for label, curve in rows[rows["press"] != BASELINE].groupby("label")}
    for place, label in reversed(list(enumerate(ranking))):
        curve = curves.get(label)
        curve = (
            None
            if curve is None
            else curve.dropna(subset=["score", "kept_fraction"]).sort_values("kept_fraction")
        )
        if curve is None or not len(curve):
            continue
        x, y = curve["kept_fraction"], curve["score"]
        if place >= TOP:
            axes.plot(x, y, color="0.8", linewidth=0.8, marker=".", markersize=3, zorder=0)
            continue
        style = {
            "color": _COLOURS[place],
            "marker": _MARKERS[place],
            "linestyle": _DASHES[place % 4],
            "linewidth": 1.3,
        }
        style |= {
            "markersize": 8 - 0.6 * place,
            "zorder": 3 + place,
        }  # the worse, the smaller and the higher: equal points stay visible
        axes.plot(x, y, label=label, **style)
        if place < BANDS:
            axes.fill_between(
                x, curve["ci_low"], curve["ci_high"], color=_COLOURS[place], alpha=0.1, linewidth=0
            )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-3, 103)
    axes.grid(color="0.92", linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, stem: Path) -> list[Path]:
    """Equal plots give equal files. Pictures have 256 colours, which nobody sees and which make them a third as large."""
    from PIL import Image  # what matplotlib writes pictures with

    picture, drawing = (stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "pdf"))
    figure.savefig(picture, dpi=160)
    figure.savefig(drawing, metadata={"CreationDate": None})
    with Image.open(picture) as drawn:
        fewer = drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    fewer.save(picture, optimize=True)
    return [picture, drawing]


if __name__ == "__main__":
    command(main)
