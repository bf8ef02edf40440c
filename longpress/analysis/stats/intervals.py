"""95 % intervals of means and of paired differences: pure functions over numpy arrays.

Scores lie in [0, 1], their differences in [-1, 1]. Standard errors follow Miller 2024 (arXiv 2411.00640) with
the correction C/(C-1) for C clusters. Intervals hold 95 %:

- 0/1 scores: Wilson 1927; with clusters or weights the number of samples is divided by the design effect
  (Korn and Graubard 1998).
- other scores, and differences: seeded bootstrap over clusters, bias corrected and accelerated (Efron 1987),
  widened for few clusters as a t interval is (Hesterberg 2015, "What teachers should know about the
  bootstrap", expanded percentiles).
- of fewer than `clusters.LEAST` clusters, or where fewer than `clusters.FEW` differ from the most frequent
  value (one sample, 500 of 500 right, a press that changes two answers) neither sees the tail: Wilson on the
  mean with one observation per cluster. Among scores in [0, 1] of one mean 0/1 scores vary most, so this is
  never too narrow for want of variance; of differences, gains and losses are bounded so one by one and
  combined by squares (Zou and Donner 2008, MOVER), which for no change at all gives the score interval of
  Tango 1998.
- values without bounds (`bounded=False`: log-likelihoods, divergences): the same bootstrap, else Student's t
  on the means of clusters.

Standard errors stay what the formula gives (0 where all are equal, NaN for one cluster); the interval is what
to read there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from longpress.analysis.stats.clusters import Array, Clusters

RESAMPLES = 10_000
"""How often a bootstrap draws clusters anew."""
Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""
_CHUNK = 4_000_000
"""How many drawn clusters are held in memory at a time."""


def score_interval(samples: Clusters, replicates: Array | None) -> tuple[float, float]:
    """95 % interval of the mean of scores in [0, 1].

    Args:
        samples: the scores.
        replicates: (R,) bootstrap means; None for 0/1 scores and where `samples.resampled` is false.

    Raises:
        ValueError: a score is negative, or there are no replicates where they are needed.
    """
    mean, count = samples.mean, len(samples.sums)
    if not samples.n:
        return math.nan, math.nan
    if samples.bounded and (samples.sums < 0).any():
        raise ValueError("scores must lie in [0, 1]")
    if samples.binary and (count == samples.n == samples.n_effective or samples.resampled):
        low, high = wilson(mean, _effective(samples))
    elif not samples.resampled and not samples.bounded:
        low, high = _student(samples)
    elif not samples.resampled:
        low, high = wilson(mean, _kish(samples.weights))
    elif replicates is None:
        raise ValueError("these scores need bootstrap replicates")
    else:
        low, high = percentiles(replicates, samples)
    return float(low), float(high)


def difference_interval(samples: Clusters, replicates: Array | None) -> tuple[float, float]:
    """95 % interval of a mean paired difference.

    Args:
        samples: the differences.
        replicates: (R,) bootstrap means of the differences; None where `samples.resampled` is false.
    """
    if not samples.n:
        return math.nan, math.nan
    if samples.resampled:
        if replicates is None:
            raise ValueError("these differences need bootstrap replicates")
        return percentiles(replicates, samples)
    if not samples.bounded:
        return _student(samples)
    below, above = _few_differ([samples], np.ones(1), paired=True)
    return max(-1.0, samples.mean - below), min(1.0, samples.mean + above)


def wilson(mean: ArrayLike, n: ArrayLike) -> tuple[Any, Any]:
    """Wilson's score interval (95 %) of a proportion seen in `n` independent samples; arrays broadcast.

    `n` need not be a whole number.
    """
    p, size = np.asarray(mean, dtype=float), np.asarray(n, dtype=float)
    centre = (p + Z**2 / (2 * size)) / (1 + Z**2 / size)
    half = Z / (1 + Z**2 / size) * np.sqrt(np.maximum(p * (1 - p), 0) / size + Z**2 / (4 * size**2))
    # at 0 and 1 the bound is exact; rounding must not move it
    low = np.where(p <= 0, 0.0, np.maximum(centre - half, 0))
    return low, np.where(p >= 1, 1.0, np.minimum(centre + half, 1))


def bootstrap(cells: Sequence[Clusters], seed: int = 0, resamples: int = RESAMPLES) -> Array:
    """Means of resampled clusters, (cells, resamples).

    Cells of as many clusters share their resamples, which is fast. Give different seeds to cells whose
    replicates will be added up (the tasks of an average), so that they are independent.
    """
    result = np.empty((len(cells), resamples))
    for count in sorted({len(cell.sums) for cell in cells}):
        rows = [row for row, cell in enumerate(cells) if len(cell.sums) == count]
        generator = np.random.default_rng([seed, count])
        sums, weights = (np.stack([cells[row][part] for row in rows]) for part in (0, 1))
        even = bool((weights == weights[:, :1]).all())
        step = max(1, _CHUNK // max(count, 1))
        for start in range(0, resamples, step):
            size = min(step, resamples - start)
            drawn = generator.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
            counts = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(float).T
            result[rows, start : start + size] = (sums @ counts) / (
                weights[:, :1] * count if even else weights @ counts
            )
    return result


def percentiles(replicates: Array, samples: Clusters) -> tuple[float, float]:
    """95 % interval from bootstrap means (R,) of `samples`.

    Bias corrected and accelerated, widened as a t interval is.
    """
    residuals, count = samples.residuals, len(samples.sums)
    acceleration = float((residuals**3).sum()) / (6 * float(np.square(residuals).sum()) ** 1.5)
    below = float((replicates < samples.mean).mean() + (replicates == samples.mean).mean() / 2)
    bias = NormalDist().inv_cdf(min(max(below, 0.01), 0.99))
    half = math.sqrt(count / (count - 1)) * _quantile(count)
    shifted = np.array([bias - half, bias + half])
    low, high = np.quantile(
        replicates, [_normal(float(z)) for z in bias + shifted / (1 - acceleration * shifted)]
    )
    return float(low), float(high)


def macro(
    cells: Sequence[Clusters],
    lows: ArrayLike,
    highs: ArrayLike,
    shares: ArrayLike,
    replicates: Array | None,
    inside: ArrayLike,
    paired: bool = False,
) -> tuple[float, float, float, float]:
    """A weighted mean over tasks with an error of its own.

    The error is sqrt(sum of share^2 SE^2), that is sqrt(sum SE^2) / T for a plain mean.

    The interval is a bootstrap stratified by task. Tasks that a bootstrap cannot see (see the module) have a
    Wilson interval of their weighted sum, so that thirteen times 500 of 500 has the interval of 6500 of 6500
    and not one of width 0; values without bounds have their own intervals combined by squares. The three add
    by squares.

    Args:
        cells: (T,) samples of the tasks; a standard error that is NaN makes the result's NaN.
        lows: (T,) lower ends of their intervals, `highs` (T,) the upper ends; of a single task they are the
            result.
        highs: see `lows`.
        shares: (T,) weight of each task; they sum to 1.
        replicates: (R,) sums of share x bootstrap mean over the `inside` tasks, drawn independently; None if
            there is none.
        inside: (T,) whether a task is part of `replicates`.
        paired: whether the values are differences.

    Returns:
        Mean, standard error, lower and upper end.
    """
    lower, upper, a = (np.asarray(part, dtype=float) for part in (lows, highs, shares))
    m, e = np.array([cell.mean for cell in cells]), np.array([cell.standard_error for cell in cells])
    mean, error = float(a @ m), float(np.sqrt(np.square(a * e).sum()))
    if len(cells) == 1:
        return mean, error, float(lower[0]), float(upper[0])
    drawn = np.asarray(inside, dtype=bool)
    bounded = np.array([cell.bounded for cell in cells])

    # tasks of values without bounds that no bootstrap sees: their own intervals
    seen_by_t = ~drawn & ~bounded
    below, above = (float(np.square(a * part)[seen_by_t].sum()) for part in (m - lower, upper - m))

    # scores of which too few differ: one interval of their weighted sum
    if (few := ~drawn & bounded).any():
        down, up = _few_differ([cell for cell, here in zip(cells, few, strict=True) if here], a[few], paired)
        below, above = below + down**2, above + up**2

    # the others: their bootstrap, whose means vary by (C-1)/C too little, scaled to the standard error
    if replicates is not None and drawn.any():
        spread = float(np.sqrt(np.square(a * e)[drawn].sum()))
        scale = max(1.0, spread / float(replicates.std()))
        low, high = (np.quantile(replicates, [0.025, 0.975]) - float((a * m)[drawn].sum())) * scale
        below, above = below + low**2, above + high**2
    return mean, error, mean - math.sqrt(below), mean + math.sqrt(above)


def _few_differ(cells: Sequence[Clusters], shares: Array, paired: bool) -> tuple[float, float]:
    """How far below and above its mean the interval of a weighted sum reaches.

    From one observation per cluster. Gains and losses are bounded one by one, and combined by squares (Zou
    and Donner 2008); of a score there are gains only.
    """
    sizes = np.array([_kish(cell.weights) for cell in cells])
    below, above = _stratified_wilson(shares, np.array([cell.gain for cell in cells]), sizes)
    if not paired:
        return below, above
    less, more = _stratified_wilson(shares, np.array([cell.loss for cell in cells]), sizes)
    return math.hypot(below, more), math.hypot(above, less)


def _stratified_wilson(shares: Array, means: Array, sizes: Array) -> tuple[float, float]:
    """How far Wilson's interval of a weighted sum of proportions reaches below and above it.

    The sum counts for as many samples as its variance says, as a clustered mean does (Korn and Graubard
    1998). In that variance each proportion is drawn towards the average by Z^2 samples, as Wilson's draws one
    towards a half: none is certain at 0 or 1, and where all are alike the interval is that of all samples
    together.
    """
    a = shares / shares.sum()
    mean = float(a @ means)
    drawn = (sizes * means + Z**2 * mean) / (sizes + Z**2)
    variance = float(np.square(a) @ (drawn * (1 - drawn) / sizes))
    size = mean * (1 - mean) / variance if variance > 0 else 1 / float(np.square(a) @ (1 / sizes))
    low, high = wilson(mean, size)
    return float(shares.sum() * (mean - low)), float(shares.sum() * (high - mean))


def _student(samples: Clusters) -> tuple[float, float]:
    """95 % interval of a mean by Student's t over clusters; NaN for one."""
    half = _quantile(len(samples.sums)) * samples.standard_error
    return samples.mean - half, samples.mean + half


def _kish(weights: Array) -> float:
    return float(weights.sum() ** 2 / np.square(weights).sum())


def _effective(samples: Clusters) -> float:
    """Samples that a 0/1 mean is worth, never more than there are.

    Those of equal weight over the design effect, less for few clusters.
    """
    count, size = len(samples.sums), samples.n_effective
    variance = samples.mean * (1 - samples.mean)
    if count == samples.n == size or variance <= 0:
        return size
    design = samples.standard_error**2 * (size - 1) / variance
    return min(size, size / design * (_quantile(samples.n) / _quantile(count)) ** 2)


@lru_cache(maxsize=4096)
def _quantile(count: int) -> float:
    """Student's t quantile of a two-sided 95 % interval from `count` clusters."""
    return float(special.stdtrit(max(count - 1, 1), 0.975))


def _normal(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
