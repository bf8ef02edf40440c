"""SimLayerKV: layers whose last tokens look only at the start and the end of the context keep only these.

laziness of a layer = attention of the last `n_last` tokens to the first `n_initial` and the last `n_recent`
positions, averaged over heads; a lazy layer keeps `n_initial` first and `n_recent - n_last` last tokens, any
other all.
Source: Zhang et al. 2024, arXiv 2410.13846; kvpress 0.5.5. Their thresholds: Llama-3 0.9, Llama-2 0.65,
Mistral 0.8, Qwen 0.85.
Differs: works with every attention, and each context of a batch decides for itself. Without a threshold, as
many of the laziest layers are lazy as the ratio of entries needs, the last of them with more recent tokens,
so that the budget is met exactly; where lazy layers alone are too many entries (short contexts), all layers
keep fewer.
Cost: one attention of `n_last` queries per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.base import BasePress
from presses.support.budgets import ends, shorten
from presses.support.checks import check_least


@dataclass(frozen=True)
class SimLayerKVPress(BasePress):
    """All or little of a layer.

    Attributes:
        compression_ratio: fraction of entries removed, in [0, 1), where no threshold is given.
        lazy_threshold: laziness above which a layer is lazy; it is the budget, whatever ratio a sweep asks.
        n_last: last tokens whose attention is looked at.
        n_recent: last tokens that count as recent.
        n_initial: first tokens that count as sinks.
    """

    compression_ratio: float = 0.0
    lazy_threshold: float | None = None
    n_last: int = 1
    n_recent: int = 1024
    n_initial: int = 4

    def __post_init__(self) -> None:
        """Refuse a ratio outside [0, 1) and empty windows."""
        super().__post_init__()
        check_least(1, "token", n_last=self.n_last)
        check_least(0, "token", n_initial=self.n_initial)
        check_least(self.n_last + 1, "token", n_recent=self.n_recent)

    @property
    def traits(self) -> Traits:
        """A given threshold of laziness is the budget."""
        return Traits(has_fixed_budget=self.lazy_threshold is not None, window_queries=self.n_last)

    def observe(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): the layer's laziness, the same for all its entries."""
        n_last = min(self.n_last, layer.tokens)
        to_earlier = layer.window_attention(n_last)[..., : layer.tokens - n_last]
        attention = to_earlier.float().mean((1, 2))  # (B, T - n_last)
        lazy = attention[:, : self.n_initial].sum(-1) + attention[:, -self.n_recent :].sum(-1)
        return lazy[:, None, None].expand(layer.keys.shape[:3])

    def select(self, evidence: Sequence[Tensor], budget: Budget) -> list[Selection]:
        """Both ends in lazy layers, everything in the others."""
        laziness = torch.stack([of_layer[:, 0, 0] for of_layer in evidence], dim=1)  # (B, L)
        tokens = evidence[0].shape[-1]
        little = min(tokens, self.n_initial + self._kept_at_the_end(tokens))
        if self.lazy_threshold is None:
            counts = shorten(-laziness, tokens, little, len(evidence) * budget.entries(tokens))
        else:
            counts = torch.where(laziness > self.lazy_threshold, little, tokens)
        return [
            Selection(ends(counts[:, at, None], self.n_initial, tokens).expand(of_layer.shape))
            for at, of_layer in enumerate(evidence)
        ]

    def _kept_at_the_end(self, tokens: int) -> int:
        """Tokens that a lazy layer keeps at the end; all, where there is nothing between its windows."""
        between = tokens - (self.n_initial + self.n_recent + self.n_last)
        return self.n_recent - self.n_last if between > 0 else tokens

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """Exact without a threshold; with one, from all layers lazy to none."""
        if self.lazy_threshold is None:
            return super().entry_bounds(layers, heads, tokens, budget)
        fewest = min(tokens, self.n_initial + self._kept_at_the_end(tokens))
        return layers * heads * fewest, layers * heads * tokens
