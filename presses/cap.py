"""Cap: keep values that add most capacity, weighted by what future queries ask for.

μ is the mean query behind the sinks, rotated by the mean rotation R over the next `n_future_positions`
positions; w_t = exp(τ cos(k_t, μ) - max), A = I + Σ_t (w_t + ε) v_t v_tᵀ, score_t = w_t · v_tᵀ A⁻¹ v_t,
averaged over the query heads of a group.
Source: CapKV 2026, arXiv 2604.25975; kvpress 0.5.5 for the cosine and R.
Differs: computed in float32; contexts within the sinks are kept by position instead of refused.
Cost: queries of all tokens once more, two d x d products per value and query head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kvcache.observation import LayerObservation
from presses.expected_attention import mean_rotation, query_statistics
from presses.scorer import ScorerPress
from presses.support.checks import check_least
from presses.support.scores import pin


@dataclass(frozen=True)
class CapPress(ScorerPress):
    """Leverage of the values under query-aligned weights.

    Attributes:
        tau: sharpness of the weights.
        n_future_positions: positions after the context over which the rotation is averaged.
        n_sink: first tokens, always kept and left out of everything.
        epsilon: added to the weights inside A.
    """

    tau: float = 5.0
    n_future_positions: int = 512
    n_sink: int = 4
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse negative sinks and epsilon, and an empty future."""
        super().__post_init__()
        check_least(0, "token", n_sink=self.n_sink)
        check_least(0, epsilon=self.epsilon)
        check_least(1, "position", n_future_positions=self.n_future_positions)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T) float32: weighted leverage, the sinks on top."""
        sinks = min(self.n_sink, layer.tokens - 1)
        keys, values = layer.keys[:, :, sinks:].float(), layer.values[:, :, sinks:].float()
        mean, _ = query_statistics(layer, sinks, covariance=False)
        rotated = mean.float() @ mean_rotation(layer, self.n_future_positions).float().T
        anchor = rotated.unflatten(1, (-1, layer.group))  # (B, H, G, d)
        cosine = functional.normalize(anchor, dim=-1) @ functional.normalize(keys, dim=-1).mT  # (B, H, G, n)
        logits = self.tau * cosine.clamp(-1, 1)
        weights = (logits - logits.amax(-1, keepdim=True)).exp()
        per_head = [self._weighted_leverage(weights[:, :, g], values) for g in range(layer.group)]
        scores = torch.stack(per_head).mean(0)
        return pin(functional.pad(scores, (sinks, 0)), first=sinks)

    def _weighted_leverage(self, weights: Tensor, values: Tensor) -> Tensor:
        """(B, H, n): w v A⁻¹ vᵀ, given weights (B, H, n) and values (B, H, n, d)."""
        capacity = values.mT @ ((weights + self.epsilon)[..., None] * values)
        capacity = capacity + torch.eye(values.shape[-1], device=values.device)
        return weights * (values.mT * torch.linalg.solve(capacity, values.mT)).sum(2)
