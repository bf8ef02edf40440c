"""CAKE: layers whose attention is spread out and moves get more of the cache.

a = attention of the last `window_size` queries i to the earlier tokens t, per query head. preference of a
layer = H^(1/τ₁) · V^(1/τ₂), with H = Σ −a_it log a_it over heads, queries and tokens (spatial dispersion) and
V = Σ Var_i(a_it) over heads and tokens (temporal shift); a layer's budget is its share of the preferences.
score_t = pool( Mean_i(a_it) + γ · Var_i(a_it) ) per KV head; the window is kept. Variances have Bessel's
correction.
Source: Qin et al. 2025, "CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences", arXiv
2503.12491; authors' repository antgroup/cakekv, cake/model/modify_llama.py.
Differs: budgets are set once all layers are read, which gives the sizes that the cascade ends with. τ₁ and τ₂
are tuned per model by the authors; 1 here. The window's attention is averaged over the query heads of a
group.
Cost: one attention of `window_size` queries per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.base import BasePress
from presses.support.budgets import apportion
from presses.support.checks import check_kernel, check_least
from presses.support.scores import mean_over_group
from presses.support.windows import smoothed, votes_of_window, with_window


@dataclass(frozen=True)
class CAKEPress(BasePress):
    """Layer-wise budgets by preference, entries by mean and variance of attention.

    Attributes:
        compression_ratio: fraction of all entries removed, in [0, 1).
        window_size: last tokens, whose queries vote and which are kept in every layer as far as the budget
            allows.
        kernel_size: width of the average pooling over positions, odd.
        gamma: weight of the variance in the score.
        tau1: temperature of the dispersion.
        tau2: temperature of the shift.
    """

    compression_ratio: float = 0.0
    window_size: int = 32
    kernel_size: int = 5
    gamma: float = 200.0
    tau1: float = 1.0
    tau2: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a ratio outside [0, 1), an empty window, an even kernel and temperatures from 0 down."""
        super().__post_init__()
        check_least(1, "token", window_size=self.window_size)
        check_kernel(self.kernel_size)
        if self.tau1 <= 0 or self.tau2 <= 0:
            raise ValueError(f"tau1={self.tau1} and tau2={self.tau2} must be positive: they are temperatures")

    @property
    def traits(self) -> Traits:
        """Attention of the window."""
        return replace(super().traits, window_queries=self.window_size)

    def observe(self, layer: LayerObservation) -> tuple[Tensor, Tensor]:
        """Scores (B, H, T) in float32, and the layer's preference (B,)."""
        attention = votes_of_window(layer, self.window_size).float()  # (B, H * G, w, T - w)
        scores = mean_over_group(attention.mean(2) + self.gamma * variance(attention, 2), layer.group)
        scores = with_window(smoothed(scores, self.kernel_size), layer.tokens)
        return scores, preference(attention, self.tau1, self.tau2)

    def select(self, evidence: Sequence[tuple[Tensor, Tensor]], budget: Budget) -> list[Selection]:
        """The top entries of every head, as many as the layer's share of the preferences gives."""
        preferences = torch.stack([of_layer for _, of_layer in evidence], dim=1).tolist()  # (B, L)
        tokens = evidence[0][0].shape[-1]
        even = budget.entries(tokens)
        total, least = even * len(evidence), min(even, self.window_size)
        shares = [apportion(row, total, least, tokens) for row in preferences]
        counts = torch.tensor(shares, device=evidence[0][0].device)  # (B, L)
        return [
            Selection.top(scores, counts[:, at, None].expand(scores.shape[:2]))
            for at, (scores, _) in enumerate(evidence)
        ]


def preference(attention: Tensor, tau1: float, tau2: float) -> Tensor:
    """(B,): dispersion^(1/tau1) · shift^(1/tau2) of attention (B, heads, w, n)."""
    dispersion = torch.special.entr(attention).sum((1, 2, 3))
    shift = variance(attention, 2).sum((1, 2))
    return dispersion.clamp(min=0) ** (1 / tau1) * shift ** (1 / tau2)


def variance(entries: Tensor, dim: int) -> Tensor:
    """Variance along `dim`, with Bessel's correction; of fewer than two entries 0 (torch's own warns)."""
    return (entries - entries.mean(dim, keepdim=True)).square().sum(dim) / max(1, entries.shape[dim] - 1)
