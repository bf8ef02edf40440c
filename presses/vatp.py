"""VATP: keep what adds most: a token's attention times the size of its value.

score_t = s_t · ‖v_t‖₁, s the scores of a press inside (accumulated attention); the first and the last tokens
are kept.
Source: Guo, Kamigaito, Watanabe 2024, "Attention Score is Not All You Need for Token Importance Indicator in
KV Cache Reduction: Value Also Matters", arXiv 2406.12335; authors' repository guozhiyu/vatp.
Differs: applied once, after the prefill. The authors keep the most recent half of the budget; here
`window_size` tokens, whatever the ratio, and with summed attention, as their variant of H2O (their other
variant averages the last 400 queries).
Cost: one norm per value, and that of the press inside.
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
from presses.observed_attention import ObservedAttentionPress
from presses.scorer import ScorerPress, select_top
from presses.support.checks import check_least
from presses.support.scores import pin
from presses.wrapper import ScoreWrapperPress


@dataclass(frozen=True)
class VATPPress(ScoreWrapperPress):
    """Scores weighted by the size of the values.

    Attributes:
        press: whose scores, not negative, are weighted.
        compression_ratio: fraction of entries removed, in [0, 1).
        sinks: first tokens, always kept: their values are small although their attention matters.
        window_size: last tokens, always kept.
    """

    press: ScorerPress = ObservedAttentionPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    sinks: int = 20
    window_size: int = 64

    def __post_init__(self) -> None:
        """Refuse negative windows."""
        super().__post_init__()
        check_least(0, "token", sinks=self.sinks, window_size=self.window_size)

    @property
    def traits(self) -> Traits:
        """Weighted scores are scores."""
        return replace(super().traits, gives_scores=True)

    def observe(self, layer: LayerObservation) -> tuple[Any, Tensor]:
        """What the press inside observes, and the L1 norms (B, H, T) of the values in float32."""
        norms = torch.linalg.vector_norm(layer.values, ord=1, dim=-1, dtype=torch.float32)
        return self.press.observe(layer), norms

    def scores_at(self, evidence: Sequence[tuple[Any, Tensor]], budget: Budget) -> Sequence[Tensor]:
        """Weighted scores (B, H, T), both ends on top.

        Raises:
            ValueError: a score is negative, so that a larger value would make an entry less important.
        """
        ranked = self.press.scores_at([inner for inner, _ in evidence], budget)
        if any(bool((scores < 0).any()) for scores in ranked):
            raise ValueError(
                f"vatp weighs scores by the values' size, but {self.press.name} gives negative ones; use one "
                "of attention"
            )
        return [
            pin(scores.float() * norms, self.sinks, self.window_size)
            for scores, (_, norms) in zip(ranked, evidence, strict=True)
        ]

    def of_press_inside(self, evidence: tuple[Any, Any]) -> Any:
        """The first part of the evidence."""
        return evidence[0]

    def select(self, evidence: Sequence[tuple[Any, Tensor]], budget: Budget) -> list[Selection]:
        """The top `budget.entries(T)` entries of every head by weighted score."""
        return [select_top(scores, budget) for scores in self.scores_at(evidence, budget)]
