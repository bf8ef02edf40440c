"""MorphKV: a cache of constant size that follows what the latest tokens attend to, step by step.

score_t = Σ (or max) over the last `window_size` queries of attention a_it, averaged over the query heads of a
group; the window itself is kept. After each token the entry of lowest score leaves, and the window moves on,
so old tokens compete anew at every step.
Source: Ghadia et al. 2025, "Dialogue Without Limits: Constant-Sized KV Caches for Extended Responses in
LLMs", arXiv 2503.00979; authors' repository ghadiaravi13/MorphKV at 8903d2a, morphkv/models/patch_llama.py.
Differs: the attention weights of the paper; the authors' code takes, for grouped queries, the softmax over
the old tokens of the summed logits of a group. While decoding the window begins with the question: the last
queries of the context vote in the prefill only. The question counts as one step.
Cost: one attention of `window_size` queries per layer; while decoding the attention of each new token once
more and a copy of the kept entries, and `window_size` numbers per kept entry in memory that the measured
bytes leave out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.hooks.decode_hooks import DecodingObservation
from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.scorer import ScorerPress
from presses.support.checks import check_least
from presses.support.eviction import ConstantSizeEviction
from presses.support.scores import mean_over_group
from presses.support.windows import votes_of_window, with_window


@dataclass(frozen=True)
class MorphKVPress(ScorerPress):
    """What the latest tokens attend to.

    Attributes:
        window_size: last tokens, whose queries vote and which are always kept.
        fusion: how the votes of the window are joined, "sum" or "max".
    """

    window_size: int = 32
    fusion: str = "sum"

    def __post_init__(self) -> None:
        """Refuse an empty window and an unknown fusion."""
        super().__post_init__()
        check_least(1, "token", window_size=self.window_size)
        if self.fusion not in ("sum", "max"):
            raise ValueError(f"fusion={self.fusion!r} must be 'sum' or 'max'")

    @property
    def traits(self) -> Traits:
        """Attention of the window, which moves on while answers are written."""
        return replace(super().traits, acts_while_decoding=True, window_queries=self.window_size)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): fused attention of the window, the window on top."""
        per_head = votes_of_window(layer, self.window_size).float()
        votes = mean_over_group(per_head, layer.group)  # (B, H, w, T - w)
        return with_window(fuse(votes, self.fusion), layer.tokens)

    def decode_hook(self, budget: Budget) -> MovingWindow:
        """Keeps the size while the window moves."""
        return MovingWindow(self.window_size, self.fusion)


class MovingWindow(ConstantSizeEviction):
    """The attention of the last tokens, row by row."""

    def __init__(self, window_size: int, fusion: str) -> None:
        """Let the last `window_size` tokens vote."""
        super().__init__()
        self.window_size, self.fusion = window_size, fusion

    def begin(self, layer: DecodingObservation) -> Tensor:
        """No votes: (1, H, K - n, 0)."""
        return layer.keys[:, :, layer.hidden.shape[1] :, :0].float()

    def update(self, layer: DecodingObservation, known: Tensor) -> Tensor:
        """(1, H, K, w): what each of the last w ≤ `window_size` tokens pays to each entry.

        It pays nothing to entries later than itself.
        """
        new = mean_over_group(layer.window_attention(self.window_size).float(), layer.group)  # (1, H, m, K)
        return torch.cat((known, new.mT), dim=-1)[..., -self.window_size :]

    def scores(self, known: Tensor, counts: Tensor, age: Tensor) -> Tensor:
        """The fused votes, the window on top, later entries first."""
        return torch.where(age < self.window_size, 1e6 - age, fuse(known.mT, self.fusion))


def fuse(votes: Tensor, fusion: str) -> Tensor:
    """(B, H, w, n) to (B, H, n): sum or maximum over the window."""
    return votes.sum(2) if fusion == "sum" else votes.amax(2)
