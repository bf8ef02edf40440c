"""Chunk: score every chunk of the context as if it were the whole, and keep the same share of each.

Source: Corallo & Papotti 2024 (FINCH), Transactions of the ACL; kvpress 0.5.5.
Differs: what the press inside sees of a chunk is rotated for the chunk's own positions (in kvpress, queries
of all chunks but the last are rotated as if they stood at the end of the context).
Cost: that of the press inside; less where it grows faster than the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from presses.scorer import ScorerPress
from presses.snapkv import SnapKVPress
from presses.support.checks import check_least
from presses.support.chunks import entries_of_chunks, part
from presses.wrapper import ScoreWrapperPress


@dataclass(frozen=True)
class ChunkPress(ScoreWrapperPress):
    """Another press's scores, chunk by chunk.

    Attributes:
        press: that scores a chunk.
        compression_ratio: fraction of every chunk removed, in [0, 1).
        chunk_length: tokens per chunk; the last one may be shorter.
    """

    press: ScorerPress = SnapKVPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    chunk_length: int = 1024

    def __post_init__(self) -> None:
        """Refuse empty chunks."""
        super().__post_init__()
        check_least(1, "token", chunk_length=self.chunk_length)

    def observe(self, layer: LayerObservation) -> list[Any]:
        """What the press inside observes in each chunk."""
        starts = range(0, layer.tokens, self.chunk_length)
        chunks = (part(layer, start, min(start + self.chunk_length, layer.tokens)) for start in starts)
        return [self.press.observe(chunk) for chunk in chunks]

    def entry_metadata(self, evidence: list[Any]) -> None:
        """Nothing: what was seen of single chunks does not tell how all entries of a context compare."""

    def select(self, evidence: Sequence[list[Any]], budget: Budget) -> list[Selection]:
        """The top entries of every chunk and head, as many as the chunk's budget gives."""
        tokens = sum(scores.shape[-1] for scores in self.press.scores_at(evidence[0], budget))
        budgets = budget.for_chunks(tokens, self.chunk_length)
        chunks = [
            self._keep(of_layers, of_chunk)
            for of_layers, of_chunk in zip(zip(*evidence, strict=True), budgets, strict=True)
        ]
        return [Selection(torch.cat(of_layer, dim=-1)) for of_layer in zip(*chunks, strict=True)]

    def _keep(self, evidence: Sequence[Any], budget: Budget) -> list[Tensor]:
        """Per layer (B, H, length): which entries of one chunk stay."""
        return [
            Selection.top(scores, budget.entries(scores.shape[-1])).keep
            for scores in self.press.scores_at(evidence, budget)
        ]

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """The sum over chunks, each rounded down, but at least one entry."""
        exact = layers * heads * sum(entries_of_chunks(budget, tokens, self.chunk_length))
        return exact, exact
