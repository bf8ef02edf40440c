"""ChunkKV: keep whole chunks of neighbouring tokens.

Scores are summed over heads and averaged per chunk of `chunk_length` tokens; the best chunks stay, the same
ones for all heads.
Source: Liu et al. 2025, arXiv 2502.00299.
Differs: every context of a batch chooses for itself. The budget is a number of chunks, so the kept length is
a multiple of the chunk length (or less, if the short last chunk is kept).
Cost: that of the press inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.selection import Selection
from presses.scorer import ScorerPress
from presses.snapkv import SnapKVPress
from presses.support.checks import check_least
from presses.wrapper import ScoreWrapperPress


@dataclass(frozen=True)
class ChunkKVPress(ScoreWrapperPress):
    """Semantic chunks instead of single tokens.

    Attributes:
        press: whose scores are averaged.
        compression_ratio: fraction of chunks removed, in [0, 1).
        chunk_length: tokens per chunk.
    """

    press: ScorerPress = SnapKVPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    chunk_length: int = 20

    def __post_init__(self) -> None:
        """Refuse empty chunks."""
        super().__post_init__()
        check_least(1, "token", chunk_length=self.chunk_length)

    def select(self, evidence: Sequence[Any], budget: Budget) -> list[Selection]:
        """The best chunks, whole; a context shorter than one chunk is left to the press inside."""
        ranked = self.press.scores_at(evidence, budget)
        if ranked[0].shape[-1] < self.chunk_length:
            return self.press.select(evidence, budget)
        return [self._select(scores, budget) for scores in ranked]

    def _select(self, scores: Tensor, budget: Budget) -> Selection:
        tokens = scores.shape[-1]
        chunks = math.ceil(tokens / self.chunk_length)
        chunk = torch.arange(tokens, device=scores.device) // self.chunk_length  # (T,)
        summed = scores.new_zeros(scores.shape[0], chunks).index_add_(1, chunk, scores.sum(1))
        means = summed / torch.bincount(chunk)
        kept = Selection.top(means[:, None], budget.parts(chunks, tokens)).keep  # (B, 1, chunks)
        return Selection(kept[..., chunk].expand_as(scores))

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """Whole chunks: the last one may be short."""
        if tokens < self.chunk_length:
            return self.press.entry_bounds(layers, heads, tokens, budget)
        chunks = math.ceil(tokens / self.chunk_length)
        most = min(tokens, budget.parts(chunks, tokens) * self.chunk_length)
        short = chunks * self.chunk_length - tokens
        return layers * heads * (most if most == tokens else most - short), layers * heads * most
