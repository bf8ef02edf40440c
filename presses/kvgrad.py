"""KVgrad: keep what changes the model's last hidden states while it repeats the context.

score_t = max over the tokens i of the repetition and the query heads of a group of
a_it · ‖v_t W_O‖₂ · ‖∂Φ/∂a_i‖₂, with the attention a_it as in KVzip, a_i what the layer's attention adds at
token i, and Φ = Σ_i ‖h_i‖² over the last layer's outputs.
Source: KVgrad, openreview.net/forum?id=cg1wTCJjjk; kvpress 0.5.5.
Differs: as KVzip. Attention is computed again after the backward pass instead of being stored for all layers.
Cost: one forward and one backward pass over the context on top of its cache, 3 to 4 times the prefill, once
for all ratios.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from kvcache.hooks.prefill import Prefill
from kvcache.hooks.replay import sensitivity
from kvcache.observation import LayerObservation
from presses.kvzip import KVzipPress
from presses.support.repetition import Chunk, chunk_scores


@dataclass(frozen=True)
class KVgradPress(KVzipPress):
    """Input times gradient while the context is being repeated.

    The norms of values always count, so KVzip+ does not apply.

    Attributes:
        chunk_size: tokens of the context repeated in one pass.
    """

    chunk_size: int = 512

    def __post_init__(self) -> None:
        """Refuse KVzip+, beside what KVzip refuses."""
        super().__post_init__()
        if self.kvzip_plus_normalization:
            raise ValueError(
                "kvzip_plus_normalization=True does not apply to kvgrad, which weighs by gradients; use "
                "press kvzip"
            )

    def _scores(self, prefill: Prefill, chunk: Chunk) -> Iterator[tuple[int, Tensor]]:
        """Layer index and scores (B, H, C) of one chunk's entries."""
        # What each layer has read, in one piece or several; gradients are known when all is read.
        layers: dict[int, list[LayerObservation]] = {}

        def collect(layer: LayerObservation) -> None:
            layers.setdefault(layer.index, []).append(layer)

        gradients = sensitivity(prefill, chunk.token_ids, collect)
        for index, pieces in layers.items():
            scores, start = None, 0
            for piece in pieces:
                stop = start + piece.hidden.shape[1]
                factors = gradients[index][:, start:stop]
                of_piece = chunk_scores(prefill, piece, chunk, self.n_sink, factors, by_output=True)
                scores, start = of_piece if scores is None else scores.maximum(of_piece), stop
            assert scores is not None
            yield index, scores
