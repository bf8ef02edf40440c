"""Per layer: another press with a ratio of its own in every layer.

Source: kvpress 0.5.5 (PerLayerCompressionPress).
Differs: different lengths per layer work with every attention. Without ratios, every layer has the ratio of
the sweep. Cost: that of the press inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvcache.compressing import Prefill
from kvcache.observation import LayerObservation
from kvcache.selection import Selection, check_ratio
from presses.base import BasePress
from presses.knorm import KnormPress
from presses.wrapper import WrapperPress


@dataclass(frozen=True)
class PerLayerCompressionPress(WrapperPress):
    """Given ratios, one per layer of the model.

    Attributes:
        press: that compresses each layer, without knowing of the others.
        compression_ratio: of every layer, where `compression_ratios` is empty.
        compression_ratios: fraction removed in each layer of the model, from the bottom; they are the budget,
            whatever ratio a sweep asks.
    """

    press: BasePress = KnormPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    compression_ratios: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse ratios outside [0, 1)."""
        object.__setattr__(
            self, "compression_ratios", tuple(check_ratio(ratio) for ratio in self.compression_ratios)
        )
        if self.compression_ratios and not self.compression_ratio:
            object.__setattr__(
                self, "compression_ratio", sum(self.compression_ratios) / len(self.compression_ratios)
            )
        super().__post_init__()

    @property
    def own_budget(self) -> bool:
        """Whether the ratios are given."""
        return bool(self.compression_ratios) or super().own_budget

    def observe(self, layer: LayerObservation) -> tuple[int, Any]:
        """The layer's index, and what the press inside observes."""
        return layer.index, self.press.observe(layer)

    def probe(self, prefill: Prefill, evidence: Sequence[tuple[int, Any]]) -> Sequence[tuple[int, Any]]:
        """What the press inside probes."""
        probed = self.press.probe(prefill, [seen for _, seen in evidence])
        return [(index, seen) for (index, _), seen in zip(evidence, probed, strict=True)]

    def select(self, evidence: Sequence[tuple[int, Any]], ratio: float) -> list[Selection]:
        """What the press inside selects in each layer alone.

        Raises:
            ValueError: the model has more layers than ratios are given.
        """
        return [self.press.select([seen], self._ratio(index, ratio))[0] for index, seen in evidence]

    def _ratio(self, index: int, ratio: float) -> float:
        if not self.compression_ratios:
            return ratio
        if index >= len(self.compression_ratios):
            raise ValueError(
                f"compression_ratios has {len(self.compression_ratios)} entries, but the model a layer {index}; give one each"
            )
        return self.compression_ratios[index]

    def entries(self, layers: int, heads: int, tokens: int, ratio: float) -> tuple[int, int]:
        """The sum over layers; where a model leaves layers whole, between those of the highest and of the lowest ratios."""
        ratios = sorted(self.compression_ratios or [ratio] * layers, reverse=True)
        fewest = sum(self.press.entries(1, heads, tokens, one)[0] for one in ratios[:layers])
        most = sum(self.press.entries(1, heads, tokens, one)[1] for one in ratios[-layers:])
        return fewest, most
