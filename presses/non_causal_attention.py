"""Non-causal attention: keep what the tokens around, before or after, attend to.

The context is cut into chunks; in each, every query attends to every key of the chunk, later ones included,
with logits q·k. score_t = (attention received, averaged over the group)·‖v_t‖₂, averaged over 3 neighbours,
standardised over the heads and positions.
Source: Chari & Van Durme 2025 (Compactor), arXiv 2507.08143.
Differs: the last chunk is as short as it is (kvpress pads it with zeros that take part in the softmax); every
context of a batch is standardised alone; logits in float32.
Cost: attention of all queries within their chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kvcache.observation import LayerObservation
from presses.leverage import standardised
from presses.scorer import ScorerPress
from presses.support.checks import check_least
from presses.support.scores import mean_over_group


@dataclass(frozen=True)
class NonCausalAttnPress(ScorerPress):
    """Attention received from the whole chunk.

    Attributes:
        chunk_size: tokens per chunk.
    """

    chunk_size: int = 256

    def __post_init__(self) -> None:
        """Refuse empty chunks."""
        super().__post_init__()
        check_least(1, "token", chunk_size=self.chunk_size)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T) float32: pooled, standardised attention received, times the norm of the value."""
        received = mean_over_group(attention_within_chunks(layer, self.chunk_size), layer.group)
        scores = received * layer.values.float().norm(dim=-1)
        return standardised(functional.avg_pool1d(scores, 3, stride=1, padding=1))


def attention_within_chunks(layer: LayerObservation, chunk_size: int) -> Tensor:
    """(B, H * G, T) float32: attention that each position receives from the queries of its chunk."""
    query_chunks, key_chunks = layer.queries().split(chunk_size, dim=2), layer.keys.split(chunk_size, dim=2)
    sums = []
    for queries, keys in zip(query_chunks, key_chunks, strict=True):
        grouped = queries.float().unflatten(1, (-1, layer.group))  # (B, H, G, c, d)
        attention = (grouped @ keys.float()[:, :, None].mT).softmax(-1)
        sums.append(attention.sum(3).flatten(1, 2))
    return torch.cat(sums, dim=-1)
