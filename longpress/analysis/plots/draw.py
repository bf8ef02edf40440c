"""Plots from records: which are drawn of each table, and their files.

For each table k, as .png and .pdf:

- `ranking-<k>`: presses ranked at each budget, with intervals, and which cannot be told apart from the best.
- `curves-<k>`: score against measured kept fraction, 95 % bands, full-cache line; the average first, then a
  panel per task.
- `pareto-<k>`: score against bytes; the front is named.
- `fidelity-<k>`: how far presses move the model, against kept fraction, where it was measured.
- `heatmap-<k>-<budget>`: length × depth per press, where the suite hides needles at stated depths.

They need matplotlib (extra `plots`), which is imported only where something is drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from longpress.analysis.plots.curves import fidelity_curves, ranked, score_curves
from longpress.analysis.plots.heatmap import heat_maps
from longpress.analysis.plots.pareto import pareto
from longpress.analysis.plots.ranking import ranking
from longpress.analysis.records import Record
from longpress.analysis.tables.averages import averages_of
from longpress.analysis.tables.row_keys import TableKey, row_labels, tables_in


def available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(frame: pd.DataFrame, records: Sequence[Record], folder: Path, moved: pd.DataFrame) -> list[Path]:
    """Write every plot into a folder.

    Args:
        frame: of `scores`.
        records: those it was made of.
        folder: that is there already.
        moved: of `fidelity`; empty where it was not measured.

    Returns:
        The files written.

    Raises:
        ValueError: matplotlib is not installed.
    """
    if not available():
        raise ValueError("plots need matplotlib; install it with: pip install 'longpress[plots]'")
    needles: dict[TableKey, list[Record]] = defaultdict(list)
    for record in records:
        if "depth" in record.data:
            needles[TableKey.of(record)].append(record)
    fidelity_of = dict(tables_in(moved))

    written: list[Path] = []
    for number, (key, part) in enumerate(tables_in(frame), start=1):
        title, suite = f"{key.benchmark} on {key.model}", averages_of(part)
        columns = [*suite.shown, *suite.tasks]
        part = part.assign(label=row_labels(part))
        figures = {
            f"ranking-{number}": ranking(part, columns[0], title),
            f"curves-{number}": score_curves(part, columns, ranked(part, columns[0]), title),
            f"pareto-{number}": pareto(part, columns[0], title),
        }
        if key in fidelity_of:
            figures[f"fidelity-{number}"] = fidelity_curves(fidelity_of[key], title)
        for budget, figure in heat_maps(needles[key], title).items():
            figures[f"heatmap-{number}-{budget.replace(' ', '_')}"] = figure
        for stem, figure in figures.items():
            if figure is not None:
                written += _save(figure, folder / stem)
    return written


def _save(figure: Any, stem: Path) -> list[Path]:
    """Write a figure as picture and as drawing; equal figures give equal files.

    Pictures have 256 colours, which nobody sees and which make them a third as large.
    """
    from PIL import Image  # what matplotlib writes pictures with

    _show_as_written(figure)
    picture, drawing = (stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "pdf"))
    figure.savefig(picture, dpi=160)
    figure.savefig(drawing, metadata={"CreationDate": None})
    with Image.open(picture) as drawn:
        fewer = drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    fewer.save(picture, optimize=True)
    return [picture, drawing]


def _show_as_written(figure: Any) -> None:
    """Show names as they are: matplotlib would read what stands between two `$` as mathematics.

    The numbers at logarithmic axes are mathematics, and stay so.
    """
    from matplotlib.text import Text

    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    powers = {
        id(text) for axis in axes if axis.get_scale() == "log" for text in axis.get_ticklabels(which="both")
    }
    for text in figure.findobj(Text):
        if id(text) not in powers:
            text.set_parse_math(False)
