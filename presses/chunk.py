"""Chunk: score every chunk of the context as if it were the whole, and keep the same share of each.

Source: Corallo & Papotti 2024 (FINCH), Transactions of the ACL; kvpress 0.5.5.
Differs: what the press inside sees of a chunk is rotated for the chunk's own positions (in kvpress, queries
of all chunks but the last are rotated as if they stood at the end of the context).
Cost: that of the press inside; less where it grows faster than the context.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvcache.observation import LayerObservation
from kvcache.selection import Selection, budget
from presses.scorer import ScorerPress
from presses.snapkv import SnapKVPress
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
        if self.chunk_length < 1:
            raise ValueError(f"chunk_length={self.chunk_length} must be at least 1 token")

    def observe(self, layer: LayerObservation) -> list[Any]:
        """What the press inside observes in each chunk."""
        starts = range(0, layer.tokens, self.chunk_length)
        return [
            self.press.observe(part(layer, start, min(start + self.chunk_length, layer.tokens)))
            for start in starts
        ]

    def select(self, evidence: Sequence[list[Any]], ratio: float) -> list[Selection]:
        """The top `budget(length, ratio)` entries of every chunk and head."""
        chunks = [
            self.press.scores_at(chunk, ratio) for chunk in zip(*evidence, strict=True)
        ]  # per chunk, per layer (B, H, length)
        return [
            Selection(torch.cat([_top(scores, ratio) for scores in layer], dim=-1))
            for layer in zip(*chunks, strict=True)
        ]

    def entries(self, layers: int, heads: int, tokens: int, ratio: float) -> tuple[int, int]:
        """The sum over chunks, each rounded down, but at least one entry."""
        whole, rest = divmod(tokens, self.chunk_length)
        exact = (
            layers * heads * (whole * budget(self.chunk_length, ratio) + (budget(rest, ratio) if rest else 0))
        )
        return exact, exact


def _top(scores: Tensor, ratio: float) -> Tensor:
    return Selection.top(scores, budget(scores.shape[-1], ratio)).keep


def part(layer: LayerObservation, start: int, stop: int) -> LayerObservation:
    """The positions start:stop of `layer`, as if they were the whole context: what comes after them continues at `stop`."""

    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        return layer.rope(positions + start)

    return replace(
        layer,
        hidden=layer.hidden[:, start:stop],
        keys=layer.keys[:, :, start:stop],
        values=layer.values[:, :, start:stop],
        cos=layer.cos[:, start:stop],
        sin=layer.sin[:, start:stop],
        rope=rope,
        fingerprints=tuple(zlib.crc32(f"{start}:{stop}".encode(), row) for row in layer.fingerprints),
        token_ids=None if layer.token_ids is None else layer.token_ids[:, start:stop],
        whole=layer,
        _memo={},
    )
