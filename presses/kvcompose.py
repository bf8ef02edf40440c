"""KVCompose: let the layers compete for the budget by composite tokens.

Each head fills them with its own best entries. The context is read again on top of its cache; an entry's
score is the highest attention it gets, averaged over the query heads of a group, plus the mean of that over
the KV heads. Composite token i of a layer counts the mean over heads of the i-th best score; the best
composite tokens of all layers stay, and each head of a layer keeps as many of its own best entries. No layer
keeps more than the first.
Source: Akulov et al. 2025, arXiv 2509.05165.
Differs: the second reading leaves nothing in the cache and needs no eager attention; batches of several
contexts are allowed; layers with sliding windows are left whole. Every layer keeps at least one entry per
head.
Cost: one more pass over the context on top of its cache, and its attention once more in blocks, once for all
ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.hooks.prefill import Prefill
from kvcache.hooks.replay import replay
from kvcache.observation import LayerObservation, block_size
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.base import BasePress
from presses.support.attention import attention_to_context

FIRST = 1e9
"""Added to the scores of what every layer keeps in any case."""


@dataclass(frozen=True)
class KVComposePress(BasePress):
    """Composite tokens.

    Attributes:
        compression_ratio: fraction of entries removed, in [0, 1).
        structured: whether all heads of a layer keep the same number; otherwise heads compete as layers do.
        agg_task: over the tokens of the second reading, "max" or "mean".
        agg_group: over the query heads of a group.
        agg_head: over the KV heads of a layer, for composite tokens.
        add_v_norm: whether scores are multiplied by the norm of the value.
        add_mean_across_heads: whether the mean over the KV heads is added to each head's score.
        keep_token_lower_bound: entries that every head of every layer keeps, as far as the budget goes.
    """

    compression_ratio: float = 0.0
    structured: bool = True
    agg_task: str = "max"
    agg_group: str = "mean"
    agg_head: str = "mean"
    add_v_norm: bool = False
    add_mean_across_heads: bool = True
    keep_token_lower_bound: int = 0

    def __post_init__(self) -> None:
        """Refuse a ratio outside [0, 1) and unknown aggregations."""
        super().__post_init__()
        for name in ("agg_task", "agg_group", "agg_head"):
            if getattr(self, name) not in ("max", "mean"):
                raise ValueError(f"{name}={getattr(self, name)!r} must be 'max' or 'mean'")
        if self.keep_token_lower_bound < 0:
            raise ValueError(f"keep_token_lower_bound={self.keep_token_lower_bound} must not be negative")

    @property
    def traits(self) -> Traits:
        """The model reads the context again."""
        return Traits(reads_again=True)

    def observe(self, layer: LayerObservation) -> None:
        """Nothing: the context is looked at when it is read again."""

    def probe(self, prefill: Prefill, evidence: Sequence[Any]) -> list[Tensor]:
        """Per layer the scores (B, H, T), from one second reading.

        Raises:
            ValueError: the model was given embeddings, which cannot be read again.
        """
        if prefill.token_ids is None:
            raise ValueError(
                "kvcompose lets the model read the context again, for which it needs token ids; the model "
                "was given embeddings"
            )
        received: dict[int, Tensor] = {}

        def collect(layer: LayerObservation) -> None:
            of_piece = self._received(prefill.entries(layer.index)[0], layer)
            if layer.index in received:
                of_piece = self._join(of_piece, received[layer.index])
            received[layer.index] = of_piece

        replay(prefill, prefill.token_ids, collect)
        return [self._scores(received[index], prefill.entries(index)[1]) for index in prefill.layers]

    def _received(self, keys: Tensor, layer: LayerObservation) -> Tensor:
        """(B, H, G, T): the highest attention that each entry gets from the tokens just read, or the sum.

        Args:
            keys: (B, H, T, d) of the context.
            layer: observed in a replay.
        """
        batch, heads, tokens = keys.shape[:3]
        n = layer.hidden.shape[1]
        received = keys.new_zeros(batch, heads, layer.group, tokens, dtype=torch.float32)
        block = block_size(batch * heads * layer.group, tokens + layer.tokens, most=n)
        for _, weights in attention_to_context(layer, keys, block):
            of_block = weights.amax(3) if self.agg_task == "max" else weights.sum(3)
            received = self._join(received, of_block)
        return received

    def _join(self, received: Tensor, more: Tensor) -> Tensor:
        """What entries have received from several tokens, and from others: the highest, or the sum."""
        return torch.maximum(received, more) if self.agg_task == "max" else received + more

    def _scores(self, received: Tensor, values: Tensor) -> Tensor:
        """(B, H, T): the scores, from what entries have received (B, H, G, T)."""
        if self.agg_task == "mean":
            received = received / received.shape[-1]
        scores = _aggregate(received, self.agg_group, 2)
        if self.add_v_norm:
            scores = scores * values.float().norm(dim=-1)
        return scores + scores.mean(1, keepdim=True) if self.add_mean_across_heads else scores

    def select(self, evidence: Sequence[Tensor], budget: Budget) -> list[Selection]:
        """Each head's best entries, as many as its layer, or itself, has composite tokens among the best."""
        # Composite tokens: the i-th best scores of the heads of a layer, together or each by itself.
        ranked = torch.stack(list(evidence), dim=1).sort(dim=-1, descending=True).values  # (B, L, H, T)
        tokens = ranked.shape[-1]
        if self.structured:
            ranked = _aggregate(ranked, self.agg_head, 2)[:, :, None]  # (B, L, 1, T)

        # Those kept in any case come first; and no layer keeps more than the first one.
        ranked[..., : self.keep_token_lower_bound] += FIRST
        if self.structured:
            ranked[:, 0] = ranked.amax(1)

        # The best of all layers, and how many of them each layer has: (B, L, H or 1).
        kept = budget.parts(ranked[0].numel(), tokens)
        best = Selection.top(ranked.flatten(1)[:, None], kept).keep
        counts = best.view_as(ranked).sum(-1)
        if self.structured:
            counts = counts.clamp(min=self._floor(tokens))
        return [
            Selection.top(scores, counts[:, at].expand(scores.shape[:2]))
            for at, scores in enumerate(evidence)
        ]

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """The budget of all composite tokens, and what layers keep in any case."""
        if not self.structured:
            exact = budget.parts(layers * heads * tokens, tokens)
            return exact, exact
        fewest = heads * budget.parts(layers * tokens, tokens)
        return fewest, min(layers * heads * tokens, fewest + heads * (layers - 1) * self._floor(tokens))

    def _floor(self, tokens: int) -> int:
        """Entries that a head keeps in any case."""
        return min(tokens, max(1, self.keep_token_lower_bound))


def _aggregate(scores: Tensor, how: str, dim: int) -> Tensor:
    return scores.amax(dim) if how == "max" else scores.mean(dim)
