"""Ratio decoding: while decoding, keep the share `1 - compression_ratio` of all tokens so far, context, question and answer, by any scorer.

Source: kvpress 0.5.5 (CompressionRatioDecodingPress); each scorer cites its own paper.
Differs: the ratio of the sweep is the ratio while decoding (kvpress: a field of its own). Otherwise as
decoding. Cost: as decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvcache.decode_hooks import Follower
from kvcache.selection import Threshold, budget
from presses.decoding import PrefillLeftWhole, ScoreFollower, check_scorer
from presses.knorm import KnormPress
from presses.scorer import ScorerPress


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
    def claims_ratio(self) -> bool:
        """No: the ratio is of the text while an answer is written."""
        return False

    def while_decoding(self, ratio: float | Threshold) -> Follower | None:
        """Keeps `budget(tokens so far, ratio)` entries at every interval; at ratio 0 there is nothing to do."""
        if isinstance(ratio, Threshold):
            raise ValueError(
                "ratio_decoding takes no threshold: what it keeps is a share of all tokens so far; give it a ratio"
            )
        if ratio == 0:
            return None
        return ScoreFollower(
            self.press, self.compression_interval, lambda tokens: budget(tokens, ratio), self.buffer_size
        )
