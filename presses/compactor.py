"""Compactor: blend how unusual a key is with what the tokens around attend to.

score_t = b · leverage_t + noncausal_t, both standardised over the context without its first and last tokens,
which are kept.
Source: Chari & Van Durme 2025, arXiv 2507.08143; kvpress 0.5.5 for b = compression ratio.
Differs: as its parts do (presses leverage and non_causal_attention).
Cost: that of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from kvcache.budget import Budget
from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.leverage import LeverageScorePress
from presses.non_causal_attention import NonCausalAttnPress
from presses.scorer import ScorerPress
from presses.support.checks import check_least
from presses.support.chunks import part
from presses.support.scores import pin


@dataclass(frozen=True)
class CompactorPress(ScorerPress):
    """Leverage and non-causal attention.

    Attributes:
        sink_size_start: first tokens, always kept and left out of the scores.
        sink_size_end: last tokens, likewise.
        chunk_size: tokens per chunk of the non-causal attention.
        sketch_dimension: channels of the keys after the random projection.
        blending: weight b of the leverage; None for the compression ratio.
        seed: of the projection, together with the layer and the content of the context.
    """

    sink_size_start: int = 8
    sink_size_end: int = 4
    chunk_size: int = 256
    sketch_dimension: int = 48
    blending: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse negative sinks, and what the parts refuse."""
        super().__post_init__()
        check_least(0, "token", sink_size_start=self.sink_size_start, sink_size_end=self.sink_size_end)
        LeverageScorePress(sketch_dimension=self.sketch_dimension)
        NonCausalAttnPress(chunk_size=self.chunk_size)

    @property
    def traits(self) -> Traits:
        """The ratio is a weight in the score, so there is none without a ratio."""
        return replace(super().traits, takes_threshold=False)

    def observe(self, layer: LayerObservation) -> tuple[Tensor, Tensor]:
        """Leverage and non-causal attention (B, H, T), 0 for the tokens that are kept anyway."""
        first, last = self._ends(layer.tokens)
        if first + last == layer.tokens:
            nothing = torch.zeros(layer.keys.shape[:3], device=layer.keys.device)
            return nothing, nothing
        inside = layer.once(("part", first, last), lambda: part(layer, first, layer.tokens - last))
        parts = (
            LeverageScorePress(sketch_dimension=self.sketch_dimension, seed=self.seed),
            NonCausalAttnPress(chunk_size=self.chunk_size),
        )
        unusual, attended = (functional.pad(inside.score(press), (first, last)) for press in parts)
        return unusual, attended

    def scores_at(self, evidence: Sequence[tuple[Tensor, Tensor]], budget: Budget) -> list[Tensor]:
        """The blend (B, H, T), both ends on top."""
        tokens = evidence[0][0].shape[-1]
        weight = budget.removed_share(tokens) if self.blending is None else self.blending
        return [
            pin(weight * unusual + attended, *self._ends(unusual.shape[-1])) for unusual, attended in evidence
        ]

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): the blend at the press's own ratio."""
        return self.scores_at([self.observe(layer)], self.budget)[0]

    def _ends(self, tokens: int) -> tuple[int, int]:
        """Tokens kept at the start and at the end of a context."""
        first = min(self.sink_size_start, tokens)
        return first, min(self.sink_size_end, tokens - first)
