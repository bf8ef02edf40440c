"""PyramidKV: lower layers keep more, upper layers less.

Budgets fall linearly with the layer, from 2c - c/β at the bottom to c/β at the top, c the even budget in
tokens.
Source: Cai et al. 2024, arXiv 2406.02069; kvpress 0.5.5 for the limits.
Differs: nothing. Where the line would leave [window_size, T - window_size], all layers keep c: with a window
of 64 tokens and contexts of 4k that is so for ratios above about 0.67, where PyramidKV is its inner press.
Cost: that of the press inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvcache.budget import Budget
from kvcache.selection import Selection
from presses.scorer import ScorerPress
from presses.snapkv import SnapKVPress
from presses.support.checks import check_least
from presses.wrapper import ScoreWrapperPress


@dataclass(frozen=True)
class PyramidKVPress(ScoreWrapperPress):
    """Layer-wise budgets on the scores of another press.

    Attributes:
        press: whose scores are ranked, SnapKV in the paper.
        compression_ratio: fraction of all entries removed, in [0, 1).
        beta: steepness: the top layer's share of the even budget is 1/beta.
        window_size: tokens below which no layer's budget may fall.
    """

    press: ScorerPress = SnapKVPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    beta: float = 20
    window_size: int = 64

    def __post_init__(self) -> None:
        """Refuse a beta below 1 and a negative window."""
        super().__post_init__()
        check_least(0, "token", window_size=self.window_size)
        if self.beta < 1:
            raise ValueError(
                f"beta={self.beta} must be at least 1: the top layer keeps 1/beta of the even budget"
            )

    def layer_budgets(self, layers: int, tokens: int, budget: Budget) -> list[int]:
        """Entries per head of each layer, from the bottom."""
        even = tokens * budget.kept_share(tokens)
        low = even / self.beta
        high = 2 * even - low
        if high >= tokens - self.window_size:
            high = tokens - self.window_size
            low = 2 * even - high
        if layers < 2 or not tokens >= high >= low >= self.window_size:
            return [max(1, round(even))] * layers
        return [round(high - layer * (high - low) / (layers - 1)) for layer in range(layers)]

    def select(self, evidence: Sequence[Any], budget: Budget) -> list[Selection]:
        """The top entries of every head, as many as the layer's place in the pyramid allows."""
        ranked = self.press.scores_at(evidence, budget)
        counts = self.layer_budgets(len(ranked), ranked[0].shape[-1], budget)
        return [Selection.top(scores, count) for scores, count in zip(ranked, counts, strict=True)]

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """The sum over the pyramid.

        By roundings it differs from the even budget, by less than one token per layer.
        """
        exact = heads * sum(self.layer_budgets(layers, tokens, budget))
        return exact, exact
