"""Decoding: whenever `compression_interval` passes are over, keep the `target_size` best entries of every head, by any scorer.

Source: kvpress 0.5.5 (DecodingPress); each scorer cites its own paper.
Differs: every buffered query keeps its own rotation (kvpress gives all of them that of the current step). Kept entries stay in order of
position. Several questions of a context are answered as if each were alone. Scorers that need hidden states of the whole context are
refused while decoding.
Cost: the scorer once per interval, layer and row; the hidden states of the last `buffer_size` tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from kvcache.following import DecodingObservation, Follower, with_tokens
from kvcache.observation import LayerObservation
from kvcache.selection import Selection, Threshold, gather
from presses.base import BasePress
from presses.knorm import KnormPress
from presses.scorer import ScorerPress
from presses.wrapper import ScoreWrapperPress


class ScoreFollower(Follower):
    """Every `interval` passes, or after a pass of at least as many tokens as may stay, the best entries stay, by a scorer."""

    def __init__(self, press: ScorerPress, interval: int, target: Callable[[int], int], buffer_size: int) -> None:
        """Act every `interval` passes; `target` gives the entries that stay from the number of tokens of the text so far."""
        self.press, self.interval, self.target, self.buffer_size = press, interval, target, buffer_size
        self.passes = 0
        self.buffer: list[Tensor] = []

    def follow(self, layer: DecodingObservation) -> Selection | None:
        """The best `target` entries of every head, when it is time."""
        self.passes += 1
        new = [layer.hidden, *(factor.expand(1, layer.hidden.shape[1], -1) for factor in (layer.cos, layer.sin))]
        if self.buffer:
            new = [torch.cat(parts, dim=1) for parts in zip(self.buffer, new, strict=True)]
        self.buffer = [part[:, -self.buffer_size :] for part in new]
        target = self.target(layer.next_position)
        if self.passes < self.interval and layer.hidden.shape[1] < target:
            return None
        recent = with_tokens(layer, *self.buffer)
        self.passes, self.buffer = 0, []
        assert layer.valid is not None
        counts = layer.valid.sum(-1)
        if bool((counts <= target).all()):
            return None
        return Selection.top(self._scores(recent, layer.valid), counts.clamp(max=target))

    def _scores(self, layer: DecodingObservation, valid: Tensor) -> Tensor:
        """(1, H, K), padding last; where heads keep different numbers, each head is scored on its own entries."""
        ratio = 1 - (self.target(layer.next_position) + 0.5) / layer.tokens
        if bool(valid.all()):
            return self._score(layer, max(0.0, ratio))
        scores = torch.full(valid.shape, float("-inf"), device=valid.device)
        for head in range(valid.shape[1]):
            own = valid[0, head]
            alone = replace(layer, keys=layer.keys[:, :, own], values=layer.values[:, :, own], _memo={})
            scores[0, head, own] = self._score(alone, max(0.0, ratio))[0, head].float()
        return scores

    def _score(self, layer: DecodingObservation, ratio: float) -> Tensor:
        scores: Tensor = self.press.scores_at([self.press.observe(layer)], ratio)[0]
        return scores


class ConstantFollower(Follower):
    """After every pass each head keeps as many entries as there were before the first one, by what is known of them from pass to pass."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.known: Tensor | None = None
        self.counts: Tensor | None = None  # (1, H)

    @abstractmethod
    def begin(self, layer: DecodingObservation) -> Tensor:
        """What is known of the entries before the first pass: (1, H, K - n, m)."""

    @abstractmethod
    def update(self, layer: DecodingObservation, known: Tensor) -> Tensor:
        """What is known of all entries (1, H, K, m) after a pass; `known` holds zeros for its n tokens, the last entries."""

    @abstractmethod
    def scores(self, known: Tensor, counts: Tensor, age: Tensor) -> Tensor:
        """(1, H, K): the highest stay.

        Args:
            known: (1, H, K, m).
            counts: (1, H) entries that stay.
            age: (1, H, K) number of later entries of the head.
        """

    def follow(self, layer: DecodingObservation) -> Selection:
        """The best entries of every head, as many as before the first pass."""
        assert layer.valid is not None
        n = layer.hidden.shape[1]
        if self.known is None or self.counts is None:
            self.known, self.counts = self.begin(layer), (layer.valid.sum(-1) - n).clamp(min=1)
        known = self.update(layer, functional.pad(self.known, (0, 0, 0, n)))
        age = layer.valid.flip(-1).cumsum(-1).flip(-1) - 1
        scores = self.scores(known, self.counts, age).masked_fill(~layer.valid, float("-inf"))
        selection = Selection(Selection.top(scores, self.counts).keep & layer.valid)
        self.known = gather(known, selection.positions)
        return selection


def check_scorer(press: BasePress, interval: int, buffer_size: int) -> None:
    """Refuse what cannot act while decoding.

    Raises:
        ValueError: a press with extra passes, or an interval or buffer that is not positive.
    """
    if getattr(type(press), "probe", BasePress.probe) not in (BasePress.probe, ScoreWrapperPress.probe):
        raise ValueError(f"{press.name} needs extra passes over the context, which do not exist while decoding; give a scorer as knorm")
    if interval < 1 or buffer_size < 1:
        raise ValueError(f"compression_interval={interval} and buffer_size={buffer_size} must be at least 1")


class PrefillLeftWhole(ScoreWrapperPress):
    """A press that keeps the whole context, whatever the ratio, and acts while answers are written."""

    def observe(self, layer: LayerObservation) -> Tensor:
        """Nothing is scored in the prefill: an empty tensor of shape (B, H, T, 0)."""
        return layer.keys[..., :0]

    def select(self, evidence: Sequence[Any], ratio: float) -> list[Selection]:
        """Everything, whatever the ratio."""
        return [Selection(torch.ones(seen.shape[:3], dtype=torch.bool, device=seen.device)) for seen in evidence]

    def entries(self, layers: int, heads: int, tokens: int, ratio: float) -> tuple[int, int]:
        """All entries of the context, whatever the ratio."""
        return layers * heads * tokens, layers * heads * tokens


@dataclass(frozen=True)
class DecodingPress(PrefillLeftWhole, ScoreWrapperPress):
    """A fixed number of entries while answers are written; the context is read whole.

    Attributes:
        press: that scores the entries.
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

    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a ratio, an empty target, and scorers that need more than a cache."""
        super().__post_init__()
        if self.compression_ratio:
            raise ValueError(f"compression_ratio={self.compression_ratio}: decoding leaves the prefill whole; set target_size")
        if self.target_size < 1:
            raise ValueError(f"target_size={self.target_size} must be at least 1 entry")
        check_scorer(self.press, self.compression_interval, self.buffer_size)

    @property
    def own_budget(self) -> bool:
        """The budget is `target_size`."""
        return True

    def while_decoding(self, ratio: float | Threshold) -> Follower:
        """Keeps `target_size` entries at every interval."""
        return ScoreFollower(self.press, self.compression_interval, lambda tokens: self.target_size, self.buffer_size)
