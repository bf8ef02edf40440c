"""None: keep everything, the full cache that every other press is compared with.

Source: the model itself.
Differs: nothing.
Cost: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from kvcache.budget import Budget
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.scorer import ScorerPress


@dataclass(frozen=True)
class NonePress(ScorerPress):
    """The full cache. It has no ratio: a sweep runs it once.

    Raises:
        ValueError: a compression ratio other than 0.
    """

    def __post_init__(self) -> None:
        """Refuse any ratio but 0."""
        super().__post_init__()
        if self.compression_ratio:
            raise ValueError(
                f"press none keeps everything; compression_ratio={self.compression_ratio} must be 0"
            )

    @property
    def traits(self) -> Traits:
        """Nothing is removed."""
        return replace(
            super().traits, evicts_in_prefill=False, takes_threshold=False, reads_hidden_states=False
        )

    def score(self, layer: LayerObservation) -> Tensor:
        """Equal scores: nothing is removed."""
        return layer.keys.new_zeros(layer.keys.shape[:3])

    def select(self, evidence: Sequence[Tensor], budget: Budget) -> list[Selection]:
        """Everything, whatever the ratio."""
        return super().select(evidence, Budget(ratio=0.0))

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """Everything, whatever the ratio."""
        return super().entry_bounds(layers, heads, tokens, Budget(ratio=0.0))
