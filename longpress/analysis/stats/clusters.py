"""Samples summed by context, and the samples that two rows have in common.

This is what every interval and test is computed from. Samples that ask about one context are not
independent: they form a cluster, and clusters are what is resampled and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

LEAST = 10
"""A bootstrap is trusted from so many clusters on, if `FEW` of them differ."""
FEW = 5
"""So many clusters must differ from the most frequent value for a bootstrap to be trusted."""


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
        """(C,) what each cluster adds to the error of the mean.

        They sum to 0, their squares to (C-1)/C of the variance.
        """
        return (self.sums - self.mean * self.weights) / self.weights.sum()

    @property
    def standard_error(self) -> float:
        """Clustered standard error of the mean; NaN for fewer than two clusters.

        It is sd / sqrt(n) where every sample is its own cluster.
        """
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

    # number the clusters; where every sample is one, in the order of the samples
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
    parts = list(zip(cells, shares, strict=True))
    return Clusters(
        sums=np.concatenate([share * cell.sums / cell.weights.sum() for cell, share in parts]),
        weights=np.concatenate([share * cell.weights / cell.weights.sum() for cell, share in parts]),
        n=sum(cell.n for cell in cells),
        n_effective=math.nan,
        binary=False,
        sign=False,
        informative=sum(cell.informative for cell in cells),
        bounded=cells[0].bounded,
    )


def pair(
    ids: ArrayLike, hashes: ArrayLike, baseline_ids: ArrayLike, baseline_hashes: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Places of the common samples in two lists of samples, each without repeats.

    Args:
        ids: (n,) sample ids of one row.
        hashes: (n,) hashes of their prompts.
        baseline_ids: (m,) sample ids of the other row.
        baseline_hashes: (m,) hashes of their prompts.

    Returns:
        Two arrays of indices, in the order of the sample ids.

    Raises:
        ValueError: a common sample had different prompts, so that the difference would not be the press's
            doing.
    """
    common, left, right = np.intersect1d(
        np.asarray(ids), np.asarray(baseline_ids), assume_unique=True, return_indices=True
    )
    changed = np.asarray(hashes)[left] != np.asarray(baseline_hashes)[right]
    if changed.any():
        raise ValueError(
            f"sample '{common[changed][0]}' ({int(changed.sum())} of {len(common)}) was asked with different "
            "prompts in the two rows; paired differences need the same prompts: rebuild both rows with the "
            "same benchmark options"
        )
    return left, right
