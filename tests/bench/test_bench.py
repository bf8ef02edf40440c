"""The arithmetic of the bench, on figures made up so that the answer is known."""

import json

import pytest

from bench.__main__ import different_answers, limit_seconds, peer_seconds, summary
from bench.plot import draw
from bench.sweep import PRESSES, RATIOS, Row, grid, load, peer_grid, save

ROW = Row("vt", "context", "question", "", 30)


def measured(answers: list[str]) -> dict:
    return {
        "seconds": 12.0,
        "prefill": 5.0,
        "observe": 1.0,
        "compress": 1.0,
        "decode": 6.0,
        "answers": [answers],
        "question_tokens": 100,
        "new_tokens": 10,
        "peak_bytes": 3e9,
    }


def test_the_grid_is_the_full_cache_and_every_press_at_every_ratio() -> None:
    assert len(grid()) == len(set(grid())) == 1 + len(PRESSES) * len(RATIOS) == 33
    assert set(peer_grid()) <= set(grid()) and {point.press for point in peer_grid()} == {"none", *PRESSES}
    assert [point.press for point in peer_grid(2)] == ["none", PRESSES[0], PRESSES[4]]


def test_the_limit_is_prefills_and_tokens_at_the_best_rates() -> None:
    parts = {"prefill": [2.0, 3.0], "question_token": 0.01, "token": 0.5}
    assert limit_seconds(parts, measured([])) == pytest.approx(5 + 1 + 5)


def test_kvpress_is_extrapolated_from_the_mean_of_its_presses() -> None:
    assert peer_seconds({"seconds": [[5.0, 6.0, 8.0], [1.0, 1.0, 3.0]]}, 33) == pytest.approx(5 + 32 * 7 + 1 + 32 * 2)


def test_answers_that_differ_are_listed_with_both() -> None:
    ours = [f"{point.press}{point.ratio}" for point in grid()]
    theirs = [f" {point.press}{point.ratio}\n" for point in peer_grid()]
    assert different_answers(measured(ours), {"answers": [theirs]}, [ROW], peer_grid()) == []
    theirs[2] = "something else"
    (one,) = different_answers(measured(ours), {"answers": [theirs]}, [ROW], peer_grid())
    assert (one["press"], one["peer"]) == (peer_grid()[2].press, "something else")


def test_rows_and_points_survive_a_file(tmp_path) -> None:
    save(tmp_path / "in.json", [ROW], grid())
    assert load(tmp_path / "in.json") == ([ROW], grid())


def test_summary_and_plots_show_what_was_measured(tmp_path) -> None:
    one = {
        "ours": measured([""] * 33),
        "limit": {"seconds": 9.0, "fast_seconds": 5.0},
        "variants": 33,
        "fraction_of_limit": 0.75,
        "fraction_of_fast_limit": 0.42,
        "observe_share_per_press": 0.031,
        "compress_per_variant": 0.03,
        "peer_points": ["none@0.0", "knorm@0.25"],
        "peer": {"extrapolated_seconds": 240.0},
        "ratio_to_peer": 20.0,
        "compared_answers": 9,
        "different_answers": [],
    }
    points = {"1": measured([]), "33": measured([])}
    found = {"lengths": {"2048": one}, "growth": {"variants": points, "contexts": points}}
    text = summary(json.loads(json.dumps(found)))
    assert "20.0 times as long" in text and "0.75 of the limit" in text and "0.42 with those chosen here" in text and "3.1%" in text
    draw(found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"seconds.png", "seconds.pdf", "growth.png", "growth.pdf"}
