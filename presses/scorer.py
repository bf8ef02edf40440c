"""Presses that give every entry a score and keep the highest of each head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvcache.budget import Budget
from kvcache.compress import removes
from kvcache.hooks.prefill import Prefill
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.base import BasePress


@dataclass(frozen=True)
class ScorerPress(BasePress):
    """A press whose evidence is one score per entry; every head and layer keeps the same number of entries.

    Attributes:
        compression_ratio: fraction of entries removed, in [0, 1).
    """

    compression_ratio: float = 0.0

    @property
    def traits(self) -> Traits:
        """Nothing but a score that does not depend on the budget decides what stays."""
        return Traits(gives_scores=True, takes_threshold=True)

    @abstractmethod
    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T) scores, higher is kept longer; must not depend on any budget."""

    def observe(self, layer: LayerObservation) -> Any:
        """The scores (B, H, T), computed once per layer even if other presses are built on them."""
        return layer.score(self)

    def scores_at(self, evidence: Sequence[Any], budget: Budget) -> Sequence[Tensor]:
        """Per layer the scores (B, H, T) at a budget.

        What was observed, except for methods that weigh it by the budget.
        """
        return evidence

    def select(self, evidence: Sequence[Any], budget: Budget) -> list[Selection]:
        """The top `budget.entries(T)` entries of every head, or those that reach the threshold.

        With a threshold, the best entry of every head stays in any case; counts differ from head to head.
        """
        return [select_top(scores, budget) for scores in self.scores_at(evidence, budget)]

    def compress(self, layer: LayerObservation, prefill: Prefill) -> None:
        """Compress this layer at once: no other layer is needed."""
        if removes(self, self.budget):
            self._compress_layers(prefill, [layer.index], [self.observe(layer)], all_layers=True)


def select_top(scores: Tensor, budget: Budget) -> Selection:
    """The highest scores (B, H, T) of every head, as many as the budget gives or as reach its threshold."""
    if budget.threshold is not None:
        return Selection((scores >= budget.threshold) | Selection.top(scores, 1).keep)
    return Selection.top(scores, budget.entries(scores.shape[-1]))
