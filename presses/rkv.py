"""R-KV: keep what is attended to and is not said again.

score_t = λ I_t − (1 − λ) R_t. I = pooled attention of the last `window_size` queries, the largest of a
group's query heads. R = softmax over t of the mean over j of cos(k_j, k_t), where j ≠ t and the most recent
token that is similar to j (cosine above `threshold`) is not counted, so that the latest of several
repetitions stays. The window is kept.
Source: Cai et al. 2025, "R-KV: Redundancy-aware KV Cache Compression for Reasoning Models", arXiv 2505.24133;
authors' repository Zefan-Cai/R-KV.
Differs: applied once, after the prefill; inside `decoding`, at every interval, as in the paper. The largest
attention of a group is taken (the authors: the largest logit, then the softmax over the tokens before the
window). A key that nothing is similar to spares no token (in the authors' code, the first one). Similarities
are summed in blocks, no T x T matrix.
Cost: one attention of `window_size` queries and all products of keys with keys, per layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from kvcache.observation import LayerObservation, block_size
from kvcache.traits import Traits
from presses.scorer import ScorerPress
from presses.support.checks import check_kernel, check_least, check_share
from presses.support.scores import pin
from presses.support.windows import smoothed, votes_of_window


@dataclass(frozen=True)
class RKVPress(ScorerPress):
    """Importance against redundancy.

    Attributes:
        mix_lambda: weight of importance, in [0, 1].
        window_size: last tokens, whose queries vote and which are always kept.
        kernel_size: width of the max pooling over positions, odd.
        threshold: cosine above which two keys say the same.
    """

    mix_lambda: float = 0.1
    window_size: int = 8
    kernel_size: int = 7
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a weight outside [0, 1], an empty window and an even kernel."""
        super().__post_init__()
        check_share(of="the score", mix_lambda=self.mix_lambda)
        check_least(1, "token", window_size=self.window_size)
        check_kernel(self.kernel_size)

    @property
    def traits(self) -> Traits:
        """Attention of the window."""
        return replace(super().traits, window_queries=self.window_size)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): importance less redundancy, the window on top."""
        votes = votes_of_window(layer, self.window_size).float().mean(2)
        votes = votes.unflatten(1, (-1, layer.group)).amax(2)  # (B, H, T - w)
        votes = smoothed(votes, self.kernel_size, largest=True)
        window = layer.tokens - votes.shape[-1]
        importance = functional.pad(votes, (0, window))
        repeated = redundancy(layer.keys, self.threshold)
        return pin(self.mix_lambda * importance - (1 - self.mix_lambda) * repeated, last=window)


def redundancy(keys: Tensor, threshold: float) -> Tensor:
    """(B, H, T) float32: softmax of the mean cosine of each key with the others.

    The latest of several repetitions is spared: its cosine with an earlier one does not count.

    Args:
        keys: (B, H, T, d).
        threshold: cosine above which one key repeats another.
    """
    unit = functional.normalize(keys.float(), dim=-1)
    tokens = keys.shape[2]
    at = torch.arange(tokens, device=keys.device)
    sums = unit.new_zeros(keys.shape[:3])
    n = block_size(unit.shape[0] * unit.shape[1], tokens)
    for start in range(0, tokens, n):
        rows = at[start : start + n, None]
        cosines = (unit[:, :, start : start + n] @ unit.transpose(2, 3)).masked_fill(rows == at, 0)

        # (B, H, n, 1): position of the latest key that repeats each; -1 where none does
        latest = torch.where(cosines > threshold, at, -1).amax(-1, keepdim=True)
        sums += cosines.masked_fill(latest == at, 0).sum(2)
    return (sums / tokens).softmax(-1)
