"""Random: keep random entries, the floor that every method has to beat.

score_t uniform in [0, 1), from a generator of its own per seed, layer and context.
Source: none.
Differs: reproducible on any device and independent of what ran before (kvpress draws from the global
generator, or repeats the same positions in every layer).
Cost: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.scorer import ScorerPress


@dataclass(frozen=True)
class RandomPress(ScorerPress):
    """Random scores.

    Attributes:
        seed: of the draw, together with the layer and the content of the context.
    """

    seed: int = 0

    @property
    def traits(self) -> Traits:
        """Keys and values are all that is looked at."""
        return replace(super().traits, reads_hidden_states=False)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T) uniform numbers."""
        shape = layer.keys.shape[1:3]
        rows = [torch.rand(shape, generator=generator) for generator in layer.generators(self.seed)]
        return torch.stack(rows).to(layer.keys.device)
