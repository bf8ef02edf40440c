"""CAKE: layers whose attention is spread out and moves get more of the cache.

a = attention of the last `window_size` queries i to the earlier tokens t, per query head. preference of a
layer = H^(1/τ₁) · V^(1/τ₂), H = Σ −a_it log a_it over heads, queries and tokens (spatial dispersion), V = Σ
Var_i(a_it) over heads and tokens (temporal shift); a layer's budget is its share of the preferences. score_t
= pool( Mean_i(a_it) + γ · Var_i(a_it) ) per KV head; the window is kept. Variances have Bessel's correction.
Source: Qin et al. 2025, "CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences", arXiv
2503.12491; authors' repository antgroup/cakekv, cake/model/modify_llama.py.
Differs: budgets are set once all layers are read, which gives the sizes that the cascade ends with. τ₁ and τ₂
are tuned per model by the authors; 1 here. The window's attention is averaged over the query heads of a
group. Cost: one attention of `window_size` queries per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kvcache.observation import LayerObservation
from kvcache.selection import Selection, apportion, budget, check_ratio
from presses.base import BasePress
from presses.scorer import mean_over_group, pin


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
        """Refuse a ratio outside [0, 1), an empty window, an even kernel and temperatures that are not positive."""
        object.__setattr__(self, "compression_ratio", check_ratio(self.compression_ratio))
        if self.window_size < 1 or self.kernel_size < 1 or self.kernel_size % 2 == 0:
            given = f"window_size={self.window_size}, kernel_size={self.kernel_size}"
            raise ValueError(
                f"{given}: the window must have at least 1 token, and the kernel must be odd and positive"
            )
        if self.tau1 <= 0 or self.tau2 <= 0:
            raise ValueError(f"tau1={self.tau1} and tau2={self.tau2} must be positive: they are temperatures")

    def observe(self, layer: LayerObservation) -> tuple[Tensor, Tensor]:
        """Scores (B, H, T) in float32, and the layer's preference (B,)."""
        window = self.window_size if layer.tokens > self.window_size else max(1, layer.tokens // 2)
        attention = layer.window_attention(window)[
            ..., : layer.tokens - window
        ].float()  # (B, H * G, w, T - w)
        scores = mean_over_group(attention.mean(2) + self.gamma * variance(attention, 2), layer.group)
        if scores.shape[-1]:
            scores = functional.avg_pool1d(scores, self.kernel_size, stride=1, padding=self.kernel_size // 2)
        scores = pin(functional.pad(scores, (0, window)), last=window)
        return scores, preference(attention, self.tau1, self.tau2)

    def select(self, evidence: Sequence[tuple[Tensor, Tensor]], ratio: float) -> list[Selection]:
        """The top entries of every head, as many as the layer's share of the preferences gives."""
        preferences = torch.stack([seen for _, seen in evidence], dim=1).tolist()  # (B, L)
        tokens = evidence[0][0].shape[-1]
        even = budget(tokens, ratio)
        shares = [
            apportion(row, even * len(evidence), min(even, self.window_size), tokens) for row in preferences
        ]
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
