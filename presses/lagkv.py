"""LagKV: keep what stands out from the tokens that follow.

The context behind the sinks is cut into partitions of `lag_size`. Every channel of a partition's keys is
scaled by the smallest and largest value in the next partition, z = (k - min)/(max - min); score_t = softmax
over the partition of the deviation of z_t over channels, averaged over keys and values. What counts is the
rank inside the partition; sinks and what follows the last scored partition are kept.
Source: Liang et al. 2025, arXiv 2504.04704.
Differs: a channel that is constant in the next partition, whose scale is 0/0 there, counts 0 (kvpress gives
NaN). Equal ranks of different partitions are kept from the start of the context on.
Cost: a few passes over keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.scorer import ScorerPress
from presses.support.checks import check_least
from presses.support.scores import pin


@dataclass(frozen=True)
class LagKVPress(ScorerPress):
    """Deviation relative to the partition that follows.

    Attributes:
        n_sink: first tokens, always kept.
        lag_size: tokens of a partition; a context shorter than the sinks and two partitions is ranked by
            recency.
        cross_scoring: whether partitions compete by their scores instead of by the ranks inside them.
    """

    n_sink: int = 4
    lag_size: int = 128
    cross_scoring: bool = False

    def __post_init__(self) -> None:
        """Refuse negative sinks and empty partitions."""
        super().__post_init__()
        check_least(0, "token", n_sink=self.n_sink)
        check_least(1, "token", lag_size=self.lag_size)

    @property
    def traits(self) -> Traits:
        """Keys and values are all that is looked at."""
        return replace(super().traits, reads_hidden_states=False)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): ranks in [0, 1) or softmax scores, sinks and end on top."""
        tokens, sinks = layer.tokens, min(self.n_sink, layer.tokens)
        scored = ((tokens - sinks) // self.lag_size - 1) * self.lag_size
        if scored <= 0:
            recency = torch.arange(tokens, dtype=torch.float32, device=layer.keys.device) / tokens
            return pin(recency.expand(layer.keys.shape[:3]), first=sinks)
        of_keys = self._deviation(layer.keys, sinks, scored)
        of_values = self._deviation(layer.values, sinks, scored)
        scores = (of_keys + of_values) / 2
        if not self.cross_scoring:
            scores = scores.argsort(dim=-1, stable=True).argsort(dim=-1) / self.lag_size
        last = tokens - sinks - scored
        return pin(torch.nn.functional.pad(scores.flatten(2), (sinks, last)), first=sinks, last=last)

    def _deviation(self, states: Tensor, sinks: int, scored: int) -> Tensor:
        """(B, H, partitions, lag_size): softmax over each partition of the deviation over channels.

        Args:
            states: (B, H, T, d) keys or values.
            sinks: first tokens, left out.
            scored: tokens behind them that are scored.
        """
        stop = sinks + scored + self.lag_size
        partitions = states[:, :, sinks:stop].float().unflatten(2, (-1, self.lag_size))

        # Channels scaled by their range in the next partition: (B, H, partitions, 1, d).
        following = partitions[:, :, 1:]
        low, high = following.amin(3, keepdim=True), following.amax(3, keepdim=True)
        constant = high - low <= torch.finfo(torch.float32).eps * torch.maximum(high.abs(), low.abs())
        size = (high - low).masked_fill(constant, 1)
        scaled = ((partitions[:, :, :-1] - low) / size).masked_fill(constant, 0)
        return scaled.std(dim=-1).softmax(dim=-1)
