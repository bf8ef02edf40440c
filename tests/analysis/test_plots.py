"""Plots: the files, the ranking, and what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longpress.analysis.plots import curves, draw, heatmap, pareto, ranking
from longpress.analysis.records import FIDELITY, Record, RecordWriter
from longpress.analysis.tables.fidelity import fidelity
from longpress.analysis.tables.row_keys import row_labels
from longpress.analysis.tables.scores import scores
from tests.support.made_up_records import line, record


def labelled(rows: Sequence[Record]) -> pd.DataFrame:
    frame = scores(rows)
    return frame.assign(label=row_labels(frame))


def test_tables_draw_plots_and_name_the_best(tmp_path: Path, exit_code: Callable[..., int]) -> None:
    rows = [*line("a", [1.0, 1.0, 0.5]), *line("b", [1.0, 0.5, 0.5])]
    for number in range(curves.TOP + 3):
        for ratio in (0.25, 0.5):
            for task in ("a", "b"):
                rows += line(task, [number / 20, 0.1, 0.2], f"press{number}", ratio)
    with RecordWriter(tmp_path) as writer:
        for row in rows:
            writer.append(row)
    assert exit_code("tables", "--no-plots", tmp_path) == 0
    assert not [*tmp_path.glob("*.png"), *tmp_path.glob("*.pdf")]
    assert exit_code("tables", tmp_path) == 0
    stems = ("curves-1", "pareto-1", "ranking-1")
    assert {path.name for path in tmp_path.glob("*-1.*")} == {
        f"{stem}.{ending}" for stem in stems for ending in ("png", "pdf")
    }
    frame = labelled(rows)
    order = curves.ranked(frame, "a")
    assert order[0] == f"press{curves.TOP + 2}" and order[-1] == "press0"
    figure = curves.score_curves(frame, ["a"], order, "t")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "full cache",
        *order[: curves.TOP],
    ], "in the order of the ranking"
    assert (
        f"{curves.TOP} best of {curves.TOP + 3}" in figure.get_suptitle()
        and "3 in grey" in figure.get_suptitle()
    )
    drawn = {each.get_label(): each for each in figure.axes[0].lines}
    expected = (
        frame[(frame["label"] == order[0]) & (frame["task"] == "a")]
        .sort_values("kept_fraction")["score"]
        .tolist()
    )
    assert list(drawn[order[0]].get_ydata()) == pytest.approx(expected)


def test_ranking_fills_what_cannot_be_told_apart_from_the_best() -> None:
    full = [1.0] * 30
    rows = [*line("a", full)]
    for name, values in (("best", full), ("close", [0.0, *full[1:]]), ("bad", [0.0] * 30)):
        rows += [row for ratio in (0.25, 0.5) for row in line("a", values, name, ratio)]
    figure = ranking.ranking(labelled(rows), "a", "t")
    assert [axes.get_title() for axes in figure.axes] == ["25 % removed (n = 30)", "50 % removed (n = 30)"]
    axes = figure.axes[1]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["best", "close", "bad"]
    points = {-round(each.get_ydata()[0]): each for each in axes.lines if each.get_marker() == "o"}
    assert [points[at].get_xdata()[0] for at in range(3)] == pytest.approx([100.0, 2900 / 30, 0.0])
    assert [points[at].get_markerfacecolor() == "white" for at in range(3)] == [False, False, True]
    assert ranking.ranking(labelled(line("a", full)), "a", "t") is None


def test_the_front_is_what_nothing_beats_in_both() -> None:
    sizes = {
        "none": (100, 80.0),
        "small": (10, 50.0),
        "worse": (20, 40.0),
        "tie": (10, 45.0),
        "large": (60, 80.0),
        "middle": (40, 70.0),
    }
    sizes["rounded"] = (39.9, 60.0)
    rows = pd.DataFrame(
        [{"press": name, "cache_bytes": size, "score": score} for name, (size, score) in sizes.items()]
    )
    assert pareto.front(rows)["press"].tolist() == ["small", "middle", "large"]


def needle(
    length: str, at: int, depth: Any, score: float | None, press: str = "none", ratio: float = 0.0
) -> Record:
    return record(length, at, score, press, ratio, data={"depth": depth})


def test_heat_maps_have_a_cell_per_length_and_depth() -> None:
    rows = [
        needle(length, at, depth, 1.0) for length in ("1024", "2048") for at, depth in enumerate((0, 50, 100))
    ]
    rows += [
        needle("1024", 0, 0, 0.5, "knorm", 0.5),
        needle("1024", 9, 1, 0.0, "knorm", 0.5),
        needle("2048", 2, 100, 1.0, "knorm", 0.5),
    ]
    rows += [
        needle("1024", 1, 50, None, "knorm", 0.5),
        record("vt", 0, 1.0, data={"depth": 3}),
        needle("1024", 5, None, 1.0),
    ]
    maps = heatmap.heat_maps(rows, "t")
    assert list(maps) == ["0.5"]
    full, knorm = maps["0.5"].axes[:2]
    assert full.get_title() == "full cache: 100.0" and knorm.get_title() == "knorm: 62.5", (
        "the mean of cells, not of samples"
    )
    assert [text.get_text() for text in knorm.texts] == ["25", "–", "–", "–", "–", "100"]
    assert heatmap.heat_maps([record("vt", 0, 1.0)], "t") == {}


def test_fidelity_curves_show_every_measure(tmp_path: Path) -> None:
    rows = []
    for press, ratio in (("none", 0.0), ("knorm", 0.25), ("knorm", 0.5), ("snapkv", 0.25), ("snapkv", 0.5)):
        measured = {name: ratio * (2 if press == "knorm" else 1) / 2 for name in FIDELITY}
        rows += [replace(row, **measured) for row in line("a", [1.0, 0.5, 0.5], press, ratio)]
    written = draw.draw(scores(rows), rows, tmp_path, fidelity(rows))
    assert {"fidelity-1.png", "fidelity-1.pdf"} <= {path.name for path in written}
    figure = curves.fidelity_curves(fidelity(rows), "t")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["full cache", "snapkv", "knorm"]
    assert {axes.get_title().split(" ")[0] for axes in figure.axes} == set(FIDELITY)
    drawn = {each.get_label(): list(each.get_ydata()) for each in figure.axes[0].lines}
    assert drawn["knorm"] == pytest.approx([0.25, 0.5][::-1]) and drawn["snapkv"] == pytest.approx(
        [0.125, 0.25][::-1]
    )
    unmeasured = line("a", [1.0])
    written = draw.draw(scores(unmeasured), unmeasured, tmp_path, fidelity(unmeasured))
    assert not [path for path in written if "fidelity" in path.name]
