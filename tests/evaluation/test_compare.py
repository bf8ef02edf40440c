"""Two presses compared on the same samples."""

from __future__ import annotations

import pytest
from test_scores import line

from evaluation.compare import compare


def test_a_press_against_itself_differs_by_nothing() -> None:
    frame = compare(line("a", [0.0, 1.0, 0.5] * 10, "knorm", 0.5), "knorm", "knorm")
    assert frame[["delta", "p_holm", "wins", "losses"]].iloc[0].tolist() == [0.0, 1.0, 0, 0]
    assert frame["verdict"].tolist() == ["not distinguishable"]


def test_better_by_how_much_and_where() -> None:
    rows = line("a", [1.0] * 20, "x", 0.5) + line("a", [0.0] * 10 + [1.0] * 10, "y", 0.5)
    rows += line("b", [1.0] * 20, "x", 0.5) + line("b", [1.0] * 20, "y", 0.5) + line("c", [1.0], "x", 0.5)
    frame = compare(rows, "x", "y")
    assert frame["task"].tolist() == ["a", "b"]
    assert frame["delta"].tolist() == pytest.approx([50.0, 0.0])
    assert frame["p_value"].tolist() == pytest.approx([2 / 2**10, 1.0])
    assert frame["verdict"].tolist() == ["better", "not distinguishable"]
    assert compare(rows, "y", "x")["verdict"].tolist() == ["worse", "not distinguishable"]


def test_refusals() -> None:
    rows = line("a", [1.0], "x", 0.5) + line("a", [1.0], "y", 0.25)
    with pytest.raises(ValueError, match="these folders hold: x, y"):
        compare(rows, "x", "z")
    with pytest.raises(ValueError, match="no sample at a common budget"):
        compare(rows, "x", "y")
    with pytest.raises(ValueError, match="different prompts"):
        compare([*line("a", [1.0], "x", 0.5), *line("a", [1.0], "y", 0.5, prompt_hash="other")], "x", "y")
