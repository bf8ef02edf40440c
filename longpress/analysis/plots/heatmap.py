"""Needle in a haystack as heat maps: length × depth, a panel per press, from records."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from longpress.analysis.records import BASELINE, Record
from longpress.analysis.tables.row_keys import RowKey, removed

PANELS = 16
"""So many presses are drawn per budget at most: the best; the full cache is one more."""


class _Place(NamedTuple):
    """Where a needle was hidden."""

    length: int
    """Of the text, in tokens."""
    depth: int
    """Percent of the text before it, rounded to tens."""


class _Panel(NamedTuple):
    """What one panel shows: a press, in one query mode."""

    press: str
    query_aware: bool

    @property
    def name(self) -> str:
        """As it stands above the panel."""
        press = "full cache" if self.press == BASELINE else self.press
        return press + (" (query-aware)" if self.query_aware and self.press != BASELINE else "")


_Scores = dict[_Place, list[float]]
"""Scores, 0 to 100, of the samples at each place."""


def heat_maps(records: Iterable[Record], title: str) -> dict[str, Any]:
    """Budget -> figure, of the records of one table whose samples state a `depth` (percent).

    Tasks must be lengths; empty where there are none. A cell is the mean score, 0 to 100, of the samples at
    that length and depth (rounded to a tenth of the text); "–" where there is none. The full cache comes
    first, then presses by mean. Brightness grows with the score, and the number stands in the cell.
    """
    scores: dict[str, dict[_Panel, _Scores]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for record in records:
        place = _place(record)
        if place is not None and record.score is not None:
            panel = _Panel(record.press, record.query_aware)
            scores[RowKey.of(record).budget][panel][place].append(100 * record.score)
    full = scores.pop("", {})
    return {
        budget: _figure({**full, **_best(of_panel)}, f"{title}, {removed(budget)}")
        for budget, of_panel in scores.items()
    }


def _place(record: Record) -> _Place | None:
    """Where the needle of a sample was hidden; None where the sample does not say so."""
    depth = record.data.get("depth")
    if not record.task.isdigit() or isinstance(depth, bool) or not isinstance(depth, int | float):
        return None
    return _Place(int(record.task), round(depth / 10) * 10)


def _best(scores: Mapping[_Panel, _Scores]) -> dict[_Panel, _Scores]:
    order = sorted(scores, key=lambda panel: (-_mean(scores[panel]), panel))
    return {panel: scores[panel] for panel in order[:PANELS]}


def _mean(scores: _Scores) -> float:
    """Mean over cells of their means, as the papers do."""
    return float(np.mean([np.mean(values) for values in scores.values()]))


def _figure(panels: Mapping[_Panel, _Scores], title: str) -> Any:
    from matplotlib.figure import Figure  # only here: the extra is optional

    places = {place for scores in panels.values() for place in scores}
    lengths, depths = sorted({place.length for place in places}), sorted({place.depth for place in places})
    wide = min(4, len(panels))
    high = math.ceil(len(panels) / wide)
    size = (
        max(1.9, 0.42 * len(lengths) + 0.9) * wide + 0.9,
        max(1.6, 0.22 * len(depths) + 0.7) * high + 0.8,
    )
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(high, wide, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()

    picture: Any = None
    for number, (axes, (panel, scores)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        means = np.full((len(depths), len(lengths)), np.nan)
        for place, values in scores.items():
            means[depths.index(place.depth), lengths.index(place.length)] = np.mean(values)
        picture = axes.imshow(means, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for row, column in np.ndindex(means.shape):
            mean = means[row, column]
            text = "–" if np.isnan(mean) else f"{mean:.0f}"
            colour = "white" if mean < 55 else "black"  # readable on dark cells; NaN is no cell
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
        axes.tick_params(labelbottom=number + wide >= len(panels))
        turned = 45 if len(lengths) > 3 else 0
        axes.set_xticks(
            range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=7, rotation=turned
        )
        axes.set_yticks(range(len(depths)), list(map(str, depths)), fontsize=7)
        axes.set_title(f"{panel.name}: {_mean(scores):.1f}", fontsize=8)

    counts = sorted({len(values) for scores in panels.values() for values in scores.values()})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    samples = f"{n} sample{'' if counts[-1] == 1 else 's'} a cell"
    figure.suptitle(f"{title} ({samples}; mean in each title)", fontsize=9)
    figure.supxlabel("length (tokens)", fontsize=8)
    figure.supylabel("depth of the needle (%)", fontsize=8)
    figure.colorbar(picture, ax=grid, label="score (0 to 100)", shrink=0.8, aspect=30)
    return figure
