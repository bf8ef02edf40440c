"""Scores (B, H, T): what is kept in any case, and the mean over the query heads of a group."""

from __future__ import annotations

import torch
from torch import Tensor


def pin(scores: Tensor, first: int = 0, last: int = 0) -> Tensor:
    """A copy of `scores` (B, H, T) in float32 with the first and last positions above all others.

    They get the highest score of the row + 1, as in kvpress, and a thousandth more towards the end, so that a
    budget smaller than the pinned part keeps its most recent entries instead of arbitrary ones.
    """
    tokens = scores.shape[-1]
    pinned = scores.float().clone()
    highest = pinned.amax((1, 2), keepdim=True)
    rank = torch.arange(1, tokens + 1, device=scores.device)
    rising = highest + 1 + 1e-3 * rank / tokens  # (B, 1, T)
    pinned[..., :first] = rising[..., :first]
    if last:
        pinned[..., -last:] = rising[..., -last:]
    return pinned


def mean_over_group(per_query_head: Tensor, group: int) -> Tensor:
    """(B, H * G, *) to (B, H, *): the mean over the query heads that share a KV head."""
    return per_query_head.unflatten(1, (-1, group)).mean(2)
