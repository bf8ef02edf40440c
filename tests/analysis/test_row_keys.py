"""Keys of tables and rows: the same from records and from frames, their budgets in words, and their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longpress.analysis.records import Record
from longpress.analysis.tables.layout import layouts
from longpress.analysis.tables.row_keys import RowKey, TableKey, exceeds, is_ratio, parameter_labels, removed
from longpress.analysis.tables.scores import scores
from tests.support.made_up_records import line, record, write_records

BUDGETS: dict[str, tuple[float | None, dict[str, Any]]] = {
    "0.3": (0.1 + 0.2, {}),
    "128 tokens": (None, {"budget_tokens": 128}),
    "score ≥ -3": (None, {"threshold": -3}),
    "–": (None, {}),
}
"""Budgets in words, and the ratio and fields of records that have them."""


def of(budget: str, press: str = "knorm", **changes: Any) -> list[Record]:
    ratio, fields = BUDGETS[budget]
    return line("a", [1.0, 0.5, 0.0], press, ratio, kept_fraction=0.5, **fields, **changes)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_record_and_its_row_of_a_table_have_one_key(budget: str) -> None:
    rows = [*line("a", [1.0, 1.0, 1.0]), *of(budget)]
    (table,) = layouts(scores(rows))
    assert table.key == TableKey.of(rows[0])
    full, press = table.rows
    assert (full.press, full.budget, full.is_baseline) == ("full cache", "", True)
    assert (press.budget, press.name) == (budget, f"knorm {budget}")
    labels = parameter_labels([("knorm", "{}")])
    assert press.key == RowKey.of(rows[-1])._replace(press_parameters=labels["knorm", "{}"])
    assert hash(press.key) == hash(RowKey.of(rows[-1])._replace(press_parameters=""))


def test_bare_ratios_are_told_from_budgets_that_name_themselves() -> None:
    assert {budget: is_ratio(budget) for budget in (*BUDGETS, "")} == {
        **dict.fromkeys((*BUDGETS, ""), False),
        "0.3": True,
    }
    assert [removed(budget) for budget in BUDGETS] == ["30 % removed", "128 tokens", "score ≥ -3", "–"]
    assert exceeds(0.6, 0.5) and not exceeds(0.51, 0.5)
    assert not exceeds(0.6, None) and not exceeds(0.6, float("nan"))


def test_rows_stand_by_query_mode_press_parameters_and_budget() -> None:
    rows = [
        *of("128 tokens"),
        *of("0.3", query_aware=True),
        *of("0.3", prefill="chunked/64"),
        *of("0.3", press_parameters={"w": 2}),
        *of("0.3"),
        *of("0.3", "adakv"),
        *line("a", [1.0, 1.0, 1.0]),
    ]
    (table,) = layouts(scores(rows))
    assert [row.name for row in table.rows] == [
        "full cache",
        "adakv 0.3",
        "knorm (w=2) 0.3",
        "knorm (default) 128 tokens",
        "knorm (default) (prefill chunked/64) 0.3",
        "knorm (default) 0.3",
        "knorm (default) (query-aware) 0.3",
    ]
    assert table.budget_heading == "budget"


def test_rows_compete_at_one_budget_query_mode_and_prefill() -> None:
    key = RowKey.of(record("a", 0, 1.0, "knorm", 0.5))
    assert key.competition == RowKey.of(record("a", 0, 1.0, "snapkv", 0.5)).competition
    for other in ({"budget_tokens": 9}, {"query_aware": True}, {"prefill": "chunked/64"}):
        assert key.competition != RowKey.of(record("a", 0, 1.0, "snapkv", 0.5, **other)).competition


def test_a_press_that_states_no_budget_has_tables_and_plots(
    tmp_path: Path, exit_code: Callable[..., int]
) -> None:
    needles = {"data": {"depth": 50}}
    rows = line("1024", [1.0] * 5, **needles)
    rows += [
        one
        for press in ("x", "y")
        for one in line("1024", [0.5, 1.0] * 3, press, None, kept_fraction=0.5, **needles)
    ]
    folder = write_records(tmp_path / "run", rows)
    assert exit_code("tables", folder) == 0
    assert exit_code("compare", "x", "y", folder) == 0
    assert {"ranking-1.png", "pareto-1.png", "heatmap-1-–.png"} <= {path.name for path in folder.iterdir()}
