"""Samples of a cell summed by context, and the samples that two cells have in common: what every error bar and test is computed from.

Samples that ask about one context are not independent: they form a cluster, and clusters are what is
resampled and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

LEAST = 10
"""Clusters from which on a bootstrap is trusted,"""
FEW = 5
"""if at least so many differ from the most frequent value."""


class Clusters(NamedTuple):
    """Samples summed by cluster: all that errors of a mean need.

    Attributes:
        sums: (C,) weighted sums of the values.
        weights: (C,) sums of the weights.
        n: samples.
        n_effective: samples of equal weight worth as much, (sum w)^2 / sum w^2 (Kish 1965).
        binary: whether every value is 0 or 1.
        sign: whether every value is -1, 0 or 1, and every sample its own cluster of weight 1 (an exact test
            is a sign test).
        informative: clusters whose mean is not the most frequent one.
        bounded: whether the values are scores in [0, 1] or differences of such.
        gain: weighted mean of the values' positive parts,
        loss: and of their negative parts, positive; both NaN without samples.
    """

    sums: Array
    weights: Array
    n: int
    n_effective: float
    binary: bool
    sign: bool
    informative: int
    bounded: bool = True
    gain: float = math.nan
    loss: float = math.nan

    @property
    def mean(self) -> float:
        """Weighted mean of the samples; NaN without samples."""
        return float(self.sums.sum() / self.weights.sum()) if self.n else math.nan

    @property
    def residuals(self) -> Array:
        """(C,) what each cluster adds to the error of the mean: they sum to 0, their squares to (C-1)/C of the variance."""
        return (self.sums - self.mean * self.weights) / self.weights.sum()

    @property
    def standard_error(self) -> float:
        """Clustered standard error of the mean; sd / sqrt(n) where every sample is its own cluster; NaN for fewer than two clusters."""
        count = len(self.sums)
        if count < 2:
            return math.nan
        return math.sqrt(count / (count - 1) * float(np.square(self.residuals).sum()))

    @property
    def resampled(self) -> bool:
        """Whether enough clusters differ for a bootstrap."""
        return self.informative >= FEW and len(self.sums) >= LEAST


def cluster(
    values: ArrayLike, weights: ArrayLike | None = None, ids: ArrayLike | None = None, bounded: bool = True
) -> Clusters:
    """Sum samples by cluster.

    Args:
        values: (n,) scores in [0, 1], or differences of two such scores.
        weights: (n,) weights of the samples in the mean; 1 if None.
        ids: (n,) cluster of each sample, e.g. its context; every sample for itself if None.
        bounded: False for values that may be any finite numbers.

    Raises:
        ValueError: shapes differ, a value is not finite or not in [-1, 1], or a weight is not positive.
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not (np.abs(x) <= 1 if bounded else np.isfinite(x)).all():
        allowed = ": scores in [0, 1] or their differences in [-1, 1]" if bounded else ""
        raise ValueError(f"values must be a flat array of finite numbers{allowed}")
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    if w.shape != x.shape or not ((w > 0) & np.isfinite(w)).all():
        raise ValueError("weights must be positive, finite, and as many as the values")
    if ids is None:
        codes = np.arange(len(x))
    else:
        known, codes = np.unique(np.asarray(ids), return_inverse=True)
        if codes.shape != x.shape:
            raise ValueError("ids must be as many as the values")
        codes = np.arange(len(x)) if len(known) == len(x) else codes
    alone = bool(len(x) == 0 or (codes[-1] == len(x) - 1 and (codes == np.arange(len(x))).all()))
    sums: Array = w * x if alone else np.bincount(codes, w * x).astype(float)
    sizes: Array = w if alone else np.bincount(codes, w).astype(float)
    _, frequencies = np.unique(np.round(sums / sizes, 12), return_counts=True)
    steps = bounded and bool(np.isin(x, (-1.0, 0.0, 1.0)).all())
    effective = float(w.sum() ** 2 / np.square(w).sum()) if len(x) else 0.0
    return Clusters(
        sums,
        sizes,
        len(x),
        effective,
        binary=steps and bool((x >= 0).all()),
        sign=steps and alone and bool((w == 1).all()),
        informative=len(sums) - int(frequencies.max(initial=0)),
        bounded=bounded,
        gain=float(w @ np.maximum(x, 0) / w.sum()) if len(x) else math.nan,
        loss=float(w @ np.maximum(-x, 0) / w.sum()) if len(x) else math.nan,
    )


def joint(cells: Sequence[Clusters], shares: Sequence[float]) -> Clusters:
    """Differences of several tasks as one list of effects that sum to the difference of the average."""
    if len(cells) == 1:
        return cells[0]
    sums = np.concatenate(
        [share * cell.sums / cell.weights.sum() for cell, share in zip(cells, shares, strict=True)]
    )
    weights = np.concatenate(
        [share * cell.weights / cell.weights.sum() for cell, share in zip(cells, shares, strict=True)]
    )
    informative = sum(cell.informative for cell in cells)
    return Clusters(
        sums, weights, sum(cell.n for cell in cells), math.nan, False, False, informative, cells[0].bounded
    )


def pair(
    ids: ArrayLike, hashes: ArrayLike, baseline_ids: ArrayLike, baseline_hashes: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Places of the common samples in two lists of samples, each without repeats.

    Args:
        ids: (n,) sample ids of one press, `hashes` (n,) the hashes of their prompts.
        hashes: see `ids`.
        baseline_ids: (m,) those of the other.
        baseline_hashes: (m,) those of the other.

    Returns:
        Two arrays of indices, in the order of the sample ids.

    Raises:
        ValueError: a common sample had different prompts, so that the difference would not be the press's
            doing.
    """
    common, left, right = np.intersect1d(
        np.asarray(ids), np.asarray(baseline_ids), assume_unique=True, return_indices=True
    )
    other = np.asarray(hashes)[left] != np.asarray(baseline_hashes)[right]
    if other.any():
        raise ValueError(
            f"sample '{common[other][0]}' ({int(other.sum())} of {len(common)}) was asked with different prompts in the two rows; paired "
            "differences need the same prompts: rebuild both rows with the same benchmark options"
        )
    return left, right
