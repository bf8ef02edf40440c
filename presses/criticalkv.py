"""CriticalKV: among what a scorer ranks next, keep what the output feels most.

Two stages: the scorer's top share of the budget is sure; the rest goes by (score_t + ε)·N_t, N_t = ‖v_t W_O‖₁
averaged over the query heads of a group.
Source: Feng et al. 2025, arXiv 2502.03805; kvpress 0.5.5 for ε.
Differs: nothing. Scorers that already multiply by the norm of the value count it twice; give
expected_attention use_vnorm=false.
Cost: one output projection of all values, and that of the press inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.scorer import ScorerPress, select_top
from presses.snapkv import SnapKVPress
from presses.support.checks import check_share
from presses.support.norms import projected_value_norms
from presses.wrapper import ScoreWrapperPress


@dataclass(frozen=True)
class CriticalKVPress(ScoreWrapperPress):
    """Scores weighted by the size of what a value adds to the output.

    Attributes:
        press: whose scores are weighted.
        compression_ratio: fraction of entries removed, in [0, 1).
        epsilon: added to a score before it is weighted.
        first_stage_ratio: share of the budget that goes by the scores alone, in [0, 1].
    """

    press: ScorerPress = SnapKVPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    epsilon: float = 1e-4
    first_stage_ratio: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a share outside [0, 1]."""
        super().__post_init__()
        check_share(of="the budget", first_stage_ratio=self.first_stage_ratio)

    @property
    def traits(self) -> Traits:
        """Weighted scores are scores."""
        return replace(super().traits, gives_scores=True)

    def observe(self, layer: LayerObservation) -> tuple[Any, Tensor]:
        """What the press inside observes, and the norms (B, H, T) of projected values."""
        return self.press.observe(layer), projected_value_norms(layer)

    def scores_at(self, evidence: Sequence[tuple[Any, Tensor]], budget: Budget) -> Sequence[Tensor]:
        """Weighted scores (B, H, T), those of the first stage on top."""
        ranked = self.press.scores_at([inner for inner, _ in evidence], budget)
        return [
            self._weighted(scores.float(), norms, budget)
            for scores, (_, norms) in zip(ranked, evidence, strict=True)
        ]

    def _weighted(self, scores: Tensor, norms: Tensor, budget: Budget) -> Tensor:
        tokens = scores.shape[-1]
        share = budget.kept_share(tokens) * tokens * self.first_stage_ratio
        sure = Selection.top(scores, max(1, int(share)) if self.first_stage_ratio else 0)
        return ((scores + self.epsilon) * norms).masked_fill(sure.keep, torch.finfo(torch.float32).max)

    def of_press_inside(self, evidence: tuple[Any, Any]) -> Any:
        """The first part of the evidence."""
        return evidence[0]

    def select(self, evidence: Sequence[tuple[Any, Tensor]], budget: Budget) -> list[Selection]:
        """The top `budget.entries(T)` entries of every head by weighted score."""
        return [select_top(scores, budget) for scores in self.scores_at(evidence, budget)]
