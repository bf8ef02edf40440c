"""Needle in a haystack as heat maps: length × depth, a panel per press, from records."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from longpress.analysis.records import BASELINE, Record
from longpress.analysis.tables.layout import line_budget

PANELS = 16
"""Presses drawn per budget, at most: the best; the full cache is one more."""


def heat_maps(records: Iterable[Record], title: str) -> dict[str, Any]:
    """Budget -> figure, of records of one table whose samples state a `depth` (percent) and whose tasks are lengths; else empty.

    A cell is the mean score, 0 to 100, of the samples at that length and depth (rounded to a tenth of the
    text); "–" where there is none. The full cache comes first, then presses by mean. Brightness grows with
    the score, and the number stands in the cell.
    """
    cells: dict[str, dict[str, dict[tuple[int, int], list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for record in records:
        depth = record.data.get("depth")
        if (
            record.score is None
            or not record.task.isdigit()
            or isinstance(depth, bool)
            or not isinstance(depth, int | float)
        ):
            continue
        place = int(record.task), round(depth / 10) * 10
        budget = line_budget(record.press, record.compression_ratio, record.budget_tokens, record.threshold)
        cells[budget][record.press + (" (query-aware)" if record.query_aware else "")][place].append(
            100 * record.score
        )
    full = cells.pop("", {})
    return {
        budget: _figure({**full, **_best(found)}, f"{title}, {_removed(budget)}")
        for budget, found in cells.items()
    }


def _best(
    found: dict[str, dict[tuple[int, int], list[float]]],
) -> dict[str, dict[tuple[int, int], list[float]]]:
    order = sorted(found, key=lambda press: (-_mean(found[press]), press))
    return {press: found[press] for press in order[:PANELS]}


def _removed(budget: str) -> str:
    return budget if " " in budget else f"{100 * float(budget):g} % removed"


def _mean(cells: dict[tuple[int, int], list[float]]) -> float:
    """Mean over cells of their means, as the papers do."""
    return float(np.mean([np.mean(values) for values in cells.values()]))


def _figure(found: dict[str, dict[tuple[int, int], list[float]]], title: str) -> Any:
    from matplotlib.figure import Figure  # only here: the extra is optional

    lengths = sorted({length for cells in found.values() for length, _ in cells})
    depths = sorted({depth for cells in found.values() for _, depth in cells})
    columns = min(4, len(found))
    height = math.ceil(len(found) / columns)
    size = (
        max(1.9, 0.42 * len(lengths) + 0.9) * columns + 0.9,
        max(1.6, 0.22 * len(depths) + 0.7) * height + 0.8,
    )
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(height, columns, squeeze=False, sharex=True, sharey=True)
    picture: Any = None
    for number, axes in enumerate(grid.flat):
        if number >= len(found):
            axes.set_axis_off()
            continue
        press, cells = list(found.items())[number]
        values = np.array(
            [
                [np.mean(cells[length, depth]) if (length, depth) in cells else np.nan for length in lengths]
                for depth in depths
            ]
        )
        picture = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for row, column in np.ndindex(values.shape):
            value = values[row, column]
            text, colour = (
                ("–", "black") if np.isnan(value) else (f"{value:.0f}", "white" if value < 55 else "black")
            )
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
        axes.tick_params(labelbottom=number + columns >= len(found))
        axes.set_xticks(
            range(len(lengths)),
            [f"{length:,}" for length in lengths],
            fontsize=7,
            rotation=45 if len(lengths) > 3 else 0,
        )
        axes.set_yticks(range(len(depths)), list(map(str, depths)), fontsize=7)
        axes.set_title(
            f"{'full cache' if press.split(' ')[0] == BASELINE else press}: {_mean(cells):.1f}", fontsize=8
        )
    draws = sorted({len(values) for cells in found.values() for values in cells.values()})
    said = f"{draws[0]}" if len(draws) == 1 else f"{draws[0]} to {draws[-1]}"
    figure.suptitle(
        f"{title} ({said} sample{'' if draws[-1] == 1 else 's'} a cell; mean in each title)", fontsize=9
    )
    figure.supxlabel("length (tokens)", fontsize=8)
    figure.supylabel("depth of the needle (%)", fontsize=8)
    figure.colorbar(picture, ax=grid, label="score (0 to 100)", shrink=0.8, aspect=30)
    return figure
