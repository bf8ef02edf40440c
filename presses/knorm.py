"""Knorm: keep the keys with the smallest norm.

score_t = -‖k_t‖₂, in float32.
Source: Devoto et al. 2024, arXiv 2406.11430.
Differs: nothing.
Cost: one norm per cached key.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.scorer import ScorerPress


@dataclass(frozen=True)
class KnormPress(ScorerPress):
    """Keys of small norm attract attention in trained models; the others go."""

    @property
    def traits(self) -> Traits:
        """Keys and values are all that is looked at."""
        return replace(super().traits, reads_hidden_states=False)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): minus the norm of each key."""
        return -layer.keys.float().norm(dim=-1)
