"""Two presses compared on the same samples."""

from __future__ import annotations

import pytest

from longpress.analysis.tables.comparison import compare
from tests.support.made_up_records import line


def test_a_press_against_itself_differs_by_nothing() -> None:
    frame = compare(line("a", [0.0, 1.0, 0.5] * 10, "knorm", 0.5), "knorm", "knorm")
    assert frame[["delta", "p_holm", "wins", "losses"]].iloc[0].tolist() == [0.0, 1.0, 0, 0]
    assert frame["verdict"].tolist() == ["not distinguishable"]


def test_better_by_how_much_and_where() -> None:
    rows = line("a", [1.0] * 20, "x", 0.5) + line("a", [0.0] * 10 + [1.0] * 10, "y", 0.5)
    rows += line("b", [1.0] * 20, "x", 0.5) + line("b", [1.0] * 20, "y", 0.5) + line("c", [1.0], "x", 0.5)
    frame = compare(rows, "x", "y")
    assert frame["task"].tolist() == ["average (2 tasks)", "a", "b"], (
        "task c was answered by one of them only"
    )
    assert frame["delta"].tolist() == pytest.approx([25.0, 50.0, 0.0])
    assert frame["p_value"].tolist() == pytest.approx([2 / 2**10, 2 / 2**10, 1.0])
    assert frame["p_holm"].tolist() == pytest.approx([2 / 2**10, 4 / 2**10, 1.0]), (
        "averages are a family of their own"
    )
    assert frame["n"].tolist() == [40, 20, 20]
    assert frame["verdict"].tolist() == ["better", "better", "not distinguishable"]
    assert compare(rows, "y", "x")["verdict"].tolist() == ["worse", "worse", "not distinguishable"]
    assert compare(rows, "x", "y")["not_worse"].tolist() == [True, True, False], (
        "20 equal answers leave more than a point open"
    )
    assert compare(rows, "x", "y", margin=20)["not_worse"].all()


def test_the_average_against_itself_differs_by_nothing() -> None:
    rows = [row for task in ("a", "b") for row in line(task, [0.0, 1.0, 0.5] * 10, "knorm", 0.5)]
    frame = compare(rows, "knorm", "knorm")
    assert frame["delta"].tolist() == [0.0] * 3 and frame["p_holm"].tolist() == [1.0] * 3
    assert (frame["ci_low"] < 0).all() and (frame["ci_high"] > 0).all()


def test_refusals() -> None:
    rows = line("a", [1.0], "x", 0.5) + line("a", [1.0], "y", 0.25)
    with pytest.raises(ValueError, match="these folders hold: x, y"):
        compare(rows, "x", "z")
    with pytest.raises(ValueError, match="no sample at a common budget"):
        compare(rows, "x", "y")
    with pytest.raises(ValueError, match="different prompts"):
        compare([*line("a", [1.0], "x", 0.5), *line("a", [1.0], "y", 0.5, prompt_hash="other")], "x", "y")
