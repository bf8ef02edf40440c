"""DMS: remove what scores below a threshold, except for a sliding window of recent tokens.

Source: Łańcucki et al. 2025, arXiv 2506.05345, for the delayed eviction; kvpress 0.5.5, where scores are
those of KVzap.
Differs: no trained eviction heads: the scores are those of any press. Without a threshold, the ratio sets it
in every layer: heads compete, as in AdaKV without a safeguard. Head-wise budgets are real: what is evicted
leaves memory, in the prefill and while decoding. With `decoding`, several questions of a context are answered
as if each were alone. Written tokens are scored pass by pass, on their own, so the press inside should score
entries one by one (knorm, qfilter, kvzap).
Cost: that of the press inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.hooks.decode_hooks import DecodeHook, DecodingObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.knorm import KnormPress
from presses.scorer import ScorerPress
from presses.support.checks import check_least
from presses.support.scores import pin
from presses.wrapper import ScoreWrapperPress


class DelayedEviction(DecodeHook):
    """Every token that leaves the window goes unless its score reaches the threshold."""

    def __init__(self, press: ScorerPress, budget: Budget, threshold: float | None, window: int) -> None:
        """A hook that has seen no pass yet.

        Args:
            press: that scores new tokens.
            budget: at which it scores them.
            threshold: lowest score that stays; None: the lowest that the prefill let stay outside the window.
            window: last tokens, which stay in any case.
        """
        self.press, self.budget, self.threshold, self.window = press, budget, threshold, window
        self.scores: Tensor | None = None  # (1, H, K)

    def state_bytes(self, entries: int, tokens: int, token_bytes: int) -> int:
        """Scores of all entries, in float32."""
        return 4 * entries

    def begin(self, layer: DecodingObservation, age: Tensor) -> Tensor:
        """(1, H, K - n): scores of the context's entries; where they are not known, all of them stay."""
        n = layer.hidden.shape[1]
        if layer.entry_metadata is None:
            return torch.full_like(layer.keys[:, :, n:, 0], float("inf"), dtype=torch.float32)
        scores = layer.entry_metadata[..., 0].float()
        if self.threshold is None:
            outside = scores[(age[..., :-n] >= 0) & (age[..., :-n] >= self.window + n)]
            self.threshold = float(outside.min()) if outside.numel() else float("inf")
        return scores

    def after_pass(self, layer: DecodingObservation) -> Selection | None:
        """All but the tokens that have left the window with a low score."""
        assert layer.valid is not None
        age = (layer.valid.flip(-1).cumsum(-1).flip(-1) - 1).masked_fill(~layer.valid, -1)  # 0: the newest
        known = self.begin(layer, age) if self.scores is None else self.scores
        if self.threshold is None:
            raise ValueError(
                "dms goes on while decoding with a threshold; give it one, or use it alone with a ratio"
            )
        new = self.press.scores_at([self.press.observe(layer.new_tokens())], self.budget)[0]
        self.scores = scores = torch.cat((known, new.float()), dim=-1)
        keep = layer.valid & ((scores >= self.threshold) | (age < self.window))
        if bool((keep == layer.valid).all()):
            return None
        selection = Selection(keep)
        self.scores = scores.gather(-1, selection.positions)
        return selection


@dataclass(frozen=True)
class DMSPress(ScoreWrapperPress):
    """A threshold on another press's scores.

    Attributes:
        press: whose scores are compared with the threshold.
        compression_ratio: fraction of a layer's entries removed, where no threshold is given.
        threshold: lowest score that stays; it is the budget, whatever ratio a sweep asks.
        sliding_window_size: last tokens, always kept.
        decoding: whether to go on while answers are written: every token, when it leaves the window, stays or
            goes.
    """

    press: ScorerPress = KnormPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    threshold: float | None = None
    sliding_window_size: int = 128
    decoding: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty window."""
        super().__post_init__()
        check_least(1, "token", sliding_window_size=self.sliding_window_size)

    @property
    def traits(self) -> Traits:
        """A threshold of its own is the budget.

        Else one may be asked for, where the scores do not depend on a ratio.
        """
        return replace(
            super().traits,
            has_fixed_budget=self.threshold is not None or super().traits.has_fixed_budget,
            takes_threshold=self.threshold is None and self.press.traits.takes_threshold,
            acts_while_decoding=self.decoding,
        )

    def _above(self, scores: Tensor, threshold: float) -> Selection:
        tokens = scores.shape[-1]
        recent = torch.arange(tokens, device=scores.device) >= tokens - self.sliding_window_size
        return Selection((scores >= threshold) | recent)

    def select(self, evidence: Sequence[Any], budget: Budget) -> list[Selection]:
        """What reaches the threshold, and the window.

        Without a threshold, the `H * budget.entries(T)` best entries of each layer.
        """
        threshold = self._threshold(budget)
        ranked = self.press.scores_at(evidence, budget)
        if threshold is not None:
            return [self._above(scores, threshold) for scores in ranked]
        return [self._best(scores, budget) for scores in ranked]

    def _best(self, scores: Tensor, budget: Budget) -> Selection:
        tokens, heads = scores.shape[-1], scores.shape[1]
        pinned = pin(scores, last=min(self.sliding_window_size, tokens)).flatten(1)[:, None]
        return Selection(Selection.top(pinned, heads * budget.entries(tokens)).keep.view_as(scores))

    def _threshold(self, budget: Budget) -> float | None:
        """The lowest score that stays; None where a ratio or a number of tokens decides."""
        return budget.threshold if self.threshold is None else self.threshold

    def acts_while_decoding(self, budget: Budget) -> bool:
        """Goes on unless everything is to be kept."""
        return self.decoding and not budget.keeps_everything

    def decode_hook(self, budget: Budget) -> DelayedEviction:
        """Goes on with the threshold, or with the lowest score outside the window that the ratio let stay."""
        return DelayedEviction(self.press, budget, self._threshold(budget), self.sliding_window_size)

    def entry_metadata(self, evidence: Any) -> Tensor | None:
        """(B, H, T, 1): scores, by which entries in the window will be judged."""
        return self.press.scores_at([evidence], self.budget)[0][..., None] if self.decoding else None

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """Exact without a threshold; with one, from the window alone to everything."""
        if self.threshold is None:
            return super().entry_bounds(layers, heads, tokens, budget)
        return layers * heads * min(tokens, self.sliding_window_size), layers * heads * tokens
