"""How a budget is split among layers and heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.selection import Selection


def highest_together(evidence: Sequence[Tensor], kept: int, *, by_layer: bool = False) -> list[Selection]:
    """The highest scores of all layers together, or of each layer alone.

    Args:
        evidence: per layer the scores (B, H, T).
        kept: entries that stay, of all layers together.
        by_layer: whether every layer keeps as much as any other.
    """
    if by_layer:
        each = kept // len(evidence)
        return [selection for scores in evidence for selection in highest_together([scores], each)]
    stacked = torch.stack(list(evidence), dim=1)  # (B, L, H, T)
    keep = Selection.top(stacked.flatten(1)[:, None], kept).keep.view_as(stacked)
    return [Selection(layer) for layer in keep.unbind(1)]


def kept_together(layers: int, heads: int, tokens: int, budget: Budget, *, by_layer: bool = False) -> int:
    """Entries that stay where all heads compete, of all layers together or of each layer alone."""
    groups = layers if by_layer else 1
    return groups * budget.entries_together(layers * heads // groups, tokens)


def shorten(scores: Tensor, tokens: int, short: int, total: int) -> Tensor:
    """(B, N) entries that N heads or layers keep, `total` in all: those of lowest score are cut short.

    The last one that is cut keeps what is missing to the total. Where cutting all of them is not enough, all
    keep less, evenly.

    Args:
        scores: (B, N).
        tokens: entries that each has.
        short: entries that one keeps which is cut short.
        total: entries that all keep together.
    """
    n = scores.shape[-1]
    removed, room = n * tokens - total, tokens - short
    rank = scores.argsort(dim=-1, stable=True).argsort(dim=-1)

    # All short ones together are too many entries: an even split, the rest to those of highest score.
    if removed > n * room:
        even, extra = divmod(total, n)
        return even + (rank >= n - extra).long()

    # As many are cut short as are needed, and the next one by what is left.
    whole, rest = divmod(removed, room) if room > 0 else (0, 0)
    return torch.where(rank < whole, short, torch.where(rank == whole, tokens - rest, tokens))


def ends(counts: Tensor, first: int, tokens: int) -> Tensor:
    """(…, T) bool: of `counts` (…) entries, the first `first` positions, and the others at the end.

    At least one is at the end.
    """
    at = torch.arange(tokens, device=counts.device)
    sinks = (counts - 1).clamp(max=first)[..., None]
    return (at < sinks) | (at >= tokens - (counts[..., None] - sinks))


def apportion(weights: Sequence[float], total: int, least: int, most: int) -> list[int]:
    """Whole numbers that sum to `total`: `least` each, and the rest in proportion to the weights.

    Args:
        weights: one per layer or head, not negative; if all are 0, the rest is split evenly.
        total: to be given out, at most `most` for each.
        least: given to each in any case; lowered where the total does not suffice.
        most: none gets more; what does not fit goes to the others, in proportion again.
    """
    size = len(weights)
    least = min(least, total // size)
    finite = [max(float(weight), 0.0) + 1e-12 for weight in weights]

    # Shares, not yet whole: those that would be above `most` get it, until none is.
    shares = [float(most)] * size
    free = set(range(size))
    while free:
        remaining = total - least * len(free) - most * (size - len(free))
        unit = remaining / sum(finite[at] for at in free)
        over = {at for at in free if least + unit * finite[at] > most}
        if not over:
            for at in free:
                shares[at] = least + unit * finite[at]
            break
        free -= over

    # Rounded down; what is missing to the total goes to the largest fractions.
    counts = [int(share + 1e-6) for share in shares]
    by_fraction = sorted(range(size), key=lambda at: (counts[at] >= most, counts[at] - shares[at]))
    for at in by_fraction[: total - sum(counts)]:
        counts[at] += 1
    return counts
