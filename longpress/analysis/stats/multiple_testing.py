"""P-values adjusted for their number, by Holm and by Benjamini and Hochberg: pure functions over arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from longpress.analysis.stats.clusters import Array


def holm(p_values: ArrayLike) -> Array:
    """P-values that bound the family-wise error (Holm 1979); NaNs stay and are not counted."""
    p = np.asarray(p_values, dtype=float)
    result = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    result[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return result


def benjamini_hochberg(p_values: ArrayLike) -> Array:
    """P-values that bound the false discovery rate (Benjamini and Hochberg 1995); NaNs stay, not counted."""
    p = np.asarray(p_values, dtype=float)
    result = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    scaled = p[order] * (len(order) / np.arange(1, len(order) + 1))
    result[order] = np.clip(np.minimum.accumulate(scaled[::-1])[::-1], 0, 1)
    return result
