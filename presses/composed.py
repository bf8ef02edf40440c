"""Composed: two presses one after the other, the second on what the first keeps.

Retained fractions multiply: (1 - r₁)(1 - r₂). For more than two presses, compose again:
`ComposedPress(a, ComposedPress(b, c))`.
Source: kvpress 0.5.5.
Differs: what a press observes comes from the full context and is then narrowed to the entries that are left,
so presses that need hidden states may come second (kvpress gives them keys that no longer fit). Head-wise and
global budgets may come last, or first where the second press removes channels only.
Cost: the sum of both.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.hooks.prefill import Prefill
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.base import BasePress
from presses.snapkv import SnapKVPress
from presses.think import ThinKPress
from presses.wrapper import WrapperPress, check_adds_nothing


@dataclass(frozen=True)
class ComposedSelection(Selection):
    """What is left after two selections.

    Attributes:
        first: over the context.
        second: over the entries that `first` keeps.
    """

    first: Selection
    second: Selection


@dataclass(frozen=True)
class ComposedPress(WrapperPress):
    """A press, and another one on what it keeps.

    Attributes:
        press: the first.
        then: the second; its own compression ratio if it has one above 0, else that of the first.
        compression_ratio: of the first press, in [0, 1).
    """

    press: BasePress = SnapKVPress()
    then: BasePress = ThinKPress(key_channel_compression_ratio=0.5)
    compression_ratio: float | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Refuse what is not a press."""
        super().__post_init__()
        check_adds_nothing(self.press, self)
        if not isinstance(self.then, BasePress):
            raise ValueError(
                f"ComposedPress(press, then) takes two presses, got {self.then!r}; nest it for more"
            )
        if self.then.traits.adds_entries:
            raise ValueError(
                f"{self.then.name} adds entries of its own to the cache, so it cannot come second; use it "
                "alone"
            )

    @property
    def traits(self) -> Traits:
        """Those of both: what either does is done, and what both need is needed."""
        first, second = self.press.traits, self.then.traits
        shares_ratio = not self.then.compression_ratio
        return Traits(
            evicts_in_prefill=first.evicts_in_prefill or second.evicts_in_prefill,
            acts_while_decoding=first.acts_while_decoding,
            has_fixed_budget=first.has_fixed_budget,
            ratio_is_bytes=first.ratio_is_bytes or (second.ratio_is_bytes and shares_ratio),
            only_selects=first.only_selects and second.only_selects,
            reads_again=first.reads_again or second.reads_again,
            moves_positions=first.moves_positions,
            adds_entries=first.adds_entries,
            window_queries=first.window_queries + second.window_queries,
            keeps_hidden_states=first.keeps_hidden_states or second.keeps_hidden_states,
        )

    def observe(self, layer: LayerObservation) -> tuple[Any, Any]:
        """What both observe."""
        return self.press.observe(layer), self.then.observe(layer)

    def probe(self, prefill: Prefill, evidence: Sequence[tuple[Any, Any]]) -> Sequence[tuple[Any, Any]]:
        """What both probe, on the full cache."""
        first = self.press.probe(prefill, [of_first for of_first, _ in evidence])
        return list(
            zip(first, self.then.probe(prefill, [of_second for _, of_second in evidence]), strict=True)
        )

    def of_press_inside(self, evidence: tuple[Any, Any]) -> Any:
        """The first part of the evidence."""
        return evidence[0]

    def select(self, evidence: Sequence[tuple[Any, Any]], budget: Budget) -> list[Selection]:
        """The second press's selection among what the first keeps.

        Raises:
            ValueError: heads keep different numbers, and the second press would choose among them; or it
                moves positions.
        """
        firsts = self.press.select([of_first for of_first, _ in evidence], budget)
        narrowed = [narrow(of_second, first) for (_, of_second), first in zip(evidence, firsts, strict=True)]
        seconds = self.then.select(narrowed, self._second_budget(budget))
        if self.then.next_position(seconds) != seconds[0].keep.shape[-1]:
            raise ValueError(
                f"{self.then.name} moves entries to new positions, so it must come first, or around the "
                "composed press"
            )
        return [self._composed(first, second) for first, second in zip(firsts, seconds, strict=True)]

    def _composed(self, first: Selection, second: Selection) -> Selection:
        exists = torch.arange(first.positions.shape[-1], device=first.keep.device) < first.counts[..., None]
        if not bool(exists.all()) and bool((second.keep != exists).any()):
            raise ValueError(
                f"{self.press.name} keeps different numbers of entries per head, among which "
                f"{self.then.name} cannot choose; put {self.press.name} second"
            )
        keep = torch.zeros_like(first.keep).scatter_(-1, first.positions, second.keep)
        return ComposedSelection(keep, first, second)

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """As the first press does, and then the second."""
        assert isinstance(selection, ComposedSelection)
        return self.then.apply(*self.press.apply(keys, values, selection.first), selection.second)

    def next_position(self, selections: Sequence[Selection]) -> int:
        """As the first press does."""
        firsts = [selection.first for selection in selections if isinstance(selection, ComposedSelection)]
        return self.press.next_position(firsts)

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """Exact where the first press keeps as much in every head, else at most as many as it keeps."""
        fewest, most = self.press.entry_bounds(layers, heads, tokens, budget)
        per_head, rest = divmod(most, layers * heads)
        if fewest == most and not rest:
            return self.then.entry_bounds(layers, heads, per_head, self._second_budget(budget))
        return 0, most

    def parameters(self) -> dict[str, Any]:
        """All fields but the ratio; the second press's own ratio belongs to what it is."""
        parameters = super().parameters()
        second = {**parameters["then"], "compression_ratio": self.then.compression_ratio}
        return {**parameters, "then": second}

    def identity(self) -> Hashable:
        """Presses of different second ratios are different presses."""
        return (super().identity(), self.then.compression_ratio)

    def _second_budget(self, budget: Budget) -> Budget:
        """The second press's own budget where it has one, else that of the first."""
        has_its_own = self.then.traits.has_fixed_budget or self.then.compression_ratio
        return self.then.budget if has_its_own else budget


def narrow(evidence: Any, kept: Selection) -> Any:
    """What was observed of T entries, reduced to the kept ones.

    Of every tensor (B, H, T, …) the kept rows, all else as it is. Of masks, what stands behind a head's own
    number of kept entries is False.
    """
    if isinstance(evidence, tuple | list):
        return type(evidence)(narrow(part, kept) for part in evidence)
    if not isinstance(evidence, Tensor) or evidence.dim() < 3 or evidence.shape[:3] != kept.keep.shape:
        return evidence
    trailing = evidence.shape[3:]
    index = kept.positions.reshape(*kept.positions.shape, *[1] * len(trailing))
    rows = evidence.gather(2, index.expand(*kept.positions.shape, *trailing))
    return rows & kept.keep.gather(-1, kept.positions) if rows.dtype == torch.bool else rows
