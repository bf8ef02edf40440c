"""Evicting while answers are written: by any scorer at intervals, or to a constant size after every pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from kvcache.budget import Budget
from kvcache.hooks.decode_hooks import DecodeHook, DecodingObservation
from kvcache.selection import Selection, gather
from presses.base import BasePress
from presses.scorer import ScorerPress
from presses.support.checks import check_least


class ScoreEviction(DecodeHook):
    """Lets the best entries stay, by a scorer, at intervals.

    It acts every `interval` passes, and after a pass of at least as many tokens as may stay.
    """

    def __init__(
        self, press: ScorerPress, interval: int, target: Callable[[int], int], buffer_size: int
    ) -> None:
        """A hook that has seen no pass yet.

        Args:
            press: that scores the entries.
            interval: passes between two evictions.
            target: number of tokens of the text so far to entries that stay per head.
            buffer_size: last tokens whose hidden states are held, for scorers that look at queries.
        """
        self.press, self.interval, self.target, self.buffer_size = press, interval, target, buffer_size
        self.passes = 0
        self.buffer: list[Tensor] = []

    def state_bytes(self, entries: int, tokens: int, token_bytes: int) -> int:
        """The hidden states and rotary factors of the last tokens."""
        return min(self.buffer_size, tokens) * token_bytes

    def after_pass(self, layer: DecodingObservation) -> Selection | None:
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
        n = layer.hidden.shape[1]
        tokens = [layer.hidden, layer.cos.expand(1, n, -1), layer.sin.expand(1, n, -1)]
        if self.buffer:
            tokens = [torch.cat(parts, dim=1) for parts in zip(self.buffer, tokens, strict=True)]
        self.buffer = [part[:, -self.buffer_size :] for part in tokens]

    def choose(self, layer: DecodingObservation, target: int) -> Selection | None:
        """The best `target` entries of every head, or on average where heads compete; None where all stay."""
        assert layer.valid is not None
        counts = layer.valid.sum(-1)
        if self.press.traits.selects_by_layer:
            if int(counts.sum()) <= target * counts.numel():
                return None
            return self.press.select([self.scores(layer, target)], Budget(tokens=target))[0]
        if bool((counts <= target).all()):
            return None
        return Selection.top(self.scores(layer, target), counts.clamp(max=target))

    def scores(self, layer: DecodingObservation, target: int) -> Tensor:
        """(1, H, K) scores, -inf for padding.

        Where heads keep different numbers of entries, each head is scored on its own.
        """
        assert layer.valid is not None
        budget = Budget(tokens=target)
        if bool(layer.valid.all()):
            return self._score(replace(layer, valid=None, _memo={}), budget)
        scores = torch.full(layer.valid.shape, float("-inf"), device=layer.valid.device)
        for head in range(layer.valid.shape[1]):
            exists = layer.valid[0, head]
            keys, values = layer.keys[:, :, exists], layer.values[:, :, exists]
            alone = replace(layer, keys=keys, values=values, valid=None, _memo={})
            scores[0, head, exists] = self._score(alone, budget)[0, head].float()
        return scores

    def _score(self, layer: DecodingObservation, budget: Budget) -> Tensor:
        evidence = self.press.observe(layer)
        by_layer = self.press.traits.selects_by_layer
        scores: Tensor = evidence if by_layer else self.press.scores_at([evidence], budget)[0]
        if not isinstance(scores, Tensor) or scores.shape != layer.keys.shape[:3]:
            raise ValueError(
                f"{self.press.name} does not rank entries by one score each, so it cannot act while "
                "decoding; give a scorer"
            )
        return scores


class ConstantSizeEviction(DecodeHook):
    """After every pass each head keeps as many entries as there were before the first one.

    Which ones stay depends on what is known of each entry, m numbers, which grows from pass to pass.
    """

    def __init__(self) -> None:
        """Nothing is known before the first pass."""
        self.known: Tensor | None = None
        self.counts: Tensor | None = None  # (1, H)

    @abstractmethod
    def begin(self, layer: DecodingObservation) -> Tensor:
        """What is known of the entries before the first pass: (1, H, K - n, m)."""

    @abstractmethod
    def update(self, layer: DecodingObservation, known: Tensor) -> Tensor:
        """What is known of all entries after a pass: (1, H, K, m).

        Args:
            layer: after the pass.
            known: (1, H, K, m) what was known before it; zeros for its n tokens, the last entries.
        """

    @abstractmethod
    def scores(self, known: Tensor, counts: Tensor, age: Tensor) -> Tensor:
        """(1, H, K): the highest stay.

        Args:
            known: (1, H, K, m).
            counts: (1, H) entries that stay.
            age: (1, H, K) number of later entries of the head.
        """

    def after_pass(self, layer: DecodingObservation) -> Selection:
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
    if not (press.traits.gives_scores or press.traits.selects_by_layer):
        raise ValueError(
            f"{press.name} does not choose by the scores of one layer, so it cannot act while decoding; give "
            "one as knorm"
        )
    if press.traits.reads_again:
        raise ValueError(
            f"{press.name} needs extra passes over the context, which do not exist while decoding; give a "
            "scorer as knorm"
        )
    check_least(1, compression_interval=interval, buffer_size=buffer_size)
