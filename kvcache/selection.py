"""Which entries of a layer stay: budgets and selections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Self

import torch
from torch import Tensor


def check_ratio(ratio: float) -> float:
    """`ratio` rounded to 6 decimals, so that 0.30000000000000004 and 0.3 are one variant.

    Raises:
        ValueError: not a number in [0, 1).
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise ValueError(
            f"compression_ratio={ratio!r} must be a number in [0, 1): it is the fraction of KV entries removed"
        )
    return round(float(ratio), 6)


def budget(tokens: int, ratio: float) -> int:
    """Entries kept of `tokens` at `ratio`: `max(1, int(tokens * (1 - ratio)))`, in double precision.

    The truncation is that of published numbers (kvpress and its leaderboard): 1000 tokens at 0.9 keep 99,
    because 1 - 0.9 is slightly below 0.1 in binary. A context never loses its last entry.
    """
    return max(1, int(tokens * (1 - ratio)))


def ratio_for(tokens: int, kept: int) -> float:
    """The ratio at which exactly `min(tokens, kept)` entries of `tokens` stay: the inverse of `budget`.

    A millionth of an entry more, so that truncating keeps the count, of a head or of all layers together,
    whatever rounding does; a press that truncates the number it removes may keep one entry more in all.
    """
    return 0.0 if kept >= tokens else 1 - (kept + 1e-6) / tokens


@dataclass(frozen=True)
class Threshold:
    """A budget given as the lowest score that stays.

    Attributes:
        score: in the units of the press's scores.
    """

    score: float

    def __post_init__(self) -> None:
        """Refuse what is not a finite number."""
        if (
            isinstance(self.score, bool)
            or not isinstance(self.score, int | float)
            or not isfinite(self.score)
        ):
            raise ValueError(
                f"threshold={self.score!r} must be a finite number: it is the lowest score that stays"
            )


@dataclass(frozen=True)
class Selection:
    """A layer's entries that stay.

    Attributes:
        keep: (B, H, T) bool, True for kept entries.
    """

    keep: Tensor

    @classmethod
    def top(cls, scores: Tensor, counts: int | Tensor) -> Self:
        """The `counts` highest scores of every head.

        Equal scores are taken in order of position, so a smaller budget always keeps a subset of a larger
        one.

        Args:
            scores: (B, H, T).
            counts: entries per head, an int or (B, H).
        """
        tokens = scores.shape[-1]
        order = scores.sort(dim=-1, descending=True, stable=True).indices  # (B, H, T)
        if isinstance(counts, Tensor):
            chosen = torch.arange(tokens, device=scores.device) < counts[..., None]
        else:
            chosen = (torch.arange(tokens, device=scores.device) < counts).expand(order.shape)
        return cls(torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, chosen))

    @cached_property
    def counts(self) -> Tensor:
        """(B, H): kept entries per head."""
        return self.keep.sum(-1)

    @cached_property
    def positions(self) -> Tensor:
        """(B, H, K) kept positions in rising order, K the largest count; behind a head's own count stand positions it did not keep."""
        order = (~self.keep).to(torch.uint8).sort(dim=-1, stable=True).indices
        return order[..., : int(self.counts.max())]


def gather(entries: Tensor, positions: Tensor) -> Tensor:
    """Rows of `entries` (B, H, T, d) at `positions` (B, H, K), as (B, H, K, d)."""
    return entries.gather(2, positions[..., None].expand(*positions.shape, entries.shape[-1]))


def shorten(scores: Tensor, tokens: int, short: int, total: int) -> Tensor:
    """(B, N) entries that N heads or layers of `tokens` entries keep, `total` in all: those of lowest score are cut to `short`.

    The last one that is cut keeps what is missing to the total. Where cutting all of them to `short` is not
    enough, all keep less, evenly.
    """
    n = scores.shape[-1]
    removed, room = n * tokens - total, tokens - short
    rank = scores.argsort(dim=-1, stable=True).argsort(dim=-1)
    if removed > n * room:
        base, extra = divmod(total, n)
        return base + (rank >= n - extra).long()
    whole, rest = divmod(removed, room) if room > 0 else (0, 0)
    return torch.where(rank < whole, short, torch.where(rank == whole, tokens - rest, tokens))


def ends(counts: Tensor, first: int, tokens: int) -> Tensor:
    """(…, T) bool: of `counts` (…) entries the first `first` positions, and the others at the end, at least one."""
    at = torch.arange(tokens, device=counts.device)
    sinks = (counts - 1).clamp(max=first)[..., None]
    return (at < sinks) | (at >= tokens - (counts[..., None] - sinks))


def apportion(weights: Sequence[float], total: int, least: int, most: int) -> list[int]:
    """Whole numbers that sum to `total`, near `least` each and the rest in proportion to the weights, none above `most`.

    Args:
        weights: one per layer or head, not negative; if all are 0, the rest is split evenly.
        total: to be given out, at most `most` for each.
        least: given to each in any case; lowered where the total does not suffice.
        most: what does not fit goes to the others, in proportion again.
    """
    size = len(weights)
    least = min(least, total // size)
    finite = [max(float(weight), 0.0) + 1e-12 for weight in weights]
    shares = [float(most)] * size
    free = set(range(size))
    while free:
        rest = total - least * len(free) - most * (size - len(free))
        unit = rest / sum(finite[at] for at in free)
        over = {at for at in free if least + unit * finite[at] > most}
        if not over:
            for at in free:
                shares[at] = least + unit * finite[at]
            break
        free -= over
    counts = [int(share + 1e-6) for share in shares]
    by_fraction = sorted(range(size), key=lambda at: (counts[at] >= most, counts[at] - shares[at]))
    for at in by_fraction[: total - sum(counts)]:
        counts[at] += 1
    return counts
