"""DMS: remove what scores below a threshold, except for a sliding window of recent tokens.

Source: Łańcucki et al. 2025, arXiv 2506.05345, for the delayed eviction; kvpress 0.5.5, where scores are
those of KVzap. Differs: no trained eviction heads: the scores are those of any press. Without a threshold,
the ratio sets it in every layer: heads compete, as in AdaKV without a safeguard. Head-wise budgets are real:
what is evicted leaves memory, in the prefill and while decoding. With `decoding`, several questions of a
context are answered as if each were alone. Written tokens are scored pass by pass, on their own, so the press
inside should score entries one by one (knorm, qfilter, kvzap). Cost: that of the press inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcache.decode_hooks import DecodingObservation, Follower
from kvcache.selection import Selection, Threshold, budget
from presses.knorm import KnormPress
from presses.scorer import ScorerPress, pin
from presses.wrapper import ScoreWrapperPress


class WindowFollower(Follower):
    """Every token that leaves the window goes unless its score reaches the threshold."""

    def __init__(self, press: ScorerPress, threshold: float | None, window: int) -> None:
        """Without a threshold, it is the lowest score that the prefill let stay outside the window."""
        self.press, self.threshold, self.window = press, threshold, window
        self.scores: Tensor | None = None  # (1, H, K)

    def held_bytes(self, entries: int, tokens: int, token_bytes: int) -> int:
        """Scores of all entries, in float32."""
        return 4 * entries

    def begin(self, layer: DecodingObservation, age: Tensor) -> Tensor:
        """(1, H, K - n): scores of the context's entries; where they are not known, all of them stay."""
        n = layer.hidden.shape[1]
        if layer.notes is None:
            return torch.full_like(layer.keys[:, :, n:, 0], float("inf"), dtype=torch.float32)
        scores = layer.notes[..., 0].float()
        if self.threshold is None:
            outside = scores[(age[..., :-n] >= 0) & (age[..., :-n] >= self.window + n)]
            self.threshold = float(outside.min()) if outside.numel() else float("inf")
        return scores

    def follow(self, layer: DecodingObservation) -> Selection | None:
        """All but the tokens that have left the window with a low score."""
        assert layer.valid is not None
        age = (layer.valid.flip(-1).cumsum(-1).flip(-1) - 1).masked_fill(~layer.valid, -1)  # 0: the newest
        known = self.begin(layer, age) if self.scores is None else self.scores
        if self.threshold is None:
            raise ValueError(
                "dms goes on while decoding with a threshold; give it one, or use it alone with a ratio"
            )
        new = self.press.scores_at([self.press.observe(layer.new_tokens())], 0.5)[0]
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
        if self.threshold is not None and not self.compression_ratio:
            object.__setattr__(self, "compression_ratio", 0.5)
        if self.sliding_window_size < 1:
            raise ValueError(f"sliding_window_size={self.sliding_window_size} must be at least 1 token")

    @property
    def own_budget(self) -> bool:
        """Whether a threshold is given."""
        return self.threshold is not None or super().own_budget

    @property
    def has_threshold(self) -> bool:
        """Whether nothing but a score that does not depend on the ratio decides."""
        return self.threshold is None and self.press.has_threshold

    def select_above(self, evidence: Sequence[Any], threshold: Threshold) -> list[Selection]:
        """What reaches the threshold, and the window."""
        return [self._above(scores, threshold.score) for scores in self.press.scores_at(evidence, 0.5)]

    def _above(self, scores: Tensor, threshold: float) -> Selection:
        tokens = scores.shape[-1]
        return Selection(
            (scores >= threshold)
            | (torch.arange(tokens, device=scores.device) >= tokens - self.sliding_window_size)
        )

    def select(self, evidence: Sequence[Any], ratio: float) -> list[Selection]:
        """What reaches the threshold, and the window; or, without one, the `H * budget(T, ratio)` best entries of each layer."""
        selections = []
        for scores in self.press.scores_at(evidence, ratio):
            if self.threshold is not None:
                selections.append(self._above(scores, self.threshold))
                continue
            ranked = pin(scores, last=min(self.sliding_window_size, scores.shape[-1])).flatten(1)[:, None]
            n = budget(scores.shape[-1], ratio) * scores.shape[1]
            selections.append(Selection(Selection.top(ranked, n).keep.view_as(scores)))
        return selections

    def while_decoding(self, ratio: float | Threshold) -> WindowFollower | None:
        """Goes on with the threshold, or with the lowest score outside the window that the ratio let stay."""
        if not self.decoding or ratio == 0:
            return None
        threshold = ratio.score if isinstance(ratio, Threshold) else self.threshold
        return WindowFollower(self.press, threshold, self.sliding_window_size)

    def notes(self, seen: Any) -> Tensor | None:
        """(B, H, T, 1): scores, by which entries in the window will be judged."""
        return self.press.scores_at([seen], 0.5)[0][..., None] if self.decoding else None

    def entries(self, layers: int, heads: int, tokens: int, ratio: float) -> tuple[int, int]:
        """Exact without a threshold; with one, from the window alone to everything."""
        if self.threshold is None:
            return super().entries(layers, heads, tokens, ratio)
        return layers * heads * min(tokens, self.sliding_window_size), layers * heads * tokens
