"""None: keep everything, the full cache that every other press is compared with.

Source: the model itself.
Differs: nothing.
Cost: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from presses.scorer import ScorerPress


@dataclass(frozen=True)
class NonePress(ScorerPress):
    """The full cache. It has no ratio: a sweep runs it once.

    Raises:
        ValueError: a compression ratio other than 0.
    """

    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse any ratio but 0."""
        super().__post_init__()
        if self.compression_ratio:
            raise ValueError(
                f"press none keeps everything; compression_ratio={self.compression_ratio} must be 0"
            )

    def score(self, layer: LayerObservation) -> Tensor:
        """Equal scores: nothing is removed."""
        return layer.keys.new_zeros(layer.keys.shape[:3])

    def select(self, evidence: Sequence[Tensor], ratio: float) -> list[Selection]:
        """Everything, whatever the ratio."""
        return super().select(evidence, 0.0)

    def entries(self, layers: int, heads: int, tokens: int, ratio: float) -> tuple[int, int]:
        """Everything, whatever the ratio."""
        return super().entries(layers, heads, tokens, 0.0)
