"""P-values of paired differences, samples that a test needs, and non-inferiority: pure functions over arrays.

Exact McNemar where differences are -1, 0 or 1 and samples independent, permutations of signs of clusters
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from longpress.analysis.stats.clusters import Array, Clusters

SIGNIFICANT = 0.05
"""A p-value adjusted for its number counts as significant below this level."""
FLIPS = 49_999
"""How many random sign flips a permutation test makes; the smallest p-value is 1 / (FLIPS + 1)."""
FEWEST = 6
"""Below so many clusters no permutation of signs has a two-sided p-value under 5 %: 2 / 2^5 is 6 %."""
_EXACT = 12
"""Up to so many differing clusters a permutation test tries every assignment of signs."""
_CHUNK = 4_000_000
"""How many signs are held in memory at a time."""


def p_values(cells: Sequence[Clusters], seed: int = 0) -> Array:
    """Two-sided p-values (cells,) that the mean difference of each cell is 0.

    NaN without samples, 1 where nothing differs.
    """
    result = np.array([1.0 if cell.n else math.nan for cell in cells])
    exact = [row for row, cell in enumerate(cells) if cell.n and cell.sign]
    if exact:
        wins = np.array([(cells[row].sums > 0).sum() for row in exact])
        losses = np.array([(cells[row].sums < 0).sum() for row in exact])
        result[exact] = mcnemar(wins, losses)
    flipped = [row for row, cell in enumerate(cells) if cell.n and not cell.sign]
    if flipped:
        result[flipped] = sign_flips([cells[row].sums for row in flipped], seed)
    return result


def mcnemar(wins: ArrayLike, losses: ArrayLike) -> Array:
    """Exact McNemar test: two-sided p-values of `wins` against `losses`, those of `scipy.stats.binomtest`."""
    from scipy import stats  # only here: it takes longer to import than all the rest

    b, c = np.asarray(wins), np.asarray(losses)
    p: Array = np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(b, c), b + c, 0.5))
    return p


def sign_flips(effects: Sequence[Array], seed: int = 0, flips: int = FLIPS) -> Array:
    """Two-sided p-values of permutation tests that flip signs of independent effects; zeros do not matter.

    All 2^k assignments for k <= 12 effects other than 0, else `flips` random ones and the observed one
    (Phipson and Smyth 2010).

    Args:
        effects: per test, the (C,) summed differences of its clusters.
        seed: of the random assignments; tests of about as many effects share them.
        flips: random assignments, at most; fewer, but 9,999 or more, for very many effects.
    """
    kept = [effect[effect != 0] for effect in effects]
    result = np.ones(len(kept))

    # tests of up to 12 effects by their number, larger ones by the next power of two
    lengths = [
        len(effect) if len(effect) <= _EXACT else 1 << (len(effect) - 1).bit_length() for effect in kept
    ]
    for length in sorted(set(lengths) - {0}):
        rows = [row for row, other in enumerate(lengths) if other == length]
        width = max(len(kept[row]) for row in rows)
        padded = np.stack([np.pad(kept[row], (0, width - len(kept[row]))) for row in rows], axis=1)
        # (width, tests); rounding must not turn an equal sum into a smaller one
        observed = np.abs(padded.sum(axis=0)) - 1e-9 * np.abs(padded).sum(axis=0)
        if width <= _EXACT:
            signs = 1.0 - 2 * (np.arange(1 << width)[:, None] >> np.arange(width) & 1)
            result[rows] = (np.abs(signs @ padded) >= observed).mean(axis=0)
            continue

        # random assignments, in blocks that fit into memory
        total = int(np.clip(5e8 // width, min(flips, 9_999), flips))
        generator, hits = np.random.default_rng([seed, width]), np.zeros(len(rows))
        step = max(1, _CHUNK // max(width, len(rows)))
        for start in range(0, total, step):
            size = min(step, total - start)
            bits = np.unpackbits(
                np.frombuffer(generator.bytes(size * ((width + 7) // 8)), dtype=np.uint8).reshape(size, -1),
                axis=1,
            )
            hits += (np.abs((1.0 - 2.0 * bits[:, :width]) @ padded) >= observed).sum(axis=0)
        result[rows] = (hits + 1) / (total + 1)
    return result


def samples_needed(
    mean: float, error: float, clusters: int, samples: int, power: float = 0.8, level: float = 0.05
) -> float:
    """How many samples a two-sided paired test needs to find a mean difference.

    n ((z_{1 - level/2} + z_power) SE / |mean|)^2, as the standard error falls with the root of the samples.
    The difference is taken as seen, so the number is as uncertain as it is. Below `FEWEST` clusters no test
    of signs reaches 5 %.

    Args:
        mean: difference seen.
        error: its standard error, clustered.
        clusters: that it was seen on; more contexts of as many questions are meant.
        samples: that it was seen on.
        power: probability of finding it.
        level: of the test.

    Returns:
        Infinite where nothing differs, NaN where the error is not known.
    """
    if math.isnan(error):
        return math.nan
    if abs(mean) <= 1e-12:
        return math.inf
    quantiles = float(special.ndtri([1 - level / 2, power]).sum())
    return max(math.ceil(clusters * (quantiles * error / mean) ** 2), FEWEST) * samples / clusters


def non_inferior(low: ArrayLike, margin: float) -> NDArray[np.bool_]:
    """Whether a press loses less than `margin`: the interval of the difference lies above -margin.

    Args:
        low: lower ends of the differences' 95 % intervals.
        margin: in the same unit.

    Raises:
        ValueError: the margin is not positive.
    """
    if not margin > 0:
        raise ValueError(f"margin={margin} must be positive: the loss that would still be accepted")
    return np.asarray(low, dtype=float) > -margin
