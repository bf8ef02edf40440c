"""Hand-computed intervals and p-values, their edges, and simulated coverage."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import stats

from longpress.analysis.stats import clusters, intervals, multiple_testing, significance
from longpress.analysis.stats.estimates import Samples, TaskEstimate, macro_average, task_estimates


class Estimated(NamedTuple):
    n: int
    n_clusters: int
    mean: float
    se: float
    low: float
    high: float


class Differing(NamedTuple):
    mean: float
    se: float
    low: float
    high: float
    p_value: float
    wins: int
    ties: int
    losses: int


def estimate(values: Any, weights: Any = None, ids: Any = None, seed: int = 0) -> Estimated:
    """The mean of scores; every sample is its own cluster without ids."""
    summed = clusters.cluster(values, weights, ids)
    (task,), _ = task_estimates([summed], [], seed)
    return Estimated(summed.n, len(summed.sums), *task.estimate)


def difference(values: Any, baseline: Any, ids: Any = None) -> Differing:
    """The mean difference of two rows of scores of the same samples."""
    names = np.array([f"{at:05d}" for at in range(len(values))], dtype=str)
    contexts = names if ids is None else np.asarray(ids)
    row, other = (
        Samples("a row", names, names, np.asarray(scores, dtype=float), np.ones(len(names)), contexts)
        for scores in (values, baseline)
    )
    paired = row.minus(other)
    _, (task,) = task_estimates([], [paired.summed])
    p_value = float(significance.p_values([paired.summed])[0])
    return Differing(*task.estimate, p_value, paired.wins, paired.ties, paired.losses)


def test_mean_and_standard_error_by_hand() -> None:
    one = estimate([0.0, 0.5, 1.0, 0.5])
    assert one.n == one.n_clusters == 4
    assert one.mean == 0.5
    assert one.se == pytest.approx(math.sqrt(0.5 / 3) / 2)  # sd^2 = (0.25 + 0 + 0.25 + 0) / 3


def test_clustered_standard_error_by_hand() -> None:
    # residual sums of the clusters: a +0.5, b -0.5; n = 4, C = 2: sqrt(2/1 * (0.25 + 0.25)) / 4
    one = estimate([1.0, 0.5, 0.5, 0.0], ids=["a", "a", "b", "b"])
    assert (one.n, one.n_clusters, one.mean) == (4, 2, 0.5)
    assert one.se == pytest.approx(math.sqrt(2 * 0.5) / 4)


def test_clusters_of_one_change_nothing_and_their_order_neither() -> None:
    x = np.random.default_rng(0).random(40)
    plain, named = estimate(x), estimate(x, ids=[f"c{at}" for at in range(40)])
    assert named == plain
    assert plain.se == pytest.approx(x.std(ddof=1) / math.sqrt(40))


def test_weighted_mean_is_that_of_repeated_questions_in_one_context() -> None:
    repeated = estimate([1.0, 1.0, 1.0, 0.0, 0.5], ids=[0, 0, 0, 1, 2])
    weighted = estimate([1.0, 0.0, 0.5], weights=[3, 1, 1])
    assert weighted.mean == pytest.approx(3.5 / 5)
    assert weighted.mean == pytest.approx(repeated.mean)
    assert weighted.se == pytest.approx(repeated.se)


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 10), (7, 10), (450, 500), (500, 500)])
def test_wilson_equals_scipy(right: int, n: int) -> None:
    low, high = intervals.wilson(right / n, n)
    expected = stats.binomtest(right, n).proportion_ci(0.95, "wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_500_of_500_has_no_standard_error_but_an_interval() -> None:
    one = estimate(np.ones(500))
    assert one.se == 0
    assert one.high == 1
    assert 1 - one.low == pytest.approx(0.0076, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_equal_values_never_have_an_interval_of_width_zero(value: float, n: int) -> None:
    one = estimate(np.full(n, value))
    assert 0 <= one.low <= value <= one.high <= 1
    assert one.high - one.low > 0.05
    assert math.isnan(one.se) if n == 1 else one.se == pytest.approx(0)


def test_one_cluster_of_many_questions_counts_as_one_observation() -> None:
    one = estimate([1.0, 0.0, 1.0, 1.0], ids=["a"] * 4)
    assert math.isnan(one.se)
    assert (one.low, one.high) == pytest.approx(tuple(map(float, intervals.wilson(0.75, 1))))


def test_no_sample_is_nan() -> None:
    one = estimate([])
    assert one.n == 0
    assert math.isnan(one.mean) and math.isnan(one.low)
    assert math.isnan(difference([], []).p_value)


def test_clustered_proportions_are_wider_and_never_narrower_than_independent_ones() -> None:
    alone = np.arange(100) % 2 == 0
    one = estimate(np.repeat(alone, 5).astype(float), ids=np.repeat(np.arange(100), 5))
    independent = estimate(np.repeat(alone, 5).astype(float))
    per_context = estimate(alone.astype(float))
    assert one.high - one.low > 2 * (independent.high - independent.low)
    assert (one.low, one.high) == pytest.approx((per_context.low, per_context.high), abs=0.005)
    opposite = np.tile(
        [0.0, 1.0], 100
    )  # each context has one easy and one hard question: less variance is not believed
    mixed, plain = (
        estimate(opposite, ids=np.repeat(np.arange(100), 2)),
        estimate(opposite),
    )
    assert mixed.high - mixed.low >= plain.high - plain.low


def test_bootstrap_is_seeded_and_close_to_the_normal_interval_for_many_samples() -> None:
    x = np.random.default_rng(1).random(2000)
    one, again, other = (
        estimate(x, seed=3),
        estimate(x, seed=3),
        estimate(x, seed=4),
    )
    assert one == again
    assert other.low != one.low
    assert one.low == pytest.approx(one.mean - 1.96 * one.se, abs=1e-3)
    assert one.high == pytest.approx(one.mean + 1.96 * one.se, abs=1e-3)


def test_bootstrap_in_chunks_and_of_weighted_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    cell = clusters.cluster(generator.random(90), generator.integers(1, 4, 90), np.repeat(np.arange(30), 3))
    monkeypatch.setattr(intervals, "_CHUNK", 1000)
    replicates = intervals.bootstrap([cell, cell], resamples=3000)
    assert (replicates[0] == replicates[1]).all()
    assert replicates[0].mean() == pytest.approx(cell.mean, abs=0.005)
    assert replicates[0].std() == pytest.approx(cell.standard_error * math.sqrt(29 / 30), rel=0.05)


@pytest.mark.parametrize(
    ("values", "weights", "ids"),
    [
        ([float("nan")], None, None),
        ([1.5], None, None),
        ([[0.5]], None, None),
        ([0.5], [0.0], None),
        ([0.5], [1, 1], None),
        ([0.5], None, [1, 2]),
    ],
)
def test_bad_input_is_refused(values: Any, weights: Any, ids: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        estimate(values, weights, ids)


def test_negative_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="must lie"):
        estimate([-0.5, 0.5])


def test_paired_difference_by_hand() -> None:
    one = difference([1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.5])
    assert (one.wins, one.ties, one.losses) == (2, 2, 0)
    assert one.mean == pytest.approx(1.5 / 4)
    assert one.se == pytest.approx(np.std([1, 0, 0, 0.5], ddof=1) / 2)
    assert one.p_value == 0.5  # 2 of the 4 sign assignments reach |1.5|


def test_a_press_compared_with_itself() -> None:
    for x in (
        np.random.default_rng(0).random(300),
        (np.random.default_rng(0).random(300) < 0.7).astype(float),
    ):
        one = difference(x, x)
        assert (one.mean, one.se, one.p_value, one.wins, one.ties, one.losses) == (0, 0, 1, 0, 300, 0)
        bound = intervals.Z**2 / (300 + intervals.Z**2)  # Tango's interval without discordant pairs
        assert (one.low, one.high) == pytest.approx((-bound, bound))


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 0), (6, 1), (40, 21), (5, 5)])
def test_mcnemar_equals_the_binomial_test(wins: int, losses: int) -> None:
    x, y = (
        np.r_[np.ones(wins), np.zeros(losses), np.ones(20)],
        np.r_[np.zeros(wins), np.ones(losses), np.ones(20)],
    )
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert difference(x, y).p_value == pytest.approx(expected)


def test_sign_flips_equal_scipy_where_exact_and_are_near_it_otherwise() -> None:
    generator = np.random.default_rng(2)
    effects = [generator.normal(0.4, 1, 9), generator.normal(0.4, 1, 30), np.zeros(5)]
    p = significance.sign_flips(effects)
    exact, near = (
        stats.permutation_test(
            (effect,), np.mean, permutation_type="samples", n_resamples=count, rng=np.random.default_rng(0)
        ).pvalue
        for effect, count in ((effects[0], np.inf), (effects[1], 20_000))
    )
    assert p[0] == pytest.approx(exact)
    assert p[1] == pytest.approx(near, abs=0.01)
    assert p[2] == 1


def test_clustered_differences_are_tested_by_cluster() -> None:
    x, y, ids = np.ones(40), np.zeros(40), np.repeat(np.arange(4), 10)
    assert difference(x, y).p_value < 1e-10
    assert difference(x, y, ids=ids).p_value == pytest.approx(2 / 2**4)


def test_pairs_are_the_common_ids_and_prompts_must_agree() -> None:
    left, right = clusters.pair(["b", "a", "c"], ["2", "1", "3"], ["c", "d", "a"], ["3", "4", "1"])
    assert (left.tolist(), right.tolist()) == ([1, 2], [2, 0])
    with pytest.raises(ValueError, match=r"sample 'c' \(1 of 2\) was asked with different prompts"):
        clusters.pair(["b", "a", "c"], ["2", "1", "3"], ["c", "d", "a"], ["X", "4", "1"])


def test_rows_are_paired_on_the_samples_that_both_have() -> None:
    def row(label: str, hashes: str, **scores: float) -> Samples:
        names = np.array(list(scores))
        values, weights = np.array(list(scores.values())), np.arange(1.0, len(names) + 1)
        return Samples(label, names, np.array([hashes] * len(names)), values, weights, names)

    paired = row("x", "1", a=1.0, b=0.5, c=0.0).minus(row("y", "1", c=0.5, b=0.5, d=1.0))
    assert (paired.summed.n, paired.wins, paired.ties, paired.losses) == (2, 0, 1, 1)
    assert paired.summed.mean == pytest.approx(-0.5 * 3 / 5), "weights are those of the first"
    assert row("x", "1", a=1.0).minus(row("y", "1", b=1.0)).summed.n == 0
    with pytest.raises(
        ValueError, match=r"x against y: sample 'a' \(1 of 1\) was asked with different prompts"
    ):
        row("x", "1", a=1.0).minus(row("y", "2", a=1.0))


def test_adjusted_p_values_by_hand() -> None:
    p = [0.01, 0.04, math.nan, 0.03]
    assert multiple_testing.holm(p) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
    assert multiple_testing.benjamini_hochberg(p) == pytest.approx([0.03, 0.04, math.nan, 0.04], nan_ok=True)
    assert (
        np.isnan(multiple_testing.holm([math.nan])).all()
        and np.isnan(multiple_testing.benjamini_hochberg([math.nan])).all()
    )


def test_non_inferiority() -> None:
    assert significance.non_inferior([-0.9, -1.0, 0.5], 1.0).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="margin"):
        significance.non_inferior(0.0, 0.0)


def test_macro_average_by_hand() -> None:
    cells = [clusters.cluster([5.0, 7.0], bounded=False), clusters.cluster([1.0, 3.0], bounded=False)]
    mean, se, low, high = intervals.macro(cells, [5.94, 1.92], [6.06, 2.08], [0.5, 0.5], None, [False, False])
    assert mean == pytest.approx(4)
    assert se == pytest.approx(math.hypot(1, 1) / 2)
    assert (low, high) == pytest.approx((3.95, 4.05)), "0.06 and 0.08 by squares, halved"


def test_macro_average_of_perfect_tasks_is_that_of_all_their_samples() -> None:
    cells = [clusters.cluster(np.ones(500))] * 13
    mean, se, low, high = intervals.macro(cells, [0.99] * 13, [1.0] * 13, [1 / 13] * 13, None, [False] * 13)
    assert (mean, se, high) == pytest.approx((1, 0, 1))
    assert low == pytest.approx(float(intervals.wilson(1.0, 6500)[0])), (
        "thirteen times 500 of 500 are 6500 of 6500"
    )
    unchanged = [clusters.cluster(np.zeros(500))] * 13
    _, _, low, high = intervals.macro(
        unchanged, [-0.01] * 13, [0.01] * 13, [1 / 13] * 13, None, [False] * 13, paired=True
    )
    assert (-low, high) == pytest.approx([1 - float(intervals.wilson(1.0, 6500)[0])] * 2)


def test_macro_of_one_task_is_the_task() -> None:
    cell = clusters.cluster([0.0, 1.0, 1.0])
    assert intervals.macro([cell], [0.2], [0.9], [1.0], None, [False])[2:] == (0.2, 0.9)


def test_macro_bootstrap_agrees_with_its_standard_error() -> None:
    generator = np.random.default_rng(5)
    cells = [clusters.cluster(generator.random(60)) for _ in range(4)]
    replicates = np.sum([intervals.bootstrap([cell], seed)[0] / 4 for seed, cell in enumerate(cells)], axis=0)
    mean, se, low, high = intervals.macro(cells, [0.0] * 4, [1.0] * 4, [0.25] * 4, replicates, [True] * 4)
    assert (low, high) == pytest.approx((mean - 1.96 * se, mean + 1.96 * se), abs=0.004)


def _coverage(
    draw: Callable[[np.random.Generator], tuple[Any, Any]], true: float, trials: int, paired: bool = False
) -> float:
    generator, hits = np.random.default_rng(0), 0
    for _ in range(trials):
        values, ids = draw(generator)
        samples = clusters.cluster(values, None, ids)
        replicates = intervals.bootstrap([samples], resamples=1000)[0] if samples.resampled else None
        if paired:
            low, high = intervals.difference_interval(samples, replicates)
        else:
            low, high = intervals.score_interval(samples, replicates)
        hits += low <= true <= high
    return hits / trials


def _flips(n: int, p: float) -> Callable[[np.random.Generator], tuple[Any, Any]]:
    return lambda generator: ((generator.random(n) < p).astype(float), None)


def _clustered_flips(contexts: int, p: float) -> Callable[[np.random.Generator], tuple[Any, Any]]:
    def draw(generator: np.random.Generator) -> tuple[Any, Any]:
        chance = generator.beta(3 * p, 3 * (1 - p), contexts)[:, None]
        return (generator.random((contexts, 4)) < chance).astype(float).ravel(), np.repeat(
            np.arange(contexts), 4
        )

    return draw


def _beta(n: int, a: float, b: float) -> Callable[[np.random.Generator], tuple[Any, Any]]:
    return lambda generator: (generator.beta(a, b, n), None)


def _changes(n: int, loss: float, gain: float) -> Callable[[np.random.Generator], tuple[Any, Any]]:
    return lambda generator: (generator.choice([-1.0, 0.0, 1.0], n, p=[loss, 1 - loss - gain, gain]), None)


CASES = [
    # scores, true mean, least coverage: 0.95 less what a small sample cannot tell
    *[(_flips(n, p), p, 0.89) for n in (20, 100) for p in (0.01, 0.05, 0.5, 0.99)],
    *[
        (_beta(n, a, b), a / (a + b), 0.87 if n == 20 else 0.92)
        for n in (20, 100)
        for a, b in ((2, 2), (0.5, 0.5), (8, 0.5))
    ],
    *[(_clustered_flips(n, p), p, 0.92) for n in (20, 60) for p in (0.05, 0.5, 0.95)],
]
PAIRS = [
    (_changes(n, loss, gain), gain - loss, 0.93)
    for n in (20, 100)
    for loss, gain in ((0.01, 0.01), (0.1, 0.05), (0.05, 0.0))
]


@pytest.mark.parametrize(("draw", "true", "least"), CASES)
def test_coverage_of_scores(draw: Any, true: float, least: float) -> None:
    assert _coverage(draw, true, 150) >= least - 0.05


@pytest.mark.parametrize(("draw", "true", "least"), PAIRS)
def test_coverage_of_differences(draw: Any, true: float, least: float) -> None:
    assert _coverage(draw, true, 150, paired=True) >= least - 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "true", "least", "paired"),
    [*[(*case, False) for case in CASES], *[(*case, True) for case in PAIRS]],
)
def test_coverage_in_full(draw: Any, true: float, least: float, paired: bool) -> None:
    assert _coverage(draw, true, 2000, paired) >= least


@pytest.mark.slow
def test_p_values_hold_their_level() -> None:
    generator = np.random.default_rng(0)
    cells = [clusters.cluster(generator.choice([-0.5, -0.25, 0, 0.25, 0.5], 80)) for _ in range(2000)]
    assert 0.035 <= (significance.p_values(cells) < 0.05).mean() <= 0.065


@pytest.mark.parametrize("n", [1, 5, 20, 500])
@pytest.mark.parametrize("true", [0.0, 1.0])
def test_intervals_at_0_and_100_percent_cover_and_are_open(true: float, n: int) -> None:
    assert _coverage(_flips(n, true), true, 20) == 1.0
    low, high = intervals.score_interval(clusters.cluster(np.full(n, true)), None)
    assert high - low == pytest.approx(intervals.Z**2 / (n + intervals.Z**2)), (
        "Wilson: what n equal answers leave open"
    )


def _task(cell: clusters.Clusters, seed: int, paired: bool) -> TaskEstimate:
    of_scores, of_differences = task_estimates([] if paired else [cell], [cell] if paired else [], seed, 1000)
    return (of_scores + of_differences)[0]


def _macro_coverage(
    draws: Sequence[Callable[[np.random.Generator], tuple[Any, Any]]], true: float, trials: int, paired: bool
) -> float:
    generator, hits, shares = np.random.default_rng(1), 0, np.full(len(draws), 1 / len(draws))
    for trial in range(trials):
        cells = [clusters.cluster(draw(generator)[0]) for draw in draws]
        tasks = [_task(cell, 100 * trial + at, paired) for at, cell in enumerate(cells)]
        average = macro_average(tasks, list(shares), paired)
        hits += average.low - 1e-9 <= true <= average.high + 1e-9
    return hits / trials


def _tasks(chances: Sequence[float], n: int) -> tuple[list[Any], float, bool]:
    return [_flips(n, p) for p in chances], float(np.mean(chances)), False


def _changed(rates: Sequence[tuple[float, float]], n: int) -> tuple[list[Any], float, bool]:
    return (
        [_changes(n, loss, gain) for loss, gain in rates],
        float(np.mean([gain - loss for loss, gain in rates])),
        True,
    )


MACRO = [
    *[
        _tasks(*case)
        for case in (
            ((0.0, 0.05, 0.5, 0.9, 1.0), 20),
            ((1.0,) * 13, 20),
            ((0.99,) * 13, 50),
            ((0.3, 0.5, 0.7), 10),
        )
    ],
    *[_tasks(*case) for case in (((0.97, 0.99, 1.0, 0.02), 30), ((0.95,) * 13, 20), ((0.01,) * 6, 100))],
    *[
        _changed(*case)
        for case in (
            (((0.01, 0.01),) * 13, 50),
            (((0.02, 0.0),) * 13, 50),
            (((0.03, 0.01), (0.3, 0.1), (0.0, 0.0)), 30),
        )
    ],
]


@pytest.mark.parametrize(("draws", "true", "paired"), MACRO)
def test_coverage_of_averages(draws: Any, true: float, paired: bool) -> None:
    assert _macro_coverage(draws, true, 100, paired) >= 0.88


@pytest.mark.slow
@pytest.mark.parametrize(("draws", "true", "paired"), MACRO)
def test_coverage_of_averages_in_full(draws: Any, true: float, paired: bool) -> None:
    assert _macro_coverage(draws, true, 1500, paired) >= 0.93


def test_adjusted_p_values_hold_the_level_of_their_family() -> None:
    generator, families, size = np.random.default_rng(2), 400, 12
    cells = [clusters.cluster(generator.choice([-1.0, 0.0, 1.0], 60)) for _ in range(families * size)]
    p = significance.p_values(cells).reshape(families, size)
    for adjust in (multiple_testing.holm, multiple_testing.benjamini_hochberg):
        wrong = np.mean([(adjust(row) < 0.05).any() for row in p])
        assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / families), (
            "where nothing differs, one family in twenty says something does"
        )
    assert np.mean([(row < 0.05).any() for row in p]) > 0.2, (
        "without adjustment they would say so far more often"
    )


def test_a_loss_as_large_as_the_margin_is_rarely_called_lossless() -> None:
    generator, said = np.random.default_rng(3), 0
    for _ in range(300):
        values = generator.choice([-1.0, 0.0, 1.0], 100, p=[0.15, 0.8, 0.05])  # a loss of 10 points
        samples = clusters.cluster(values)
        replicates = intervals.bootstrap([samples], resamples=1000)[0]
        low, _ = intervals.difference_interval(samples, replicates)
        said += bool(significance.non_inferior(low, 0.1))
    assert said / 300 <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / 300)
