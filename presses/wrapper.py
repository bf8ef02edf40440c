"""Presses built on the scores of another press."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kvcache.compressing import Prefill
from kvcache.decode_hooks import Follower
from kvcache.observation import LayerObservation
from kvcache.selection import Selection, Threshold, check_ratio
from presses.base import BasePress
from presses.scorer import ScorerPress


class WrapperPress(BasePress):
    """A press that changes how another press's evidence becomes a selection, or how a selection is applied.

    Subclasses are frozen dataclasses with the fields `press` (first) and `compression_ratio: float | None =
    None`; without a ratio of
    its own, a wrapper takes that of the press inside: `AdaKVPress(SnapKVPress(0.5))`.
    """

    press: BasePress

    def __post_init__(self) -> None:
        """Refuse a ratio outside [0, 1), and anything inside that is not a press."""
        if not isinstance(self.press, BasePress):
            raise ValueError(
                f"{type(self).__name__} is built on a press, got {self.press!r}; give it one such as SnapKVPress()"
            )
        if self.press.adds_entries and type(self).apply is not WrapperPress.apply:
            raise ValueError(
                f"{self.press.name} adds entries of its own to the cache, which {self.name} cannot change; use it alone"
            )
        ratio = self.press.compression_ratio if self.compression_ratio is None else self.compression_ratio
        object.__setattr__(self, "compression_ratio", check_ratio(ratio))

    def observe(self, layer: LayerObservation) -> Any:
        """What the press inside observes."""
        return self.press.observe(layer)

    @property
    def own_budget(self) -> bool:
        """As the press inside."""
        return self.press.own_budget

    @property
    def claims_ratio(self) -> bool:
        """As the press inside."""
        return self.press.claims_ratio

    def probe(self, prefill: Prefill, evidence: Sequence[Any]) -> Sequence[Any]:
        """What the press inside probes."""
        return self.press.probe(prefill, evidence)

    def select(self, evidence: Sequence[Any], ratio: float) -> list[Selection]:
        """What the press inside selects."""
        return self.press.select(evidence, ratio)

    @property
    def has_threshold(self) -> bool:
        """As the press inside, where this one does not choose entries itself."""
        own = type(self)
        return (
            own.select is WrapperPress.select
            and own.observe is WrapperPress.observe
            and self.press.has_threshold
        )

    def select_above(self, evidence: Sequence[Any], threshold: Threshold) -> list[Selection]:
        """As the press inside does."""
        return (
            self.press.select_above(evidence, threshold)
            if self.has_threshold
            else super().select_above(evidence, threshold)
        )

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """As the press inside does."""
        return self.press.apply(keys, values, selection)

    @property
    def gathers(self) -> bool:
        """Whether neither this press nor the one inside changes entries."""
        return type(self).apply is WrapperPress.apply and self.press.gathers

    def while_decoding(self, ratio: float | Threshold) -> Follower | None:
        """As the press inside does."""
        return self.press.while_decoding(ratio)

    def notes(self, seen: Any) -> Tensor | None:
        """As the press inside does, where this one adds nothing to what it observes."""
        return self.press.notes(seen) if type(self).observe is WrapperPress.observe else None

    def next_position(self, selections: Sequence[Selection]) -> int:
        """As the press inside does."""
        return self.press.next_position(selections)

    def entries(self, layers: int, heads: int, tokens: int, ratio: float) -> tuple[int, int]:
        """As the press inside does."""
        return self.press.entries(layers, heads, tokens, ratio)


class ScoreWrapperPress(WrapperPress):
    """A press built on the scores of another: `self.press.scores_at(evidence, ratio)`."""

    press: ScorerPress

    def __post_init__(self) -> None:
        """Refuse a press without scores."""
        super().__post_init__()
        if not hasattr(self.press, "scores_at"):
            raise ValueError(
                f"{type(self).__name__} is built on scores, and {self.press.name} has none; give it a press such as snapkv"
            )
