"""CriticalKV: among what a scorer ranks next, keep what the output feels most.

Two stages: the scorer's top share of the budget is sure; the rest goes by (score_t + ε)·N_t, N_t = ‖v_t W_O‖₁
averaged over the query heads of a group.
Source: Feng et al. 2025, arXiv 2502.03805; kvpress 0.5.5 for ε.
Differs: nothing. Scorers that already multiply by the norm of the value count it twice; give
expected_attention use_vnorm=false. Cost: one output projection of all values, and that of the press inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcache.observation import LayerObservation
from kvcache.projections import output_weight
from kvcache.selection import Selection, budget
from presses.scorer import ScorerPress
from presses.snapkv import SnapKVPress
from presses.wrapper import ScoreWrapperPress

TOKEN_BLOCK = 1024
"""Tokens projected at a time, so that nothing of size T x D exists per head."""


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
        check_first_stage(self.first_stage_ratio)

    def observe(self, layer: LayerObservation) -> tuple[Any, Tensor]:
        """What the press inside observes, and the norms (B, H, T) of projected values."""
        return self.press.observe(layer), layer.once(
            "projected value norms", lambda: projected_value_norms(layer)
        )

    def scores_at(self, evidence: Sequence[tuple[Any, Tensor]], ratio: float) -> Sequence[Tensor]:
        """Weighted scores (B, H, T), those of the first stage on top."""
        scores = self.press.scores_at([seen for seen, _ in evidence], ratio)
        return [
            self._weighted(seen.float(), norms, ratio)
            for seen, (_, norms) in zip(scores, evidence, strict=True)
        ]

    def _weighted(self, scores: Tensor, norms: Tensor, ratio: float) -> Tensor:
        share = (1 - ratio) * scores.shape[-1] * self.first_stage_ratio
        sure = Selection.top(scores, max(1, int(share)) if self.first_stage_ratio else 0)
        return ((scores + self.epsilon) * norms).masked_fill(sure.keep, torch.finfo(torch.float32).max)

    def select(self, evidence: Sequence[tuple[Any, Tensor]], ratio: float) -> list[Selection]:
        """The top `budget(T, ratio)` entries of every head by weighted score."""
        return [
            Selection.top(scores, budget(scores.shape[-1], ratio))
            for scores in self.scores_at(evidence, ratio)
        ]


def check_first_stage(share: float) -> None:
    """Refuse a share of the budget outside [0, 1].

    Raises:
        ValueError: such a share.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"first_stage_ratio={share} must lie in [0, 1]: it is a share of the budget")


def projected_value_norms(layer: LayerObservation) -> Tensor:
    """(B, H, T) float32: ‖v_t W_O‖₁ of each value, averaged over the query heads of its group."""
    weights = output_weight(layer.module).unflatten(0, (-1, layer.group))  # (H, G, d, D)
    blocks = []
    for values in layer.values.split(TOKEN_BLOCK, dim=2):
        per_head = [
            torch.linalg.vector_norm(values @ weights[:, g], ord=1, dim=-1, dtype=torch.float32)
            for g in range(layer.group)
        ]
        blocks.append(torch.stack(per_head).mean(0))
    return torch.cat(blocks, dim=-1)
