"""The overview of `report.html`: per budget and column, which press is best, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from longpress.analysis.stats.significance import SIGNIFICANT
from longpress.analysis.tables.layout import LayoutRow, TableLayout
from longpress.analysis.tables.row_keys import exceeds

HALF = 0.5
"""The page opens with this compression ratio, or with the nearest one that was run."""


class _Choice(NamedTuple):
    """What a reader chooses on the page: a budget, and whether the question was seen while compressing."""

    budget: str
    query_aware: bool


def overview(table: TableLayout) -> dict[str, Any]:
    """What the page knows of each budget of a table; rows are named by their number.

    `budgets` holds label, ratio, and `columns` as `_ranking` gives them; `start` is the place of the budget
    that the page opens with, `full` the full cache's row.
    """
    rows_of: dict[_Choice, list[int]] = {}
    for number, row in enumerate(table.rows):
        if not row.is_baseline:
            rows_of.setdefault(_Choice(row.budget, _first_entry(row)["query_aware"]), []).append(number)
    tell_mode = len({choice.query_aware for choice in rows_of}) > 1

    budgets, distances = [], {}
    for place, (choice, rows) in enumerate(rows_of.items()):
        ratio = finite(_first_entry(table.rows[rows[0]])["compression_ratio"])
        if ratio is not None:
            distances[place] = abs(ratio - HALF), ratio
        label = choice.budget + (" (query-aware)" if tell_mode and choice.query_aware else "")
        ranked = {column: _ranking(table, column, rows) for column in table.columns}
        budgets.append({"label": label, "ratio": ratio, "columns": ranked})
    return {
        "budgets": budgets,
        "start": min(distances, key=lambda place: distances[place], default=0),
        "full": next((number for number, row in enumerate(table.rows) if row.is_baseline), None),
    }


def finite(value: Any) -> float | None:
    """A number as the page draws and sorts by it; None of one that is missing or not finite."""
    return None if pd.isna(value) or not math.isfinite(value) else round(float(value), 4)


def _first_entry(row: LayoutRow) -> Mapping[str, Any]:
    """Any entry of a row: what they have in common can be read there."""
    return next(iter(row.cells.values()))


def _ranking(table: TableLayout, column: str, rows: Sequence[int]) -> dict[str, Any]:
    """The rows of a budget in one column, best first.

    `ranked` meet the budget, `over` keep more than it allows, `failed` have no score because every sample
    failed. What `_certainty` says of the first of them stands there too.
    """
    cells = {row: table.rows[row].cells[column] for row in rows if column in table.rows[row].cells}
    scored = [row for row, entry in cells.items() if not math.isnan(entry["score"])]
    scored.sort(key=lambda row: -cells[row]["score"])
    fair = [
        row
        for row in scored
        if not exceeds(cells[row]["kept_fraction"], finite(cells[row]["compression_ratio"]))
    ]
    ranked = fair or scored
    return {
        "ranked": ranked,
        "over": [row for row in scored if row not in ranked],
        "failed": [row for row, entry in cells.items() if math.isnan(entry["score"]) and entry["n_failed"]],
        **(_certainty(cells, ranked) if ranked else {}),
    }


def _certainty(cells: Mapping[int, Mapping[str, Any]], ranked: Sequence[int]) -> dict[str, Any]:
    """How sure it is that the first is best.

    `lead`, `p` and `sure` say what it is ahead of the second; `level` are the rows that no test tells from
    it, None where that was not tested (`p_behind` is tested in the first average only).
    """
    best = cells[ranked[0]]
    is_tested = not math.isnan(best["p_behind"])
    level = [row for row in ranked[1:] if not cells[row]["p_behind"] < SIGNIFICANT] if is_tested else None
    if math.isnan(best["p_lead"]):
        return {"lead": None, "level": level}
    return {
        "lead": f"{best['lead']:+.1f}",
        "p": f"{best['p_lead']:.2g}",
        "sure": bool(best["p_lead"] < SIGNIFICANT),
        "level": level,
    }
