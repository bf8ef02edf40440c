"""Decoding: keep a fixed number of entries of every head while answers are written, by any scorer.

Whenever `compression_interval` passes are over, the `target_size` best entries stay.
Source: kvpress 0.5.5 (DecodingPress); each scorer cites its own paper.
Differs: every buffered query keeps its own rotation (kvpress gives all of them that of the current step).
Kept entries stay in order of position. Several questions of a context are answered as if each were alone.
Scorers that need hidden states of the whole context are refused while decoding.
Cost: the scorer once per interval, layer and row; the hidden states of the last `buffer_size` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.hooks.decode_hooks import DecodeHook
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.knorm import KnormPress
from presses.scorer import ScorerPress
from presses.support.checks import check_least
from presses.support.eviction import ScoreEviction, check_scorer
from presses.wrapper import WrapperPress


class PrefillLeftWhole(WrapperPress):
    """A press that keeps the whole context, whatever the budget, and acts while answers are written."""

    @property
    def traits(self) -> Traits:
        """Nothing is evicted before the first pass of an answer."""
        return Traits(evicts_in_prefill=False, acts_while_decoding=True)

    def acts_while_decoding(self, budget: Budget) -> bool:
        """Unless everything is to be kept."""
        return not budget.keeps_everything

    def observe(self, layer: LayerObservation) -> Tensor:
        """Nothing is scored in the prefill: an empty tensor of shape (B, H, T, 0)."""
        return layer.keys[..., :0]

    def select(self, evidence: Sequence[Any], budget: Budget) -> list[Selection]:
        """Everything, whatever the budget."""
        return [
            Selection(torch.ones(of_layer.shape[:3], dtype=torch.bool, device=of_layer.device))
            for of_layer in evidence
        ]

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """All entries of the context, whatever the budget."""
        return layers * heads * tokens, layers * heads * tokens


@dataclass(frozen=True)
class DecodingPress(PrefillLeftWhole):
    """A fixed number of entries while answers are written; the context is read whole.

    Attributes:
        press: that scores the entries; of head-wise budgets, adakv, which keeps `target_size` entries per
            head on average.
        compression_ratio: of the prefill: 0; see the press `prefill_decoding`.
        compression_interval: forward passes between two compressions; the question is one.
        target_size: entries kept per head.
        buffer_size: last tokens whose hidden states are held for scorers that look at queries.
    """

    press: ScorerPress = KnormPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    compression_interval: int = 512
    target_size: int = 2048
    buffer_size: int = 256

    def __post_init__(self) -> None:
        """Refuse a ratio, an empty target, and scorers that need more than a cache."""
        super().__post_init__()
        if self.compression_ratio:
            raise ValueError(
                f"compression_ratio={self.compression_ratio}: decoding leaves the prefill whole; set "
                "target_size"
            )
        check_least(1, "entry", target_size=self.target_size)
        check_scorer(self.press, self.compression_interval, self.buffer_size)

    @property
    def traits(self) -> Traits:
        """The budget is `target_size`."""
        return replace(super().traits, has_fixed_budget=True)

    def acts_while_decoding(self, budget: Budget) -> bool:
        """Always: the budget is `target_size`."""
        return True

    def decode_hook(self, budget: Budget) -> DecodeHook:
        """Keeps `target_size` entries at every interval."""
        return ScoreEviction(
            self.press, self.compression_interval, lambda tokens: self.target_size, self.buffer_size
        )
