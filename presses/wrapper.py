"""Presses built on the scores of another press."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from kvcache.budget import Budget
from kvcache.hooks.decode_hooks import DecodeHook
from kvcache.hooks.prefill import Prefill
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.base import BasePress
from presses.scorer import ScorerPress


class WrapperPress(BasePress):
    """A press that changes how another press's evidence becomes a selection, or how a selection is applied.

    Subclasses are frozen dataclasses with the fields `press` (first) and
    `compression_ratio: float | None = None`; without a ratio of its own, a wrapper takes that of the press
    inside: `AdaKVPress(SnapKVPress(0.5))`.
    """

    press: BasePress

    def __post_init__(self) -> None:
        """Refuse a ratio outside [0, 1), and anything inside that is not a press."""
        if not isinstance(self.press, BasePress):
            raise ValueError(
                f"{type(self).__name__} is built on a press, got {self.press!r}; give it one such as "
                "SnapKVPress()"
            )
        if self.compression_ratio is None:
            object.__setattr__(self, "compression_ratio", self.press.compression_ratio)
        super().__post_init__()

    @property
    def traits(self) -> Traits:
        """Those of the press inside, which gives its scores to no third one."""
        return replace(self.press.traits, gives_scores=False, selects_by_layer=False, has_recipe=False)

    def observe(self, layer: LayerObservation) -> Any:
        """What the press inside observes."""
        return self.press.observe(layer)

    def probe(self, prefill: Prefill, evidence: Sequence[Any]) -> Sequence[Any]:
        """What the press inside probes."""
        return self.press.probe(prefill, evidence)

    def select(self, evidence: Sequence[Any], budget: Budget) -> list[Selection]:
        """What the press inside selects."""
        return self.press.select(evidence, budget)

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """As the press inside does."""
        return self.press.apply(keys, values, selection)

    def decode_hook(self, budget: Budget) -> DecodeHook:
        """As the press inside does."""
        return self.press.decode_hook(budget)

    def acts_while_decoding(self, budget: Budget) -> bool:
        """As the press inside does."""
        return self.press.acts_while_decoding(budget)

    def entry_metadata(self, evidence: Any) -> Tensor | None:
        """As the press inside does."""
        return self.press.entry_metadata(self.of_press_inside(evidence))

    def of_press_inside(self, evidence: Any) -> Any:
        """What the press inside observed, of what this one did: all of it, unless `observe` adds to it."""
        return evidence

    def next_position(self, selections: Sequence[Selection]) -> int:
        """As the press inside does."""
        return self.press.next_position(selections)

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """As the press inside does."""
        return self.press.entry_bounds(layers, heads, tokens, budget)

    def evidence_bytes(self, heads: int, hidden: int) -> int:
        """That of the press inside, and three tensors of float32 scores of its own."""
        return super().evidence_bytes(heads, 0) + self.press.evidence_bytes(heads, hidden)


def check_adds_nothing(press: BasePress, by: BasePress) -> None:
    """Refuse a press inside that adds entries of its own to the cache.

    Args:
        press: the press inside.
        by: the wrapper, which would have to change these entries as well.

    Raises:
        ValueError: such a press.
    """
    if press.traits.adds_entries:
        raise ValueError(
            f"{press.name} adds entries of its own to the cache, which {by.name} cannot change; use it alone"
        )


class ScoreWrapperPress(WrapperPress):
    """A press built on the scores of another: `self.press.scores_at(evidence, budget)`."""

    press: ScorerPress

    def __post_init__(self) -> None:
        """Refuse a press without scores."""
        super().__post_init__()
        if not self.press.traits.gives_scores:
            raise ValueError(
                f"{type(self).__name__} is built on scores, and {self.press.name} has none; give it a press "
                "such as snapkv"
            )

    @property
    def traits(self) -> Traits:
        """Those of the press inside; the number of entries is this one's matter, so there is no threshold."""
        return replace(super().traits, takes_threshold=False, evicts_in_prefill=True)

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """Those of any press: the one inside scores entries, this one chooses among them."""
        return BasePress.entry_bounds(self, layers, heads, tokens, budget)
