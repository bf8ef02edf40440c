"""The p-values of a table, each adjusted for the number of comparisons of its kind.

Three kinds: every row against the full cache (tasks apart from averages), the best row of each budget against
the second best, and all rows of a budget against its best one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from longpress.analysis.stats import clusters, multiple_testing, significance
from longpress.analysis.stats.clusters import Clusters
from longpress.analysis.stats.estimates import Samples
from longpress.analysis.tables.row_keys import CellKey, Column, RowKey, exceeds

Entries = Mapping[CellKey, dict[str, Any]]
"""The entries of one table's frame by their cell: what the functions here fill in."""
Shares = Mapping[Column, Mapping[str, float]]
"""Per column of a table the share of each task in it: the task itself, or those of an average."""


def fill_differences(
    entries: Entries, changes: Mapping[CellKey, Clusters], shares: Shares, seed: int
) -> None:
    """Fill in `p_value`, `p_holm` and `p_bh` of differences to the full cache.

    Args:
        entries: of the table.
        changes: paired differences of its rows to the full cache, by task.
        shares: of its columns; single tasks are adjusted together, and averages are.
        seed: of random sign flips.
    """
    single = {cell: change for cell, change in changes.items() if change.n}
    joint = {}
    for row in dict.fromkeys(cell.row for cell in single):
        for column, share in shares.items():
            cells = [CellKey(row, Column(task)) for task in share]
            if column.is_average and all(cell in single for cell in cells):
                parts = [single[cell] for cell in cells]
                joint[CellKey(row, column)] = clusters.joint(parts, list(share.values()))
    for family in (single, joint):
        raw = significance.p_values(list(family.values()), seed)
        adjusted = zip(raw, multiple_testing.holm(raw), multiple_testing.benjamini_hochberg(raw), strict=True)
        for cell, (p_value, holm, bh) in zip(family, adjusted, strict=True):
            entries[cell].update(p_value=float(p_value), p_holm=float(holm), p_bh=float(bh))


def fill_leads(
    entries: Entries,
    keys: Sequence[RowKey],
    samples: Mapping[CellKey, Samples],
    shares: Shares,
    seed: int,
) -> None:
    """Fill in `lead` and `p_lead` of the best row of each budget, `behind` and `p_behind` of all of its rows.

    Rows that keep more than their ratio allows (`row_keys.exceeds`: they remove something else than entries)
    do not run for best.

    Args:
        entries: of the table.
        keys: of its rows.
        samples: that its rows answered, by task.
        shares: of its columns; leads in single tasks are adjusted together, and those in averages are.
        seed: of random sign flips.
    """
    competitions: dict[RowKey, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if not key.is_baseline:
            competitions[key.competition].append(row)

    # the lead of the best over the second best, in every column
    for of_averages in (False, True):
        columns = [column for column in shares if column.is_average == of_averages]
        leads: dict[CellKey, Clusters] = {}
        for column, rows in product(columns, competitions.values()):
            scores = {
                row: entries[CellKey(row, column)]["score"]
                for row in _contenders(entries, rows, column, keys)
            }
            ranked = sorted(scores, key=lambda row: -scores[row])
            if len(ranked) > 1:
                lead = _difference(samples, ranked[0], ranked[1], shares[column])
                if lead is not None:
                    leads[CellKey(ranked[0], column)] = lead
        adjusted = multiple_testing.holm(significance.p_values(list(leads.values()), seed))
        for (cell, lead), p_value in zip(leads.items(), adjusted, strict=True):
            entries[cell].update(lead=lead.mean, p_lead=float(p_value))

    # how far all others are behind the best, in the first average
    column = next(column for column in shares if column.is_average)
    for rows in competitions.values():
        contenders = _contenders(entries, rows, column, keys)
        if contenders:
            best = max(contenders, key=lambda row: (entries[CellKey(row, column)]["score"], -row))
            _fill_behind(entries, _scored(entries, rows, column), best, column, samples, shares[column], seed)


def _scored(entries: Entries, rows: Sequence[int], column: Column) -> list[int]:
    """The rows that have a score in a column."""
    scores = {row: entries.get(CellKey(row, column), {}).get("score", math.nan) for row in rows}
    return [row for row, score in scores.items() if not math.isnan(score)]


def _contenders(entries: Entries, rows: Sequence[int], column: Column, keys: Sequence[RowKey]) -> list[int]:
    """The rows of a budget that have a score and meet the budget; all with a score where none meets it."""
    scored = _scored(entries, rows, column)
    fair = [
        row
        for row in scored
        if not exceeds(entries[CellKey(row, column)]["kept_fraction"], keys[row].compression_ratio)
    ]
    return fair or scored


def _difference(
    samples: Mapping[CellKey, Samples], row: int, other: int, share: Mapping[str, float]
) -> Clusters | None:
    """Paired differences of two rows in a column; None where they share no sample of one of its tasks."""
    parts = [
        samples[CellKey(row, Column(task))].minus(samples[CellKey(other, Column(task))]).summed
        for task in share
    ]
    return clusters.joint(parts, list(share.values())) if all(part.n for part in parts) else None


def _fill_behind(
    entries: Entries,
    rows: Sequence[int],
    best: int,
    column: Column,
    samples: Mapping[CellKey, Samples],
    share: Mapping[str, float],
    seed: int,
) -> None:
    """Fill in `behind` and `p_behind` of the rows of one budget in a column.

    And in the column of its task, where it consists of one.
    """
    gaps = {}
    for row in rows:
        gap = _difference(samples, row, best, share) if row != best else None
        if gap is not None:
            gaps[row] = gap
    adjusted = multiple_testing.holm(significance.p_values(list(gaps.values()), seed))
    told = {best: (0.0, 1.0)}
    for (row, gap), p_value in zip(gaps.items(), adjusted, strict=True):
        told[row] = gap.mean, float(p_value)
    columns = {column, *map(Column, share)} if len(share) == 1 else {column}
    for row, (behind, p_behind) in told.items():
        for name in columns:
            entries[CellKey(row, name)].update(behind=behind, p_behind=p_behind)
