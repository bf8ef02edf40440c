"""Fidelity in records: means, errors and differences by hand, and the samples that tests need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from longpress.analysis.records import Record, RecordWriter
from longpress.analysis.stats import clusters, intervals, significance
from longpress.analysis.tables.comparison import compare, compare_all
from longpress.analysis.tables.fidelity import fidelity, markdown
from longpress.analysis.tables.scores import scores
from longpress.analysis.tables.write import write_tables
from tests.support.made_up_records import line


def with_fidelity(rows: list[Record], divergences: list[float], agreement: float = 0.5) -> list[Record]:
    return [
        replace(row, answer_kl=kl, answer_nll=1 + kl, answer_agreement=agreement, reference_nll=2 + kl)
        for row, kl in zip(rows, divergences, strict=True)
    ]


def test_means_errors_and_differences_by_hand() -> None:
    rows = with_fidelity(line("a", [1.0, 0.0, 1.0]), [0.0, 0.0, 0.0], 1.0)
    rows += with_fidelity(line("a", [1.0, 0.0, 0.0], "knorm", 0.5), [1.0, 2.0, 6.0])
    frame = fidelity(rows).set_index(["press", "measure", "task"])
    row = frame.loc[("knorm", "answer_nll", "a")]
    half = 4.302653 * math.sqrt(7 / 3)  # Student's t of 2 degrees of freedom; the variance of 1, 2, 6 is 7
    assert row[["value", "se", "delta", "n"]].tolist() == pytest.approx([4, math.sqrt(7 / 3), 3, 3])
    assert row[["ci_low", "ci_high", "delta_ci_low", "delta_ci_high"]].tolist() == pytest.approx(
        [4 - half, 4 + half, 3 - half, 3 + half]
    )
    assert frame.loc[("knorm", "answer_agreement", "a")]["value"] == 0.5
    assert frame.loc[("none", "answer_kl", "average")][["value", "ci_low", "ci_high"]].tolist() == [0, 0, 0]
    assert "reference_kl" not in frame.index.get_level_values("measure")
    assert scores(rows).set_index(["press", "task"]).loc[("knorm", "a")]["answer_kl"] == pytest.approx(3)
    assert "| knorm" in markdown(fidelity(rows)) and "3.000 ± 1.528" in markdown(fidelity(rows))


def test_records_without_fidelity_do_not_count() -> None:
    rows = with_fidelity(line("a", [1.0, 0.0], "knorm", 0.5), [1.0, 2.0]) + line(
        "a", [1.0, 0.0], "snapkv", 0.5
    )
    assert set(fidelity(rows)["press"]) == {"knorm"}
    assert not len(fidelity(line("a", [1.0])))


def test_tables_write_it_where_it_was_measured(tmp_path: Path) -> None:
    def write(folder: Path, rows: list[Record]) -> None:
        with RecordWriter(folder) as writer:
            for row in rows:
                writer.append(row)
        write_tables([folder])

    rows = line("a", [1.0, 0.0, 1.0], "knorm", 0.5)
    write(tmp_path / "without", rows)
    assert not list((tmp_path / "without").glob("fidelity*"))
    write(tmp_path / "with", with_fidelity(rows, [0.1, 0.2, 0.3]))
    names = sorted(path.name for path in (tmp_path / "with").glob("fidelity*"))
    assert names == ["fidelity.csv", "fidelity.md", "fidelity.parquet"]
    frame = pd.read_csv(tmp_path / "with" / "fidelity.csv")
    assert frame[(frame["measure"] == "answer_kl") & (frame["task"] == "a")][
        "value"
    ].tolist() == pytest.approx([0.2])


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_intervals_without_bounds_cover(scale: float) -> None:
    draws = np.random.default_rng(0).exponential(scale, (600, 40))
    covered = []
    for values in draws:
        cell = clusters.cluster(values, bounded=False)
        low, high = intervals.score_interval(cell, intervals.bootstrap([cell], resamples=1000)[0])
        covered.append(low <= scale <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)
    few = [
        intervals.score_interval(clusters.cluster(values[:5], bounded=False), None)
        for values in draws - scale
    ]
    assert np.mean([low <= 0 <= high for low, high in few]) == pytest.approx(
        0.9, abs=0.05
    )  # t on five skewed values


def needed(cell: clusters.Clusters) -> float:
    return significance.samples_needed(cell.mean, cell.standard_error, len(cell.sums), cell.n)


def test_samples_needed_find_the_difference_with_the_power_stated() -> None:
    seen = needed(
        clusters.cluster(np.tile([0.0, 1.0], 500) - 0.25, bounded=False)
    )  # mean 0.25, deviation 0.5
    assert seen == math.ceil((1.959964 + 0.841621) ** 2 * 0.25 / 0.0625 * 1000 / 999) == 32
    draws = 0.25 + 0.5 * np.random.default_rng(1).standard_normal((2000, int(seen)))
    found = np.abs(draws.mean(1)) > 1.959964 * 0.5 / math.sqrt(seen)
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    double = clusters.cluster(
        np.repeat(np.tile([0.0, 1.0], 500) - 0.25, 2), None, np.repeat(np.arange(1000), 2), bounded=False
    )
    assert needed(double) == 2 * seen  # two questions of a context that say the same are one
    assert needed(clusters.cluster([0.5, 0.5, 0.5])) == significance.FEWEST
    assert math.isinf(needed(clusters.cluster([0.5, -0.5])))
    assert math.isnan(needed(clusters.cluster([0.5])))


def test_compare_says_how_many_samples(
    tmp_path: Path, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    one = with_fidelity(line("a", [1.0, 0.0, 1.0, 0.0] * 5, "x", 0.5), [0.1, 0.2, 0.3, 0.2] * 5)
    other = with_fidelity(line("a", [1.0, 0.0, 0.0, 1.0] * 4 + [0.0] * 4, "y", 0.5), [0.4, 0.6, 0.5, 0.5] * 5)
    frame = compare(one + other, "x", "y")
    assert len(frame) == 1
    assert frame["needed_score"].iloc[0] > 4 * frame["needed_answer_kl"].iloc[0] >= 4 * significance.FEWEST
    assert math.isinf(frame["needed_answer_agreement"].iloc[0]) and math.isnan(
        frame["needed_reference_kl"].iloc[0]
    )
    with RecordWriter(tmp_path) as writer:
        for row in one + other:
            writer.append(row)
    assert exit_code("compare", "x", "y", tmp_path) == 0
    printed = capsys.readouterr().out
    assert (
        "samples to tell the two apart" in printed
        and "answer_kl" in printed
        and "reference_kl" not in printed
    )


def test_compare_finds_in_fidelity_what_the_score_leaves_open(
    tmp_path: Path, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    scores_of = {"x": [1.0, 0.0] * 10, "y": [1.0, 0.0, 0.0, 1.0] * 5, "z": [1.0, 0.0] * 10}
    rows = with_fidelity(line("a", [1.0] * 20), [0.0] * 20)
    for press, divergence in (("x", 0.1), ("y", 0.4), ("z", 0.1)):
        rows += with_fidelity(
            line("a", scores_of[press], press, 0.5), [divergence + 0.001 * at for at in range(20)]
        )
    frame = compare_all(rows, "x").set_index("other")
    assert frame.index.tolist() == ["y", "z"], "neither itself nor the full cache"
    assert frame["delta_answer_kl"].tolist() == pytest.approx([-0.3, 0.0]) and frame[
        "p_answer_kl"
    ].tolist() == pytest.approx([2e-5, 1.0])
    assert frame["p_holm_answer_kl"].tolist() == pytest.approx([4e-5, 1.0]), "adjusted for two presses"
    assert (
        frame["verdict"].tolist() == ["not distinguishable"] * 2 and frame["delta_reference_kl"].isna().all()
    )
    with RecordWriter(tmp_path) as writer:
        for row in rows:
            writer.append(row)
    assert exit_code("compare", "x", "all", tmp_path) == 0
    printed = capsys.readouterr().out
    assert (
        "x against every other press, 2 comparisons" in printed
        and "median of 2 pairs" in printed
        and "-0.300 (4e-05)" in printed
    )
    with pytest.raises(ValueError, match="no other press shares samples and a budget with 'x'"):
        compare_all([row for row in rows if row.press in ("x", "none")], "x")
