"""KVzip: keep what the model reads when it repeats the context.

The model is asked to repeat the context, chunk by chunk, on top of the full cache; score_t = max over the
tokens of the repetition and the query heads of a group of softmax(q·k/√d) over the first tokens, the chunk
and the repetition itself. The lowest scores of all layers and heads together go.
Source: Kim et al. 2025, arXiv 2505.23416; KVzip+ of kvpress 0.5.5.
Differs: head-wise budgets are real. Without a tokenizer (`with press(model)` on bare ids) the chunk is
repeated without being asked for. Layers with sliding windows are left whole. Tokens of the chat template in
front of the context are not repeated and, beyond `n_sink`, score 0, as in kvpress.
Cost: one more pass over the context on top of its cache, 2 to 3 times the prefill, once for all ratios.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.devices import together
from kvcache.hooks.prefill import Prefill
from kvcache.hooks.replay import replay
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.base import BasePress
from presses.support.budgets import highest_together, kept_together
from presses.support.checks import check_least
from presses.support.repetition import Chunk, chunk_scores, chunks
from presses.support.scores import pin


@dataclass(frozen=True)
class KVzipPress(BasePress):
    """Attention while the context is being repeated.

    Attributes:
        compression_ratio: fraction of entries removed, in [0, 1).
        layerwise: whether every layer keeps as much as any other; heads of a layer compete in any case.
        n_sink: first tokens, always kept.
        kvzip_plus_normalization: KVzip+: multiply by the norm of what the value adds to the hidden state,
            divide by that of the state.
        chunk_size: tokens of the context repeated in one pass.
    """

    compression_ratio: float = 0.0
    layerwise: bool = False
    n_sink: int = 4
    kvzip_plus_normalization: bool = False
    chunk_size: int = 2048

    def __post_init__(self) -> None:
        """Refuse a ratio outside [0, 1) and empty chunks."""
        super().__post_init__()
        check_least(1, "token", chunk_size=self.chunk_size)
        check_least(0, "token", n_sink=self.n_sink)

    @property
    def traits(self) -> Traits:
        """The model reads the context again."""
        return Traits(reads_again=True)

    def observe(self, layer: LayerObservation) -> None:
        """Nothing: the context is looked at while it is repeated."""

    def probe(self, prefill: Prefill, evidence: Sequence[Any]) -> list[Tensor]:
        """Per layer the scores (B, H, T), from one repetition."""
        full = [prefill.entries(index)[0] for index in prefill.layers]
        scores = [torch.zeros(keys.shape[:3], device=keys.device) for keys in full]
        of_layer = dict(zip(prefill.layers, scores, strict=True))
        with torch.no_grad():
            for chunk in chunks(prefill, self.chunk_size, self.name):
                for index, of_chunk in self._scores(prefill, chunk):
                    of_layer[index][..., chunk.start : chunk.stop] = of_chunk
        pinned = pin(torch.cat(list(together(scores)), dim=1), first=self.n_sink)
        return list(pinned.chunk(len(scores), dim=1))

    def _scores(self, prefill: Prefill, chunk: Chunk) -> Iterator[tuple[int, Tensor]]:
        """Layer index and scores (B, H, C) of one chunk's entries."""
        scores: dict[int, Tensor] = {}

        def collect(layer: LayerObservation) -> None:
            factors = None
            if self.kvzip_plus_normalization:
                factors = layer.hidden.float().norm(dim=-1).reciprocal()
            of_piece = chunk_scores(
                prefill, layer, chunk, self.n_sink, factors, by_output=self.kvzip_plus_normalization
            )
            before = scores.get(layer.index)
            scores[layer.index] = of_piece if before is None else torch.maximum(of_piece, before)

        replay(prefill, chunk.token_ids, collect)
        return iter(scores.items())

    def select(self, evidence: Sequence[Tensor], budget: Budget) -> list[Selection]:
        """The highest scores of all layers and heads; a head may keep nothing."""
        tokens, heads = evidence[0].shape[-1], evidence[0].shape[1]
        kept = kept_together(len(evidence), heads, tokens, budget, by_layer=self.layerwise)
        return highest_together(evidence, kept, by_layer=self.layerwise)

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """All entries but `int(n · ratio)`, of all layers together or of each."""
        exact = kept_together(layers, heads, tokens, budget, by_layer=self.layerwise)
        return exact, exact
