"""Costs by hand: the prefill without what presses observed in it, shares of it, seconds per token, bytes."""

from __future__ import annotations

import pytest

from longpress.analysis.tables.costs import COLUMNS, cost_grids, costs
from tests.support.made_up_records import line, record


def test_the_prefill_alone_and_what_each_press_adds() -> None:
    timed = {"prefill_seconds": 3.0, "decode_seconds": 0.5, "new_tokens": 4, "peak_cache_bytes": 80}
    rows = [
        record("a", 0, 1.0, **timed),
        *(
            record("a", 0, 1.0, "knorm", ratio, observe_seconds=0.5, compress_seconds=0.1, **timed)
            for ratio in (0.25, 0.5)
        ),
        record(
            "a",
            0,
            1.0,
            "snapkv",
            0.5,
            observe_seconds=1.0,
            compress_seconds=0.2,
            **timed | {"decode_seconds": 1.0},
        ),
        record("a", 1, None, "snapkv", 0.5, observe_seconds=9.0),
        record(
            "a",
            1,
            1.0,
            "knorm",
            0.5,
            observe_seconds=0.5,
            compress_seconds=0.3,
            **timed | {"prefill_seconds": 2.0, "new_tokens": 12},
        ),
    ]
    frame = costs(rows)
    assert list(frame.columns) == list(COLUMNS)
    assert frame["press"].tolist() == ["none", "knorm", "knorm", "snapkv"]
    assert frame["n"].tolist() == [1, 1, 2, 1], "a failed sample has no cost"
    # 3.0 - 0.5 - 1.0 in the pass that all shared, 2.0 - 0.5 in the one that knorm had for itself
    assert frame["prefill_seconds"].tolist() == pytest.approx([1.5] * 4)
    assert frame["overhead"].tolist()[1:] == pytest.approx([0.6 / 1.5, 0.7 / 1.5, 1.2 / 1.5])
    assert frame["seconds_per_token"].tolist() == pytest.approx([0.125, 0.125, (0.125 + 0.5 / 12) / 2, 0.25])
    head, lines = next(iter(cost_grids(frame).values()))
    assert head[-2:] == ["after 0.25", "after 0.5"]
    assert [row[0] for row in lines] == ["full cache", "knorm", "snapkv"]
    assert lines[2][1:6] == ["1.50", "1.00", "0.20", "80.0 %", "250.0"]


def test_a_pause_of_the_machine_does_not_move_seconds() -> None:
    rows = line("a", [1.0] * 5, decode_seconds=1.0, new_tokens=10) + [
        record("a", 9, 1.0, prefill_seconds=500.0, decode_seconds=900.0)
    ]
    frame = costs(rows)
    assert frame[["prefill_seconds", "seconds_per_token"]].iloc[0].tolist() == [1.0, 0.1]


def test_bytes_are_mebibytes_and_what_is_not_known_is_missing() -> None:
    sizes = {"full_cache_bytes": 4 * 2**20, "cache_bytes": 2**20}
    grids = cost_grids(
        costs(
            [
                *line("a", [1.0], **sizes),
                *line("a", [1.0], "knorm", 0.75, **sizes, peak_cache_bytes=3 * 2**19),
            ]
        )
    )
    _, (full, knorm) = next(iter(grids.values()))
    assert knorm[-2:] == ["4.0", "1.0 (1.5)"] and full[-1] == "–"
    assert costs([record("a", 0, None)]).empty


def test_presses_of_several_parameters_and_tables_stay_apart() -> None:
    rows = [*line("a", [1.0]), *line("a", [1.0], model="other")]
    rows += [
        row for size in (1, 2) for row in line("a", [1.0], "knorm", 0.5, press_parameters={"size": size})
    ]
    frame = costs(rows)
    assert len(cost_grids(frame)) == 2
    assert frame.loc[frame["press"] == "knorm", "press_parameters"].tolist() == ["size=1", "size=2"]
