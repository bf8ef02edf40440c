"""Key re-rotation: give kept keys neighbouring positions, as if the evicted tokens had never been there.

The key kept at rank m, cached at position p, is rotated by m - p; the question continues at the number of
kept entries.
Source: Xiao et al. 2023 (StreamingLLM's positions within the cache), arXiv 2309.17453; kvpress 0.5.5.
Differs: works inside other wrappers, and with every kind of rotary embedding that scales angles (the model's
own cosines and sines are used, on the channels that the model pairs). Refused where sliding-window layers,
left whole, would keep their old positions.
Cost: one rotation per kept key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from kvcache.budget import Budget
from kvcache.hooks.prefill import Prefill
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.base import BasePress
from presses.knorm import KnormPress
from presses.support.rerotation import RotatedSelection, rerotated
from presses.wrapper import WrapperPress, check_adds_nothing


@dataclass(frozen=True)
class KeyRerotationPress(WrapperPress):
    """New positions for what another press keeps.

    Attributes:
        press: that selects.
        compression_ratio: fraction of entries removed, in [0, 1).
    """

    press: BasePress = KnormPress()
    compression_ratio: float | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Refuse a press that adds entries, whose positions are its own."""
        super().__post_init__()
        check_adds_nothing(self.press, self)

    @property
    def traits(self) -> Traits:
        """Kept keys move."""
        return replace(super().traits, only_selects=False, moves_positions=True, takes_threshold=False)

    def observe(self, layer: LayerObservation) -> tuple[Any, Any]:
        """What the press inside observes, and the layer's rotary embedding."""
        return self.press.observe(layer), layer.rotary

    def probe(self, prefill: Prefill, evidence: Sequence[tuple[Any, Any]]) -> Sequence[tuple[Any, Any]]:
        """What the press inside probes, and the layers' rotary embeddings."""
        probed = self.press.probe(prefill, [inner for inner, _ in evidence])
        return [(inner, rotary) for inner, (_, rotary) in zip(probed, evidence, strict=True)]

    def of_press_inside(self, evidence: tuple[Any, Any]) -> Any:
        """The first part of the evidence."""
        return evidence[0]

    def select(self, evidence: Sequence[tuple[Any, Any]], budget: Budget) -> list[Selection]:
        """What the press inside selects."""
        selections = self.press.select([inner for inner, _ in evidence], budget)
        return [
            RotatedSelection(selection.keep, selection, rotary)
            for selection, (_, rotary) in zip(selections, evidence, strict=True)
        ]

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Kept keys turned from their old to their new positions; values as the press inside gives them."""
        assert isinstance(selection, RotatedSelection)
        keys, values = self.press.apply(keys, values, selection.inner)
        return rerotated(keys, selection), values

    def next_position(self, selections: Sequence[Selection]) -> int:
        """The number of kept entries (of the fullest head)."""
        return max(int(selection.counts.max()) for selection in selections)
