"""ZigZagKV: layers that need more entries to hold their attention get more of the cache.

need of a layer = smallest number of entries that together hold `coverage` of the attention of the last
`window_size` queries, averaged over the query heads; a layer's budget is `floor` of the even one and its
share of the needs of what remains.
Source: Zhong et al. 2024, "ZigZagKV: Dynamic KV Cache Compression for Long-context Modeling based on Layer
Uncertainty", arXiv 2412.09036.
Differs: a wrapper around any scorer. The floor is a share of the even budget; its 0.5 is ours, no official
code says the authors'. Heads of a layer share its budget evenly.
Cost: one attention of `window_size` queries and one sort of it per layer, and that of the press inside.
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
from presses.scorer import ScorerPress
from presses.snapkv import SnapKVPress
from presses.support.budgets import apportion
from presses.support.checks import check_least, check_share
from presses.wrapper import ScoreWrapperPress


@dataclass(frozen=True)
class ZigZagKVPress(ScoreWrapperPress):
    """Layer-wise budgets by uncertainty, on the scores of another press.

    Attributes:
        press: whose scores are ranked.
        compression_ratio: fraction of all entries removed, in [0, 1).
        coverage: share of the attention to be held, in (0, 1].
        window_size: last tokens whose attention is looked at.
        floor: share of the even budget that every layer keeps in any case, in [0, 1].
    """

    press: ScorerPress = SnapKVPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    coverage: float = 0.9
    window_size: int = 64
    floor: float = 0.5

    def __post_init__(self) -> None:
        """Refuse shares outside their ranges and an empty window."""
        super().__post_init__()
        if not 0 < self.coverage <= 1:
            raise ValueError(f"coverage={self.coverage} must lie in (0, 1]: it is a share of the attention")
        check_share(of="the even budget", floor=self.floor)
        check_least(1, "token", window_size=self.window_size)

    @property
    def traits(self) -> Traits:
        """Attention of the window, and what the press inside looks at."""
        return replace(super().traits, window_queries=self.window_size + super().traits.window_queries)

    def observe(self, layer: LayerObservation) -> tuple[Any, Tensor]:
        """What the press inside observes, and the layer's need (B,) in entries."""
        attention = layer.window_attention(self.window_size).float().mean(2)  # (B, H * G, T)
        return self.press.observe(layer), need(attention, self.coverage)

    def of_press_inside(self, evidence: tuple[Any, Any]) -> Any:
        """The first part of the evidence."""
        return evidence[0]

    def select(self, evidence: Sequence[tuple[Any, Tensor]], budget: Budget) -> list[Selection]:
        """The top entries of every head, as many as the layer's need gives."""
        ranked = self.press.scores_at([inner for inner, _ in evidence], budget)
        tokens = ranked[0].shape[-1]
        even = budget.entries(tokens)
        needs = torch.stack([of_layer for _, of_layer in evidence], dim=1).tolist()  # (B, L)
        total, least = even * len(ranked), max(1, int(even * self.floor))
        shares = [apportion(row, total, least, tokens) for row in needs]
        counts = torch.tensor(shares, device=ranked[0].device)
        return [
            Selection.top(scores, counts[:, at, None].expand(scores.shape[:2]))
            for at, scores in enumerate(ranked)
        ]


def need(attention: Tensor, coverage: float) -> Tensor:
    """(B,): entries that hold `coverage` of attention (B, heads, T), which sums to 1, averaged over heads."""
    held = attention.sort(dim=-1, descending=True).values.cumsum(-1)
    return ((held < coverage - 1e-6).sum(-1) + 1).clamp(max=attention.shape[-1]).float().mean(-1)
