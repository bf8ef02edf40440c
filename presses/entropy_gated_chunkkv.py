"""Entropy-gated ChunkKV: take the best chunks, but only a few tokens of those whose score sits on a few.

Chunks are taken by falling mean score. One whose mean reaches the median while the entropy of its scores
stays below the median gives its best `low_entropy_chunk_length` tokens, any other all of them; budget left
over goes to the best remaining tokens. The same positions for all heads.
Source: kvpress 0.5.5, an extension of ChunkKV (Liu et al. 2025, arXiv 2502.00299).
Differs: every context of a batch chooses for itself.
Cost: that of the press inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kvcache.budget import Budget
from kvcache.selection import Selection
from presses.scorer import ScorerPress
from presses.snapkv import SnapKVPress
from presses.wrapper import ScoreWrapperPress

TINY = 1e-8
"""Added to sums and shares, so that nothing is divided by 0 and no logarithm is infinite."""


@dataclass(frozen=True)
class EntropyGatedChunkKVPress(ScoreWrapperPress):
    """Whole chunks where all tokens matter, single tokens where few do.

    Attributes:
        press: whose scores are used.
        compression_ratio: fraction of entries removed, in [0, 1).
        chunk_length: tokens per chunk.
        low_entropy_chunk_length: tokens kept of a chunk whose score sits on few tokens.
    """

    press: ScorerPress = SnapKVPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    chunk_length: int = 10
    low_entropy_chunk_length: int = 4

    def __post_init__(self) -> None:
        """Refuse empty chunks."""
        super().__post_init__()
        if not 1 <= self.low_entropy_chunk_length <= self.chunk_length:
            raise ValueError(
                f"low_entropy_chunk_length={self.low_entropy_chunk_length} must lie between 1 token and "
                f"chunk_length={self.chunk_length}"
            )

    def select(self, evidence: Sequence[Any], budget: Budget) -> list[Selection]:
        """Exactly `budget.entries(T)` positions, shared by the heads of a layer."""
        return [
            self._select(scores, budget.entries(scores.shape[-1]))
            for scores in self.press.scores_at(evidence, budget)
        ]

    def _select(self, scores: Tensor, kept: int) -> Selection:
        # Scores of positions and of chunks; the last chunk is filled with NaN.
        tokens = scores.shape[-1]
        summed = scores.float().sum(1)  # (B, T)
        padded = functional.pad(summed, (0, -tokens % self.chunk_length), value=float("nan"))
        chunked = padded.unflatten(-1, (-1, self.chunk_length))  # (B, chunks, chunk_length)
        means, entropies = chunked.nanmean(-1), _entropies(chunked)  # (B, chunks)

        # What each chunk would give: all of its tokens, or a few where its score sits on a few.
        gated = (means >= _median(means)) & (entropies < _median(entropies))
        existing = (~chunked.isnan()).sum(-1)
        offered = existing.where(~gated, existing.clamp_max(self.low_entropy_chunk_length))

        # What the budget takes of it, best chunk first.
        order = means.sort(dim=-1, descending=True, stable=True).indices
        in_order = offered.gather(-1, order)
        before = in_order.cumsum(-1) - in_order
        taken = (kept - before).clamp_min(0).minimum(in_order)
        counts = torch.zeros_like(offered).scatter_(-1, order, taken)

        # These tokens first; budget left over goes to the best of the others.
        best = Selection.top(chunked.nan_to_num(nan=float("-inf")), counts).keep.flatten(1)[:, :tokens]
        ranked = summed.masked_fill(best, float("inf"))
        return Selection(Selection.top(ranked[:, None], kept).keep.expand_as(scores))


def _entropies(chunked: Tensor) -> Tensor:
    """(B, chunks): entropy of the scores of each chunk, as a share of the largest possible.

    Args:
        chunked: (B, chunks, length) scores, NaN where a chunk is shorter.
    """
    exists = ~chunked.isnan()
    lowest = chunked.nan_to_num(nan=float("inf")).amin(-1, keepdim=True)
    shifted = (chunked - lowest.clamp_max(0)).masked_fill(~exists, 0)
    shares = shifted / (shifted.sum(-1, keepdim=True) + TINY)
    entropies = -(shares * (shares + TINY).log()).sum(-1)
    most = exists.sum(-1).log().clamp_min(math.log(2))  # a single token has entropy 0
    return (entropies / most).clamp(0, 1)


def _median(numbers: Tensor) -> Tensor:
    """(B, 1): of the two middle ones the lower."""
    return numbers.median(-1, keepdim=True).values
