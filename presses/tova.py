"""TOVA: keep what the last token attends to.

score_t = mean over all heads of softmax(q_last·k_t/√d); the last token itself is kept.
Source: Oren et al. 2024, arXiv 2401.06104.
Differs: applied once, after the prefill (the paper also evicts while decoding).
Cost: one attention of one query per layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.scorer import ScorerPress
from presses.support.scores import pin


@dataclass(frozen=True)
class TOVAPress(ScorerPress):
    """One ranking per layer, the same for all its heads."""

    @property
    def traits(self) -> Traits:
        """Attention of the last query."""
        return replace(super().traits, window_queries=1)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): attention of the last query, averaged over heads, the last token on top."""
        votes = layer.window_attention(1)[:, :, 0, :-1].mean(dim=1, keepdim=True)  # (B, 1, T - 1)
        return pin(functional.pad(votes, (0, 1)).expand(-1, layer.kv_heads, -1), last=1)
