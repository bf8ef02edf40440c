"""KeyDiff: keep the keys that differ most from the mean direction.

score_t = -cos(k_t, a), a the mean over positions of k / ‖k‖.
Source: Park et al. 2025, arXiv 2504.15364.
Differs: scores the whole context at once (the paper also streams it in blocks).
Cost: one normalisation and one product per cached key.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.scorer import ScorerPress


@dataclass(frozen=True)
class KeyDiffPress(ScorerPress):
    """Keys close to the anchor (the mean direction) are redundant and go first."""

    @property
    def traits(self) -> Traits:
        """Keys and values are all that is looked at."""
        return replace(super().traits, reads_hidden_states=False)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): minus the cosine between each key and the anchor."""
        keys = layer.keys.float()
        anchor = functional.normalize(keys, dim=-1).mean(dim=2, keepdim=True)
        return -functional.cosine_similarity(keys, anchor, dim=-1)
