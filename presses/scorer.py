"""Presses that give every entry a score and keep the highest of each head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcache.compressing import Prefill
from kvcache.observation import LayerObservation
from kvcache.selection import Selection, Threshold, budget, check_ratio
from presses.base import BasePress


@dataclass(frozen=True)
class ScorerPress(BasePress):
    """A press whose evidence is one score per entry; the same number of entries is kept in every head and layer.

    Attributes:
        compression_ratio: fraction of entries removed, in [0, 1).
    """

    compression_ratio: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a ratio outside [0, 1)."""
        object.__setattr__(self, "compression_ratio", check_ratio(self.compression_ratio))

    @abstractmethod
    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T) scores, higher is kept longer; must not depend on any ratio."""

    def observe(self, layer: LayerObservation) -> Any:
        """The scores (B, H, T), computed once per layer even if other presses are built on them."""
        return layer.score(self)

    def scores_at(self, evidence: Sequence[Any], ratio: float) -> Sequence[Tensor]:
        """Per layer the scores (B, H, T) at `ratio`: what was observed, except for methods that weigh it by the budget."""
        return evidence

    def select(self, evidence: Sequence[Any], ratio: float) -> list[Selection]:
        """The top `budget(T, ratio)` entries of every head."""
        return [
            Selection.top(scores, budget(scores.shape[-1], ratio))
            for scores in self.scores_at(evidence, ratio)
        ]

    @property
    def has_threshold(self) -> bool:
        """Whether nothing but a score that does not depend on the ratio decides what stays."""
        return (
            not self.lossless
            and type(self).select is ScorerPress.select
            and type(self).scores_at is ScorerPress.scores_at
        )

    def select_above(self, evidence: Sequence[Any], threshold: Threshold) -> list[Selection]:
        """Entries whose score is at least the threshold, and the best of every head in any case: counts differ from head to head."""
        if not self.has_threshold:
            return super().select_above(evidence, threshold)
        return [Selection((scores >= threshold.score) | Selection.top(scores, 1).keep) for scores in evidence]

    def compress(self, layer: LayerObservation, prefill: Prefill) -> None:
        """Compress this layer at once: no other layer is needed."""
        if self.compression_ratio == 0:
            return
        seen = self.observe(layer)
        (selection,) = self.select([seen], self.compression_ratio)
        prefill.replace(
            layer.index,
            *self.apply(layer.keys, layer.values, selection),
            selection,
            layer.tokens,
            self.notes(seen),
        )


def pin(scores: Tensor, first: int = 0, last: int = 0) -> Tensor:
    """A copy of `scores` (B, H, T) in float32 with the first and last positions above all others, later ones above earlier ones.

    The highest score of the row + 1, as in kvpress; a thousandth more towards the end, so that a budget
    smaller than the pinned part keeps its most recent entries instead of arbitrary ones.
    """
    tokens = scores.shape[-1]
    pinned = scores.float().clone()
    rising = (
        scores.float().amax((1, 2), keepdim=True)
        + 1
        + 1e-3 * torch.arange(1, tokens + 1, device=scores.device) / tokens
    )  # (B, 1, T)
    pinned[..., :first] = rising[..., :first]
    if last:
        pinned[..., -last:] = rising[..., -last:]
    return pinned


def mean_over_group(per_query_head: Tensor, group: int) -> Tensor:
    """(B, H * G, *) to (B, H, *): the mean over the query heads that share a KV head."""
    return per_query_head.unflatten(1, (-1, group)).mean(2)
