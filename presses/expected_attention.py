"""Expected attention: keep what future queries will attend to, taken as normally distributed.

Queries of the context have mean μ and covariance Σ before rotary embedding; R is the mean rotation over the
next `n_future_positions` positions. score_t = softmax_t( (Rμ)·k_t/√d + k_tᵀ RΣRᵀ k_t / 2d ), averaged over
the query heads of a group, times (‖v_t‖₂ with + ε inside).
Source: Devoto et al. 2025, arXiv 2510.00636; kvpress 0.5.5 for ε and the sinks.
Differs: nothing.
Cost: queries of all tokens once more and one d x d product per key, per layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.observation import LayerObservation
from presses.scorer import ScorerPress
from presses.support.checks import check_least
from presses.support.scores import mean_over_group, pin


@dataclass(frozen=True)
class ExpectedAttentionPress(ScorerPress):
    """Expected attention of future queries.

    Attributes:
        n_future_positions: positions after the context over which the rotation is averaged.
        n_sink: first tokens, always kept and left out of the statistics.
        use_covariance: whether the spread of the queries counts, beside their mean.
        use_vnorm: whether scores are multiplied by the norm of the value.
        epsilon: added to the attention before that, so that values alone can save an entry.
    """

    n_future_positions: int = 512
    n_sink: int = 4
    use_covariance: bool = True
    use_vnorm: bool = True
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        """Refuse negative sinks and epsilon, and an empty future."""
        super().__post_init__()
        check_least(0, "token", n_sink=self.n_sink)
        check_least(0, epsilon=self.epsilon)
        check_least(1, "position", n_future_positions=self.n_future_positions)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): expected attention, the sinks on top."""
        sinks = min(self.n_sink, layer.tokens - 1)
        attention = self.attention(layer, sinks)
        if self.use_vnorm:
            attention = (attention + self.epsilon) * layer.values[:, :, sinks:].norm(dim=-1)
        return pin(torch.nn.functional.pad(attention, (sinks, 0)), first=sinks)

    def attention(self, layer: LayerObservation, sinks: int) -> Tensor:
        """(B, H, T - sinks): expected attention of queries like the context's own."""

        def compute() -> Tensor:
            mean, covariance = query_statistics(layer, sinks, self.use_covariance)
            return attention_of_normal_queries(layer, mean, covariance, self.n_future_positions, sinks)

        name = ("expected attention", self.n_future_positions, sinks, self.use_covariance)
        return layer.once(name, compute)


def query_statistics(
    layer: LayerObservation, sinks: int, covariance: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Mean (B, H * G, d) and covariance (B, H * G, d, d), or None, of the queries before rotary embedding.

    Those of the first `sinks` tokens are left out.
    """
    queries = layer.queries_before_rope()[:, :, sinks:]
    mean = queries.mean(dim=2)
    if not covariance:
        return mean, None
    centred = queries - mean[:, :, None]
    return mean, centred.transpose(2, 3) @ centred / queries.shape[2]


def mean_rotation(layer: LayerObservation, n_future_positions: int) -> Tensor:
    """(d, d): rotary embedding as a matrix R, by which R @ q rotates a query q.

    It is the mean over the positions T … T + n_future_positions - 1.
    """
    size, rotary = layer.keys.shape[-1], layer.rotary
    future = torch.arange(layer.tokens, layer.tokens + n_future_positions, device=layer.keys.device)

    # (1, 1, r) each, r < d where only part of a head is rotated
    cos, sin = (factors.mean(1, keepdim=True) for factors in rotary.at(future))

    # Channel i, turned, is column i of R.
    every_channel = torch.eye(size, dtype=cos.dtype, device=cos.device)[None, None]
    return rotary.turn(every_channel, cos, sin)[0, 0].T.to(layer.keys.dtype)


def attention_of_normal_queries(
    layer: LayerObservation, mean: Tensor, covariance: Tensor | None, n_future_positions: int, sinks: int
) -> Tensor:
    """(B, H, T - sinks): expected attention to the positions behind the sinks, averaged over a group's heads.

    Args:
        layer: with the keys.
        mean: (B or 1, H * G, d) of the queries before rotary embedding.
        covariance: (B or 1, H * G, d, d), likewise; None: they do not spread.
        n_future_positions: positions after the context over which the rotation is averaged.
        sinks: first tokens, left out.
    """
    rotation = mean_rotation(layer, n_future_positions)
    size, group = layer.keys.shape[-1], layer.group
    keys = layer.keys[:, :, sinks:]  # (B, H, n, d)
    rotated = (mean @ rotation.T).unflatten(1, (-1, group))  # (B, H, G, d)
    logits = rotated @ keys.transpose(2, 3) / size**0.5  # (B, H, G, n)
    if covariance is not None:
        spread = (rotation @ covariance @ rotation.T).unflatten(1, (-1, group))  # (B, H, G, d, d)
        logits = logits + ((keys[:, :, None] @ spread) * keys[:, :, None]).sum(-1) / (2 * size)
    return mean_over_group(logits.softmax(-1).flatten(1, 2), group)
