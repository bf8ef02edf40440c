"""DMS: remove what scores below a threshold, except for a sliding window of recent tokens.

Source: Łańcucki et al. 2025, arXiv 2506.05345, for the delayed eviction; kvpress 0.5.5, where scores are those of KVzap.
Differs: no trained eviction heads: the scores are those of any press. Without a threshold, the ratio sets it in every layer: heads
compete, as in AdaKV without a safeguard. Applied once, after the prefill. Head-wise budgets are real.
Cost: that of the press inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvcache.selection import Selection, budget
from presses.knorm import KnormPress
from presses.scorer import ScorerPress, pin
from presses.wrapper import ScoreWrapperPress


@dataclass(frozen=True)
class DMSPress(ScoreWrapperPress):
    """A threshold on another press's scores.

    Attributes:
        press: whose scores are compared with the threshold.
        compression_ratio: fraction of a layer's entries removed, where no threshold is given.
        threshold: lowest score that stays; it is the budget, whatever ratio a sweep asks.
        sliding_window_size: last tokens, always kept.
    """

    press: ScorerPress = KnormPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    threshold: float | None = None
    sliding_window_size: int = 128

    def __post_init__(self) -> None:
        """Refuse an empty window."""
        super().__post_init__()
        if self.threshold is not None and not self.compression_ratio:
            object.__setattr__(self, "compression_ratio", 0.5)
        if self.sliding_window_size < 1:
            raise ValueError(f"sliding_window_size={self.sliding_window_size} must be at least 1 token")

    @property
    def own_budget(self) -> bool:
        """Whether a threshold is given."""
        return self.threshold is not None or super().own_budget

    def select(self, evidence: Sequence[Any], ratio: float) -> list[Selection]:
        """What reaches the threshold, and the window; or, without one, the `H * budget(T, ratio)` best entries of each layer."""
        selections = []
        for scores in self.press.scores_at(evidence, ratio):
            tokens = scores.shape[-1]
            window = min(self.sliding_window_size, tokens)
            if self.threshold is None:
                ranked = pin(scores, last=window).flatten(1)[:, None]
                keep = Selection.top(ranked, budget(tokens, ratio) * scores.shape[1]).keep.view_as(scores)
            else:
                keep = (scores >= self.threshold) | (torch.arange(tokens, device=scores.device) >= tokens - window)
            selections.append(Selection(keep))
        return selections

    def entries(self, layers: int, heads: int, tokens: int, ratio: float) -> tuple[int, int]:
        """Exact without a threshold; with one, from the window alone to everything."""
        if self.threshold is None:
            return super().entries(layers, heads, tokens, ratio)
        return layers * heads * min(tokens, self.sliding_window_size), layers * heads * tokens
