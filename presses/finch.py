"""Finch: keep what the question attends to, and give it neighbouring positions.

score_t = mean over the question's tokens i of n_i · softmax(q_i·k_t/√d), n_i the entries that token i sees,
averaged over the query heads of a group; the question itself is kept. Kept keys move to the positions
0 … K - 1.
Source: Corallo and Papotti 2024, TACL a_00716; kvpress 0.5.5.
Differs: the question is told apart by the pipeline (`query_aware=true`) instead of by a delimiter token added
to tokenizer and model. Where nobody says what the question is, the last `window_size` tokens are taken for
it. Batches of several contexts are allowed. Refused where sliding-window layers, left whole, would keep their
old positions.
Cost: one attention of the question per layer, and one rotation per kept key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.hooks.prefill import Prefill
from kvcache.observation import LayerObservation
from kvcache.rotary import Rotary
from kvcache.selection import Selection, gather
from kvcache.traits import Traits
from presses.base import BasePress
from presses.scorer import ScorerPress
from presses.support.checks import check_least
from presses.support.chunks import entries_of_chunks
from presses.support.rerotation import RotatedSelection, rerotated
from presses.support.scores import mean_over_group
from presses.support.windows import window_within, with_window


@dataclass(frozen=True)
class FinchPress(ScorerPress):
    """Attention of the question.

    Attributes:
        window_size: last tokens, taken for the question where it is not known.
        chunk_length: tokens of the chunks that each keep their share; None: the context is one.
        normalize_scores: whether the attention of a token counts as many times as it sees entries.
        rerotate_keys: whether kept keys get neighbouring positions.
    """

    window_size: int = 64
    chunk_length: int | None = None
    normalize_scores: bool = True
    rerotate_keys: bool = True

    def __post_init__(self) -> None:
        """Refuse an empty window and empty chunks."""
        super().__post_init__()
        check_least(1, "token", window_size=self.window_size, chunk_length=self.chunk_length)

    @property
    def traits(self) -> Traits:
        """Kept keys may move; which entries stay is decided chunk by chunk."""
        return replace(
            super().traits,
            gives_scores=False,
            takes_threshold=False,
            only_selects=not self.rerotate_keys,
            moves_positions=self.rerotate_keys,
            window_queries=self.window_size,
        )

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): attention of the question, the question on top."""
        window = window_within(layer.tokens, layer.question or self.window_size)
        before = layer.tokens - window
        votes = layer.window_attention(window)[..., :before].float()  # (B, H * G, w, T - w)
        if self.normalize_scores:
            votes = votes * torch.arange(before, layer.tokens, device=votes.device)[:, None]
        return with_window(mean_over_group(votes.mean(dim=2), layer.group), layer.tokens)

    def observe(self, layer: LayerObservation) -> Any:
        """The scores (B, H, T), and the layer's rotary embedding."""
        return layer.score(self), layer.rotary

    def select(self, evidence: Sequence[tuple[Tensor, Rotary]], budget: Budget) -> list[Selection]:
        """The top entries of every head, or of every chunk in it."""
        tokens = evidence[0][0].shape[-1]
        length = self.chunk_length or tokens
        counts = entries_of_chunks(budget, tokens, length)
        selections: list[Selection] = []
        for scores, rotary in evidence:
            chunks = zip(scores.split(length, dim=-1), counts, strict=True)
            kept = [Selection.top(part, count).keep for part, count in chunks]
            plain = Selection(torch.cat(kept, dim=-1))
            selections.append(RotatedSelection(plain.keep, plain, rotary) if self.rerotate_keys else plain)
        return selections

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Kept keys turned to their new positions, and kept values."""
        keys, values = gather(keys, selection.positions), gather(values, selection.positions)
        return (rerotated(keys, selection) if isinstance(selection, RotatedSelection) else keys), values

    def next_position(self, selections: Sequence[Selection]) -> int:
        """The number of kept entries where keys move, else the context's length."""
        return int(selections[0].counts.max()) if self.rerotate_keys else super().next_position(selections)

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """The budget of every chunk."""
        exact = layers * heads * sum(entries_of_chunks(budget, tokens, self.chunk_length or tokens))
        return exact, exact

    def compress(self, layer: LayerObservation, prefill: Prefill) -> None:
        """Wait for all layers: positions move together or not at all."""
        BasePress.compress(self, layer, prefill)
