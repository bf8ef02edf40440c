"""Plots: the files, the ranking, and what is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_scores import line

from evaluation import plots
from evaluation.records import RecordWriter
from evaluation.scores import scores


def test_command_writes_pictures_and_names_the_best(tmp_path: Path) -> None:
    rows = [*line("a", [1.0, 1.0, 0.5]), *line("b", [1.0, 0.5, 0.5])]
    for number in range(plots.TOP + 3):
        for ratio in (0.25, 0.5):
            for task in ("a", "b"):
                rows += line(task, [number / 20, 0.1, 0.2], f"press{number}", ratio)
    with RecordWriter(tmp_path) as writer:
        for row in rows:
            writer.append(row)
    assert plots.main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*-1.*")} == {"curves-1.png", "curves-1.pdf", "pareto-1.png", "pareto-1.pdf"}
    frame = scores(rows)
    frame = frame.assign(label=plots._labels(frame))
    ranking = plots.ranked(frame, "a")
    assert ranking[0] == f"press{plots.TOP + 2}" and ranking[-1] == "press0"
    figure = plots._figure(frame, ["a"], ranking, "kept_fraction", "t")
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(named) == {"full cache", *ranking[: plots.TOP]}
    assert f"{plots.TOP} best of {plots.TOP + 3}" in figure.get_suptitle() and "3 in grey" in figure.get_suptitle()
    drawn = {each.get_label(): each for each in figure.axes[0].lines}
    expected = frame[(frame["label"] == ranking[0]) & (frame["task"] == "a")].sort_values("kept_fraction")["score"].tolist()
    assert list(drawn[ranking[0]].get_ydata()) == pytest.approx(expected)
