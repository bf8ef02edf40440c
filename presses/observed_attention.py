"""Observed attention: keep what the context's own tokens attended to, as H2O does in the prefill.

score_t = Σ over queries i ≥ t of attention a_it / (number of such queries), averaged over the query heads of
a group.
Source: Zhang et al. 2023 (H2O), arXiv 2306.14048.
Differs: normalised by the number of queries that can see a token; no eviction while decoding. Attention is
recomputed in blocks, so neither eager attention nor a T x T matrix is needed.
Cost: attention of all queries once more, per layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.observation import LayerObservation
from presses.scorer import ScorerPress
from presses.support.scores import mean_over_group


@dataclass(frozen=True)
class ObservedAttentionPress(ScorerPress):
    """Average attention received."""

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): mean attention that each position receives from itself and later ones."""
        seen_by = torch.arange(layer.tokens, 0, -1, device=layer.keys.device)
        return mean_over_group(layer.attention_column_sums() / seen_by, layer.group)
