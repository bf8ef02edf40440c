"""Ratio decoding: keep a share of all tokens so far while answers are written, by any scorer.

The share is `1 - compression_ratio` of context, question and answer together.
Source: kvpress 0.5.5 (CompressionRatioDecodingPress); each scorer cites its own paper.
Differs: the ratio of the sweep is the ratio while decoding (kvpress: a field of its own). Otherwise as
decoding.
Cost: as decoding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvcache.budget import Budget
from kvcache.hooks.decode_hooks import DecodeHook
from kvcache.traits import Traits
from presses.decoding import PrefillLeftWhole
from presses.knorm import KnormPress
from presses.scorer import ScorerPress
from presses.support.eviction import ScoreEviction, check_scorer


@dataclass(frozen=True)
class RatioDecodingPress(PrefillLeftWhole):
    """A share of all tokens while answers are written; the context is read whole.

    Attributes:
        press: that scores the entries.
        compression_ratio: fraction of all tokens so far that is gone after a compression, in [0, 1).
        compression_interval: forward passes between two compressions; the question is one.
        buffer_size: last tokens whose hidden states are held for scorers that look at queries.
    """

    press: ScorerPress = KnormPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    compression_interval: int = 512
    buffer_size: int = 256

    def __post_init__(self) -> None:
        """Refuse scorers that need more than a cache."""
        super().__post_init__()
        check_scorer(self.press, self.compression_interval, self.buffer_size)

    @property
    def traits(self) -> Traits:
        """The ratio is of the text while an answer is written."""
        return replace(super().traits, ratio_is_bytes=False)

    def decode_hook(self, budget: Budget) -> DecodeHook:
        """Keeps `budget.entries(tokens so far)` entries at every interval."""
        return ScoreEviction(self.press, self.compression_interval, budget.entries, self.buffer_size)
