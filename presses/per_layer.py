"""Per layer: another press with a ratio of its own in every layer.

Source: kvpress 0.5.5 (PerLayerCompressionPress).
Differs: different lengths per layer work with every attention. Without ratios, every layer has the ratio of
the sweep.
Cost: that of the press inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvcache.budget import Budget, check_ratio
from kvcache.hooks.prefill import Prefill
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
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
        object.__setattr__(self, "compression_ratios", tuple(map(check_ratio, self.compression_ratios)))
        super().__post_init__()

    @property
    def traits(self) -> Traits:
        """Given ratios are the budget."""
        return replace(
            super().traits,
            takes_threshold=False,
            has_fixed_budget=bool(self.compression_ratios) or super().traits.has_fixed_budget,
        )

    def observe(self, layer: LayerObservation) -> tuple[int, Any]:
        """The layer's index, and what the press inside observes."""
        return layer.index, self.press.observe(layer)

    def probe(self, prefill: Prefill, evidence: Sequence[tuple[int, Any]]) -> Sequence[tuple[int, Any]]:
        """What the press inside probes."""
        probed = self.press.probe(prefill, [inner for _, inner in evidence])
        return [(index, inner) for (index, _), inner in zip(evidence, probed, strict=True)]

    def of_press_inside(self, evidence: tuple[int, Any]) -> Any:
        """All but the layer's index."""
        return evidence[1]

    def select(self, evidence: Sequence[tuple[int, Any]], budget: Budget) -> list[Selection]:
        """What the press inside selects in each layer alone.

        Raises:
            ValueError: the model has more layers than ratios are given.
        """
        return [self.press.select([inner], self._budget(index, budget))[0] for index, inner in evidence]

    def _budget(self, index: int, budget: Budget) -> Budget:
        if not self.compression_ratios:
            return budget
        if index >= len(self.compression_ratios):
            raise ValueError(
                f"compression_ratios has {len(self.compression_ratios)} entries, but the model a layer "
                f"{index}; give one each"
            )
        return Budget(ratio=self.compression_ratios[index])

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """The sum over layers.

        Where a model leaves layers whole, between those of the highest and of the lowest ratios.
        """
        ratios = sorted(self.compression_ratios, reverse=True)
        budgets = [Budget(ratio=ratio) for ratio in ratios] or [budget] * layers
        bounds = [self.press.entry_bounds(1, heads, tokens, of_layer) for of_layer in budgets]
        fewest, most = sum(low for low, _ in bounds[:layers]), sum(high for _, high in bounds[-layers:])
        return fewest, most
