"""StreamingLLM: keep the first tokens (attention sinks) and the most recent ones.

score: the first `n_sink` positions, then recency.
Source: Xiao et al. 2023, arXiv 2309.17453.
Differs: keys keep their positions; wrap it in key_rerotation for the paper's positions within the cache.
Cost: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.scorer import ScorerPress
from presses.support.checks import check_least


@dataclass(frozen=True)
class StreamingLLMPress(ScorerPress):
    """Sinks and a recent window, whose size follows from the budget.

    Attributes:
        n_sink: first tokens that are always kept.
    """

    n_sink: int = 4

    def __post_init__(self) -> None:
        """Refuse negative sinks."""
        super().__post_init__()
        check_least(0, "token", n_sink=self.n_sink)

    @property
    def traits(self) -> Traits:
        """Keys and values are all that is looked at."""
        return replace(super().traits, reads_hidden_states=False)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): rising with the position, the sinks above everything, earlier ones first."""
        scores = torch.arange(layer.tokens, dtype=torch.float32, device=layer.keys.device)
        sinks = min(self.n_sink, layer.tokens)
        scores[:sinks] = 2 * layer.tokens - scores[:sinks]
        return scores.expand(layer.keys.shape[:3])
