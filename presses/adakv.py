"""AdaKV: let the heads of a layer compete for its budget.

All scores of a layer are ranked together; each head is sure of its best `alpha_safeguard` share of the even
budget.
Source: Feng et al. 2024, arXiv 2407.11550.
Differs: head-wise budgets are real: entries leave memory instead of being masked.
Cost: one sort over all entries of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.scorer import ScorerPress
from presses.snapkv import SnapKVPress
from presses.support.checks import check_share
from presses.wrapper import ScoreWrapperPress


@dataclass(frozen=True)
class AdaKVPress(ScoreWrapperPress):
    """Head-wise budgets; the total of a layer is that of the even split.

    Attributes:
        press: whose scores are ranked.
        compression_ratio: fraction of a layer's entries removed, in [0, 1).
        alpha_safeguard: share of the even budget that every head keeps in any case, in [0, 1].
    """

    press: ScorerPress = SnapKVPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    alpha_safeguard: float = 0.2

    def __post_init__(self) -> None:
        """Refuse a share outside [0, 1]."""
        super().__post_init__()
        check_share(of="the even budget", alpha_safeguard=self.alpha_safeguard)

    @property
    def traits(self) -> Traits:
        """The heads of a layer compete, whatever other layers hold."""
        return replace(super().traits, selects_by_layer=True)

    def select(self, evidence: Sequence[Any], budget: Budget) -> list[Selection]:
        """The best entries over all heads of a layer, `H * budget.entries(T)` of them."""
        return [
            self._select(scores, budget.entries(scores.shape[-1]))
            for scores in self.press.scores_at(evidence, budget)
        ]

    def _select(self, scores: Tensor, kept: int) -> Selection:
        safe = Selection.top(scores, self._safe(kept)).keep
        ranked = scores.masked_fill(safe, torch.finfo(scores.dtype).max)
        best = Selection.top(ranked.flatten(1)[:, None], kept * scores.shape[1]).keep
        return Selection(best.view_as(scores))

    def _safe(self, even: int) -> int:
        """Entries that a head keeps in any case, of an even budget."""
        return max(1, int(even * self.alpha_safeguard)) if self.alpha_safeguard else 0
