"""H2O: keep the tokens that have received the most attention so far, and the most recent ones.

It goes on while answers are written. score_t = Σ over all queries i ≥ t of attention a_it, the queries of
question and answer included, summed over the query heads of a group; `recent_share` of the budget are the
latest tokens, the rest the highest sums. After each token the lowest sum leaves, so the cache has a constant
size.
Source: Zhang et al. 2023, "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language
Models", arXiv 2306.14048; authors' repository FMInference/H2O at ac75c2a,
h2o_hf/utils_real_drop/modify_llama.py.
Differs: evicts once after the context is read (the shared prefill is whole), then after the question and
after every token. The question counts as one step. Keys keep their positions. See observed_attention for the
same sums, normalised, without eviction while decoding.
Cost: attention of all queries once more per layer; while decoding the attention of each new token once more
and a copy of the kept entries, and one number per kept entry in memory that the measured bytes leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.hooks.decode_hooks import DecodingObservation
from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.scorer import ScorerPress
from presses.support.checks import check_share
from presses.support.eviction import ConstantSizeEviction
from presses.support.scores import pin


@dataclass(frozen=True)
class H2OPress(ScorerPress):
    """Heavy hitters and recent tokens.

    Attributes:
        recent_share: part of the budget that the latest tokens get, in [0, 1].
    """

    recent_share: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a share outside [0, 1]."""
        super().__post_init__()
        check_share(of="the budget", recent_share=self.recent_share)

    @property
    def traits(self) -> Traits:
        """The recent part of the budget is no score's matter; sums go on while answers are written."""
        return replace(super().traits, takes_threshold=False, acts_while_decoding=True)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T) float32: attention that each position received from itself and later ones."""
        return layer.attention_column_sums().unflatten(1, (-1, layer.group)).sum(2)

    def scores_at(self, evidence: Sequence[Tensor], budget: Budget) -> Sequence[Tensor]:
        """The sums (B, H, T), the recent part of the budget on top."""
        return [pin(sums, last=int(budget.entries(sums.shape[-1]) * self.recent_share)) for sums in evidence]

    def entry_metadata(self, evidence: Tensor) -> Tensor:
        """(B, H, T, 1): the sums, to be added to."""
        return evidence[..., None]

    def decode_hook(self, budget: Budget) -> HeavyHitters:
        """Adds the attention of new tokens, and keeps the size."""
        return HeavyHitters(self.recent_share)


class HeavyHitters(ConstantSizeEviction):
    """Sums of attention that grow with every token."""

    def __init__(self, recent_share: float) -> None:
        """Keep `recent_share` of the entries for the latest ones."""
        super().__init__()
        self.recent_share = recent_share

    def begin(self, layer: DecodingObservation) -> Tensor:
        """The sums of the prefill, or zeros where they are not known: (1, H, K - n, 1)."""
        if layer.entry_metadata is not None:
            return layer.entry_metadata
        return layer.keys[:, :, layer.hidden.shape[1] :, :1].float() * 0

    def update(self, layer: DecodingObservation, known: Tensor) -> Tensor:
        """Adds what each entry receives from the new tokens: (1, H, K, 1)."""
        attention = layer.window_attention(layer.hidden.shape[1])  # (1, H * G, n, K)
        received = attention.float().sum(2).unflatten(1, (-1, layer.group)).sum(2)
        return known + received[..., None]

    def scores(self, known: Tensor, counts: Tensor, age: Tensor) -> Tensor:
        """The sums, the latest entries on top."""
        latest = age < (counts * self.recent_share).long()[..., None]
        return torch.where(latest, torch.inf, known[..., 0])
