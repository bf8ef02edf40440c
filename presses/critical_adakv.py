"""CriticalAdaKV: budgets per head as in AdaKV, filled as in CriticalKV.

The scores decide how many entries each head keeps; of these, a first share goes by score, the rest by
(score_t + ε)·‖v_t W_O‖₁.
Source: Feng et al. 2025, arXiv 2502.03805; kvpress 0.5.5 for ε.
Differs: every context of a batch has its own budgets per head; head-wise budgets are real.
Cost: one output projection of all values, one sort over all entries of a layer, and that of the press inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from presses.adakv import AdaKVPress
from presses.support.checks import check_share
from presses.support.norms import projected_value_norms


@dataclass(frozen=True)
class CriticalAdaKVPress(AdaKVPress):
    """Head-wise budgets, and scores weighted by the size of what a value adds to the output.

    Attributes:
        press: whose scores are ranked.
        compression_ratio: fraction of a layer's entries removed, in [0, 1).
        alpha_safeguard: share of the even budget that every head keeps in any case, in [0, 1].
        epsilon: added to a score before it is weighted.
        first_stage_ratio: share of a head's budget that goes by the scores alone, in [0, 1].
    """

    epsilon: float = 1e-4
    first_stage_ratio: float = 0.5

    def __post_init__(self) -> None:
        """Refuse shares outside [0, 1]."""
        super().__post_init__()
        check_share(of="the head's budget", first_stage_ratio=self.first_stage_ratio)

    def observe(self, layer: LayerObservation) -> tuple[Any, Tensor]:
        """What the press inside observes, and the norms (B, H, T) of projected values."""
        return self.press.observe(layer), projected_value_norms(layer)

    def of_press_inside(self, evidence: tuple[Any, Any]) -> Any:
        """The first part of the evidence."""
        return evidence[0]

    def select(self, evidence: Sequence[tuple[Any, Tensor]], budget: Budget) -> list[Selection]:
        """As many entries per head as AdaKV keeps, `H * budget.entries(T)` in all."""
        ranked = self.press.scores_at([inner for inner, _ in evidence], budget)
        return [
            self._fill(scores.float(), norms, budget.entries(scores.shape[-1]))
            for scores, (_, norms) in zip(ranked, evidence, strict=True)
        ]

    def _fill(self, scores: Tensor, norms: Tensor, even: int) -> Selection:
        counts = self._select(scores, even).counts  # (B, H)
        first = (counts * self.first_stage_ratio).long().clamp_min(self._safe(even))
        sure = Selection.top(scores, first)  # safeguard and first stage, both the head's best by score
        weighted = (scores + self.epsilon) * norms
        return Selection.top(weighted.masked_fill(sure.keep, torch.finfo(torch.float32).max), counts)
