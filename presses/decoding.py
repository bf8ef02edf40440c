"""Decoding: whenever `compression_interval` passes are over, keep the `target_size` best entries of every head, by any scorer.

Source: kvpress 0.5.5 (DecodingPress); each scorer cites its own paper.
Differs: every buffered query keeps its own rotation (kvpress gives all of them that of the current step).
Kept entries stay in order of position. Several questions of a context are answered as if each were alone.
Scorers that need hidden states of the whole context are refused while decoding.
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

from kvcache.decode_hooks import DecodingObservation, Follower
from kvcache.observation import LayerObservation
from kvcache.selection import Selection, Threshold, gather, ratio_for
from presses.base import BasePress
from presses.knorm import KnormPress
from presses.scorer import ScorerPress
from presses.wrapper import ScoreWrapperPress, WrapperPress


class ScoreFollower(Follower):
    """Every `interval` passes, or after a pass of at least as many tokens as may stay, the best entries stay, by a scorer."""

    def __init__(
        self, press: ScorerPress, interval: int, target: Callable[[int], int], buffer_size: int
    ) -> None:
        """Act every `interval` passes; `target` gives the entries that stay from the number of tokens of the text so far."""
        self.press, self.interval, self.target, self.buffer_size = press, interval, target, buffer_size
        self.passes = 0
        self.buffer: list[Tensor] = []

    def held_bytes(self, entries: int, tokens: int, token_bytes: int) -> int:
        """The hidden states and rotary factors of the last tokens."""
        return min(self.buffer_size, tokens) * token_bytes

    def follow(self, layer: DecodingObservation) -> Selection | None:
        """The best `target` entries of every head, when it is time."""
        self.remember(layer)
        target = self.target(layer.next_position)
        if self.passes < self.interval and layer.hidden.shape[1] < target:
            return None
        recent = layer.with_tokens(*self.buffer)
        self.passes, self.buffer = 0, []
        return self.choose(recent, target)

    def remember(self, layer: DecodingObservation) -> None:
        """Count the pass, and hold its tokens for scorers that look at queries."""
        self.passes += 1
        new = [
            layer.hidden,
            *(factor.expand(1, layer.hidden.shape[1], -1) for factor in (layer.cos, layer.sin)),
        ]
        if self.buffer:
            new = [torch.cat(parts, dim=1) for parts in zip(self.buffer, new, strict=True)]
        self.buffer = [part[:, -self.buffer_size :] for part in new]

    def choose(self, layer: DecodingObservation, target: int) -> Selection | None:
        """The best `target` entries of every head; or, where heads compete, on average; None where there are no more."""
        assert layer.valid is not None
        counts = layer.valid.sum(-1)
        if self.press.layer_by_layer:
            if int(counts.sum()) <= target * counts.numel():
                return None
            return self.press.select([self.scores(layer, target)], ratio_for(layer.tokens, target))[0]
        if bool((counts <= target).all()):
            return None
        return Selection.top(self.scores(layer, target), counts.clamp(max=target))

    def scores(self, layer: DecodingObservation, target: int) -> Tensor:
        """(1, H, K), -inf for padding; where heads keep different numbers, each head is scored on its own entries."""
        assert layer.valid is not None
        ratio = max(0.0, 1 - (target + 0.5) / layer.tokens)
        if bool(layer.valid.all()):
            return self._score(replace(layer, valid=None, _memo={}), ratio)
        scores = torch.full(layer.valid.shape, float("-inf"), device=layer.valid.device)
        for head in range(layer.valid.shape[1]):
            own = layer.valid[0, head]
            alone = replace(
                layer, keys=layer.keys[:, :, own], values=layer.values[:, :, own], valid=None, _memo={}
            )
            scores[0, head, own] = self._score(alone, ratio)[0, head].float()
        return scores

    def _score(self, layer: DecodingObservation, ratio: float) -> Tensor:
        seen = self.press.observe(layer)
        scores: Tensor = seen if self.press.layer_by_layer else self.press.scores_at([seen], ratio)[0]
        if not isinstance(scores, Tensor) or scores.shape != layer.keys.shape[:3]:
            raise ValueError(
                f"{self.press.name} does not rank entries by one score each, so it cannot act while decoding; give a scorer"
            )
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
        ValueError: a press without scores or with extra passes, or an interval or buffer that is not
            positive.
    """
    if not (hasattr(press, "scores_at") or press.layer_by_layer):
        raise ValueError(
            f"{press.name} does not choose by the scores of one layer, so it cannot act while decoding; give one as knorm"
        )
    if getattr(type(press), "probe", BasePress.probe) not in (BasePress.probe, ScoreWrapperPress.probe):
        raise ValueError(
            f"{press.name} needs extra passes over the context, which do not exist while decoding; give a scorer as knorm"
        )
    if interval < 1 or buffer_size < 1:
        raise ValueError(f"compression_interval={interval} and buffer_size={buffer_size} must be at least 1")


class PrefillLeftWhole(WrapperPress):
    """A press that keeps the whole context, whatever the ratio, and acts while answers are written."""

    def observe(self, layer: LayerObservation) -> Tensor:
        """Nothing is scored in the prefill: an empty tensor of shape (B, H, T, 0)."""
        return layer.keys[..., :0]

    def select(self, evidence: Sequence[Any], ratio: float) -> list[Selection]:
        """Everything, whatever the ratio."""
        return [
            Selection(torch.ones(seen.shape[:3], dtype=torch.bool, device=seen.device)) for seen in evidence
        ]

    def entries(self, layers: int, heads: int, tokens: int, ratio: float) -> tuple[int, int]:
        """All entries of the context, whatever the ratio."""
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

    lossless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a ratio, an empty target, and scorers that need more than a cache."""
        super().__post_init__()
        if self.compression_ratio:
            raise ValueError(
                f"compression_ratio={self.compression_ratio}: decoding leaves the prefill whole; set target_size"
            )
        if self.target_size < 1:
            raise ValueError(f"target_size={self.target_size} must be at least 1 entry")
        check_scorer(self.press, self.compression_interval, self.buffer_size)

    @property
    def own_budget(self) -> bool:
        """The budget is `target_size`."""
        return True

    def while_decoding(self, ratio: float | Threshold) -> Follower:
        """Keeps `target_size` entries at every interval."""
        return ScoreFollower(
            self.press, self.compression_interval, lambda tokens: self.target_size, self.buffer_size
        )
