"""The tidy frame: cells by hand, averages, pairing, and what may not stand in one cell."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from longpress.analysis.stats import intervals
from longpress.analysis.stats.clusters import cluster
from longpress.analysis.stats.significance import p_values
from longpress.analysis.tables.averages import averages
from longpress.analysis.tables.row_keys import differing
from longpress.analysis.tables.scores import COLUMNS, GENERATED, scores
from tests.support.made_up_records import line, record

ROOT = Path(__file__).parents[2]


def cell(frame: pd.DataFrame, **names: Any) -> Any:
    for name, value in names.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_a_cell_by_hand() -> None:
    frame = scores([*line("a", [1.0, 0.5, 0.0, 0.5]), *line("a", [0.5, 0.5, 0.0, 0.0], "knorm", 0.25)])
    assert list(frame.columns) == [*COLUMNS, *GENERATED]
    full, press = cell(frame, press="none", task="a"), cell(frame, press="knorm", task="a")
    assert full["score"] == 50
    assert full["se"] == pytest.approx(100 * math.sqrt(0.5 / 3) / 2)
    assert math.isnan(full["delta"]) and full["n_common"] == 0
    assert press["delta"] == -25
    assert press["delta_se"] == pytest.approx(100 * np.std([-0.5, 0, 0, -0.5], ddof=1) / 2)
    assert press["p_value"] == press["p_holm"] == 0.5
    assert (press["n"], press["n_common"], press["wins"], press["ties"], press["losses"]) == (4, 4, 0, 2, 2)
    assert (press["kept_fraction"], press["cache_bytes"], press["full_cache_bytes"], press["new_tokens"]) == (
        0.75,
        50,
        100,
        4,
    )
    assert press["ci_low"] <= press["score"] <= press["ci_high"]


def test_the_frame_says_what_intervals_say() -> None:
    generator = np.random.default_rng(0)
    x, y, contexts = generator.random(60), generator.random(60), [f"c{at // 3}" for at in range(60)]
    rows = [
        record("a", at, float(value), press, ratio, context_id=contexts[at], weight=1.0 + at % 2)
        for press, ratio, values in (("none", 0.0, y), ("knorm", 0.5, x))
        for at, value in enumerate(values)
    ]
    weights, order = np.array([1.0 + at % 2 for at in range(60)]), sorted(range(60), key=lambda at: f"a/{at}")
    one = cell(scores(rows), press="knorm", task="a")
    score = cluster(x[order], weights[order], np.array(contexts)[order])
    expected = (
        *(score.mean, score.standard_error),
        *intervals.score_interval(score, intervals.bootstrap([score])[0]),
    )
    assert [one["score"], one["se"], one["ci_low"], one["ci_high"]] == pytest.approx(
        [100 * part for part in expected]
    )
    change = cluster(x[order] - y[order], weights[order], np.array(contexts)[order])
    expected = (
        *(change.mean, change.standard_error),
        *intervals.difference_interval(change, intervals.bootstrap([change])[0]),
    )
    assert [one["delta"], one["delta_se"], one["delta_ci_low"], one["delta_ci_high"]] == pytest.approx(
        [100 * part for part in expected]
    )
    assert one["p_value"] == pytest.approx(p_values([change])[0])
    assert (one["n"], one["n_contexts"]) == (60, 20)


def test_p_values_are_adjusted_over_the_cells_of_a_table() -> None:
    full = [1.0] * 12
    rows = [row for at in range(3) for row in line(f"t{at}", full)]
    rows += [
        row for at in range(3) for row in line(f"t{at}", [0.0] * (4 + at) + full[4 + at :], "knorm", 0.5)
    ]
    frame = scores(rows)
    cells = frame[(frame["press"] == "knorm") & ~frame["aggregate"]]
    assert cells["p_value"].tolist() == [2 * 0.5**k for k in (4, 5, 6)]
    assert cells["p_holm"].tolist() == pytest.approx([0.125, 0.125, 3 * 2 * 0.5**6])
    assert cells["p_bh"].tolist() == pytest.approx([0.125, 1.5 * 2 * 0.5**5, 3 * 2 * 0.5**6])


def test_average_and_its_error() -> None:
    frame = scores([*line("a", [1.0, 0.0, 1.0, 1.0]), *line("b", [0.5, 0.25])])
    a, b, mean = (cell(frame, task=task) for task in ("a", "b", "average"))
    assert mean["score"] == pytest.approx((75 + 37.5) / 2)
    assert mean["se"] == pytest.approx(math.hypot(a["se"], b["se"]) / 2)
    assert (mean["n"], mean["n_tasks"], mean["aggregate"]) == (6, 2, True)
    assert mean["ci_low"] < mean["score"] < mean["ci_high"]


def test_average_of_incomplete_lines_is_withheld() -> None:
    frame = scores([*line("a", [1.0, 0.5]), *line("b", [0.5, 0.5]), *line("a", [0.5, 0.5], "knorm", 0.5)])
    mean = cell(frame, press="knorm", task="average")
    assert math.isnan(mean["score"]) and math.isnan(mean["delta"]) and math.isnan(mean["ci_low"])
    assert mean["n"] == 2
    assert cell(frame, press="none", task="average")["score"] == pytest.approx(62.5)


def test_failed_and_empty_and_truncated_samples_are_counted() -> None:
    rows = [*line("a", [1.0, 0.0, None]), record("a", 3, 0.0, prediction=" \n", truncated=True)]
    one = cell(scores(rows), task="a")
    assert (one["n"], one["n_failed"], one["n_empty"], one["n_truncated"]) == (3, 1, 1, 1)
    assert one["score"] == pytest.approx(100 / 3)
    lost = cell(
        scores([*line("a", [None, None]), *line("a", [1.0, 1.0], "knorm", 0.5)]), press="none", task="a"
    )
    assert (lost["n"], lost["n_failed"]) == (0, 2)
    assert math.isnan(lost["score"])


def test_press_compared_with_itself_differs_nowhere() -> None:
    values = [0.0, 1.0, 0.5, 0.25] * 10
    frame = scores(
        [
            *line("a", values),
            *line("b", values),
            *line("a", values, "knorm", 0.0),
            *line("b", values, "knorm", 0.0),
        ]
    )
    for task in ("a", "b", "average"):
        one = cell(frame, press="knorm", task=task)
        assert (one["delta"], one["delta_se"], one["p_value"], one["p_holm"]) == (0, 0, 1, 1)
        assert one["delta_ci_low"] < 0 < one["delta_ci_high"]


def test_order_of_records_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    rows = [
        row
        for task in "ab"
        for press, ratio in (("none", 0.0), ("knorm", 0.5))
        for row in line(task, list(generator.random(30)), press, ratio)
    ]
    mixed = rows.copy()
    random.Random(0).shuffle(mixed)
    pd.testing.assert_frame_equal(scores(rows), scores(mixed))


def test_versions_dtypes_and_options_stand_in_rows_of_their_own() -> None:
    others: list[dict[str, Any]] = [
        {"benchmark_version": "2"},
        {"dtype": "bfloat16"},
        {"revision": "x"},
        {"benchmark_parameters": {"length": 4096}},
    ]
    for other in others:
        frame = scores([*line("a", [1.0, 1.0]), *line("a", [0.0, 0.0], "knorm", 0.5, **other)])
        assert set(frame[frame["task"] == "a"]["score"]) == {0.0, 100.0}
        assert frame["delta"].isna().all(), "nothing to compare with"


def test_one_sample_with_two_prompts_in_a_cell_is_refused() -> None:
    rows = [*line("a", [1.0, 1.0]), record("a", 1, 0.0, prompt_hash="other")]
    with pytest.raises(ValueError, match="sample 'a/1' was answered twice with different prompts"):
        scores(rows)


def test_different_prompts_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"unlisted/a, press knorm against .* different prompts"):
        scores([*line("a", [1.0, 1.0]), *line("a", [1.0, 1.0], "knorm", 0.5, prompt_hash="other")])


def test_different_metrics_are_not_averaged() -> None:
    with pytest.raises(ValueError, match=r"different metrics \(f1, rouge\)"):
        scores([record("a", 0, 1.0), record("a", 1, 1.0, metric="rouge")])


def test_nothing_to_tabulate() -> None:
    with pytest.raises(ValueError, match="no records"):
        scores([])


def test_ratios_are_rounded_and_other_budgets_told_apart() -> None:
    rows = [record("a", 0, 1.0, "knorm", 0.1 + 0.2), record("a", 1, 0.0, "knorm", 0.3)]
    rows += [record("a", 0, 1.0, "knorm", None, budget_tokens=tokens) for tokens in (128, 256)]
    frame = scores(rows)
    assert cell(frame, task="a", compression_ratio=0.3)["n"] == 2
    assert sorted(frame[frame["task"] == "a"]["budget_tokens"].dropna()) == [128, 256]


def test_parameters_are_labelled_only_where_they_differ() -> None:
    assert differing([{"window_size": 32}]) == [""]
    assert differing([{"w": 32, "k": 1}, {"w": 64, "k": 1}]) == ["w=32", "w=64"]
    assert differing([{"press": {"name": "knorm"}}, {"press": {"name": "snapkv", "w": 2}}]) == [
        "press.name=knorm",
        "press.name=snapkv, press.w=2",
    ]
    rows = [
        *line("a", [1.0], "snapkv", 0.5, press_parameters={"w": 32, "k": 1}),
        *line("a", [0.0], "snapkv", 0.5, press_parameters={"w": 64, "k": 1}),
    ]
    frame = scores(rows)
    assert cell(frame, task="a", press_parameters="w=64")["score"] == 0


def test_full_cache_comes_first_and_serves_the_other_query_mode() -> None:
    rows = [*line("a", [1.0, 0.0], "adakv", 0.5, query_aware=True), *line("a", [1.0, 1.0])]
    frame = scores(rows)
    assert frame["press"].iloc[0] == "none"
    assert cell(frame, press="adakv", task="a")["delta"] == -50


def test_the_lead_over_the_runner_up_is_tested_on_common_samples() -> None:
    good, bad = [1.0] * 30, [0.0] * 20 + [1.0] * 10
    frame = scores(
        [
            *line("a", good),
            *line("a", good, "knorm", 0.5),
            *line("a", bad, "snapkv", 0.5),
            *line("a", good, "tova", 0.25),
        ]
    )
    best = cell(frame, press="knorm", task="a")
    assert best["lead"] == pytest.approx(200 / 3)
    assert best["p_lead"] < 1e-4
    assert frame[(frame["press"] != "knorm")]["lead"].isna().all()


def test_what_keeps_more_than_its_ratio_does_not_run_for_best() -> None:
    full = [1.0] * 20
    rows = [
        *line("a", full),
        *line("a", full, "greedy", 0.5, kept_fraction=0.75),
        *line("a", full[:15] + [0.0] * 5, "good", 0.5),
    ]
    rows += line("a", [0.0] * 20, "bad", 0.5)
    frame = scores(rows)
    good, greedy, bad = (cell(frame, press=name, task="a") for name in ("good", "greedy", "bad"))
    assert (good["lead"], good["behind"], good["p_behind"]) == (75.0, 0.0, 1.0)
    assert math.isnan(greedy["lead"]) and greedy["behind"] == 25.0
    assert bad["behind"] == -75.0 and bad["p_behind"] < 0.05
    assert (
        cell(
            scores([*line("a", full), *line("a", full, "greedy", 0.5, kept_fraction=0.75)]),
            press="greedy",
            task="a",
        )["behind"]
        == 0.0
    )


def test_averages_are_the_suites_own_cut_to_the_tasks_present() -> None:
    tasks, shares = averages("ruler", ["vt", "niah_single_2", "niah_single_10_of_old"])
    assert tasks == ["niah_single_2", "vt", "niah_single_10_of_old"]
    assert shares["average"] == {"niah_single_2": 0.5, "vt": 0.5}
    assert averages("no such suite", ["task_10", "task_2"]) == (
        ["task_2", "task_10"],
        {"average": {"task_2": 0.5, "task_10": 0.5}},
    )


def test_no_module_imports_torch_or_what_takes_long() -> None:
    folder = ROOT / "longpress" / "analysis"
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in folder.rglob("*.py")
    )
    assert "longpress.analysis.tables.write" in modules
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {modules}]; "
        "from longpress.analysis.tables.averages import averages; averages('ruler', ['vt']); "
        "print(*{'torch', 'transformers', 'scipy.stats', 'matplotlib.figure'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


@pytest.mark.slow
def test_a_hundred_thousand_records_take_seconds() -> None:
    generator = np.random.default_rng(0)
    lines = [("none", 0.0), *((f"press{at}", 0.5) for at in range(30))]
    rows = [
        row
        for task in range(13)
        for press, ratio in lines
        for row in line(f"t{task}", list(generator.random(250)), press, ratio)
    ]
    start = time.process_time()
    scores(rows)
    assert time.process_time() - start < 15
