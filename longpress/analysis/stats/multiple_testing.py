"""P-values of a table's families: task cells, averages, the best of each budget against the second, and all others against the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from longpress.analysis.records import BASELINE
from longpress.analysis.stats import clusters, significance
from longpress.analysis.stats.clusters import Clusters

SLACK = 0.02
"""Share of the full cache by which a line may exceed its ratio: rounding, and whole layers or heads of short contexts."""


class Cell(Protocol):
    """The samples of one line and task."""

    def minus(self, other: Any) -> Any:
        """Paired differences to another cell on the common samples, as `samples`."""


def adjust_differences(
    rows: Mapping[tuple[int, str], dict[str, Any]],
    changes: Mapping[tuple[int, str], Clusters],
    shares: Mapping[str, Mapping[str, float]],
    seed: int,
) -> None:
    """Fill in `p_value`, `p_holm` and `p_bh`: tasks are one family, averages another."""
    single = {key: cell for key, cell in changes.items() if cell.n}
    joint = {}
    for line in dict.fromkeys(line for line, _ in single):
        for name, share in shares.items():
            if all((line, task) in single for task in share):
                joint[line, f"\0{name}"] = clusters.joint(
                    [single[line, task] for task in share], list(share.values())
                )
    for family in (single, joint):
        p = significance.p_values(list(family.values()), seed)
        for key, raw, holm, bh in zip(
            family, p, significance.holm(p), significance.benjamini_hochberg(p), strict=True
        ):
            rows[key].update(p_value=float(raw), p_holm=float(holm), p_bh=float(bh))


def adjust_leads(
    rows: Mapping[tuple[int, str], dict[str, Any]],
    lines: Sequence[tuple[Any, ...]],
    cells: Mapping[tuple[int, str], Cell],
    shares: Mapping[str, Mapping[str, float]],
    seed: int,
) -> None:
    """Fill in `lead` and `p_lead` of the best line of each budget, against the second best on their common samples.

    Presses that keep more than the ratio allows (`SLACK`: they remove something else than entries) do not run
    for best.
    """
    blocks: dict[Any, list[int]] = {}
    for at, line in enumerate(lines):
        if line[0] != BASELINE:
            blocks.setdefault(line[2:], []).append(at)
    for columns in (
        {task: {task: 1.0} for _, task in cells},
        {f"\0{name}": share for name, share in shares.items()},
    ):
        races: dict[tuple[int, str], Clusters] = {}
        for column, share in columns.items():
            for block in blocks.values():
                ranked = _within(rows, block, column, lines)
                ranked.sort(key=lambda at: -rows[at, column]["score"])
                if len(ranked) > 1:
                    first, second = ranked[:2]
                    apart = [cells[first, task].minus(cells[second, task]).samples for task in share]
                    if all(one.n for one in apart):
                        races[first, column] = clusters.joint(apart, list(share.values()))
        p = significance.holm(significance.p_values(list(races.values()), seed))
        for (key, race), adjusted in zip(races.items(), p, strict=True):
            rows[key].update(lead=race.mean, p_lead=float(adjusted))
    column, share = next((f"\0{name}", share) for name, share in shares.items())
    for block in blocks.values():
        _behind(rows, block, _within(rows, block, column, lines), column, cells, share, seed)


def exceeds(kept_fraction: float, ratio: float | None) -> bool:
    """Whether a line keeps more of the cache than its compression ratio allows; never where it has none (None, NaN or negative)."""
    return ratio is not None and ratio >= 0 and kept_fraction > 1 - ratio + SLACK


def _within(
    rows: Mapping[tuple[int, str], dict[str, Any]],
    block: Sequence[int],
    column: str,
    lines: Sequence[tuple[Any, ...]],
) -> list[int]:
    """The lines of a budget that have a score and meet the budget; all that have a score where none does."""
    known = [at for at in block if not math.isnan(rows.get((at, column), {}).get("score", math.nan))]
    return [at for at in known if not exceeds(rows[at, column]["kept_fraction"], lines[at][2])] or known


def _behind(
    rows: Mapping[tuple[int, str], dict[str, Any]],
    block: Sequence[int],
    fair: Sequence[int],
    column: str,
    cells: Mapping[tuple[int, str], Cell],
    share: Mapping[str, float],
    seed: int,
) -> None:
    """Fill in `behind` and `p_behind` of the lines of one budget, against the best of `fair`.

    In the cells of `column`, and of the task that it consists of, if it is one.
    """
    known = [at for at in block if not math.isnan(rows.get((at, column), {}).get("score", math.nan))]
    if not known:
        return
    best = max(fair, key=lambda at: (rows[at, column]["score"], -at))
    gaps = {}
    for at in known:
        apart = [cells[at, task].minus(cells[best, task]).samples for task in share]
        if at != best and all(one.n for one in apart):
            gaps[at] = clusters.joint(apart, list(share.values()))
    p = significance.holm(significance.p_values(list(gaps.values()), seed))
    found = {best: (0.0, 1.0)} | {
        at: (gap.mean, float(adjusted)) for (at, gap), adjusted in zip(gaps.items(), p, strict=True)
    }
    for at, (gap, adjusted) in found.items():
        for name in {column, *share} if len(share) == 1 else {column}:
            rows[at, name].update(behind=gap, p_behind=adjusted)
