"""CaM: while decoding, values that are evicted are merged into the entries after them instead of being lost.

Every `compression_interval` passes the `target_size` best positions stay, by the mean of any scorer over the
heads. Of the others the best, as many as there were passes, are merged: with probability A_i / mean A (at
most 1), A the attention received since the prefill and the mean that of the next `merge_budget` kept entries,
each of these takes up an equal share of the value. Keys stay as they are.
Source: Zhang et al. 2024, "CaM: Cache Merging for Memory-efficient LLMs Inference", openreview LCTmppB165;
kvpress 0.5.5 (intervals).
Differs: coins are drawn by seed, layer and position (kvpress: from the global random state). Values are
summed in float32. Heads that keep different numbers after the prefill decide each for itself. Otherwise as
decoding; `compression_interval=1` is the paper's method.
Cost: as decoding, and the attention of one query per layer, row and pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.hooks.decode_hooks import DecodeHook, DecodingObservation
from kvcache.selection import Selection, gather
from kvcache.traits import Traits
from presses.decoding import DecodingPress
from presses.scorer import ScorerPress
from presses.support.checks import check_least
from presses.support.eviction import ScoreEviction
from presses.support.scores import mean_over_group


@dataclass(frozen=True)
class MergedSelection(Selection):
    """A selection with evicted entries whose values live on in kept ones.

    Attributes:
        sources: (1, H, m) evicted entries.
        shares: (1, H, m, K) of each that is added to each kept entry, in the order of `positions`.
    """

    sources: Tensor
    shares: Tensor


class MergingEviction(ScoreEviction):
    """Scores, evicts and merges."""

    only_selects = False

    def __init__(
        self,
        press: ScorerPress,
        interval: int,
        target: Callable[[int], int],
        buffer_size: int,
        merge_budget: int,
        seed: int,
    ) -> None:
        """A hook that has seen no pass yet.

        Args:
            press: that scores the entries.
            interval: passes between two evictions.
            target: number of tokens of the text so far to entries that stay per head.
            buffer_size: last tokens whose hidden states are held, for scorers that look at queries.
            merge_budget: kept entries, at most, that take up an evicted value.
            seed: of the coins.
        """
        super().__init__(press, interval, target, buffer_size)
        self.merge_budget, self.seed = merge_budget, seed
        self.received = torch.empty(0)  # (1, H, K) attention since the prefill

    def state_bytes(self, entries: int, tokens: int, token_bytes: int) -> int:
        """The last tokens, and the attention that every entry received, in float32."""
        return super().state_bytes(entries, tokens, token_bytes) + 4 * entries

    def after_pass(self, layer: DecodingObservation) -> Selection | None:
        """The best positions, and what becomes of the others, when it is time."""
        assert layer.valid is not None
        self.remember(layer)

        # What each entry has received so far, and from the last token.
        received = mean_over_group(layer.window_attention(1)[:, :, -1], layer.group).float()
        known = self.received.shape[-1] if self.received.dim() == 3 else 0
        received[..., :known] += self.received if known else 0
        self.received = received

        target, counts = self.target(layer.next_position), layer.valid.sum(-1)
        is_time = self.passes >= self.interval or layer.hidden.shape[1] >= target
        if not is_time or bool((counts <= target).all()):
            return None

        # The best positions, the same in all heads unless these keep different numbers.
        recent, merges = layer.with_tokens(*self.buffer), self.passes
        self.passes, self.buffer = 0, []
        scores = self.scores(recent, target)
        if bool(layer.valid.all()):
            scores = scores.float().mean(1, keepdim=True).expand_as(scores)
        kept = Selection.top(scores, counts.clamp(max=target))
        merged = self._merged(layer, scores, kept, merges)
        self.received = received.gather(-1, merged.positions)
        return merged

    def _merged(
        self, layer: DecodingObservation, scores: Tensor, kept: Selection, merges: int
    ) -> MergedSelection:
        """`kept`, with the best `merges` of what is evicted."""
        assert layer.valid is not None

        # The best m evicted entries, of equal ones the latest: (1, H, m).
        evicted = Selection(layer.valid & ~kept.keep)
        m = min(merges, int(evicted.counts.max()))
        latest_first = scores.float().masked_fill(~evicted.keep, float("-inf")).flip(-1)
        order = latest_first.sort(dim=-1, descending=True, stable=True).indices[..., :m]
        sources = scores.shape[-1] - 1 - order

        # For each the next w = `merge_budget` kept entries, by their place among the kept: (1, H, m, w).
        next_kept = kept.keep.cumsum(-1).gather(-1, sources)[..., None]
        places = next_kept + torch.arange(self.merge_budget, device=sources.device)
        is_source = evicted.keep.gather(-1, sources)[..., None]
        exists = (places < kept.counts[..., None, None]) & is_source
        places = places.clamp(max=kept.positions.shape[-1] - 1)
        targets = exists.sum(-1).clamp(min=1)

        # A coin per evicted entry, by what it has received and what these have received on average.
        of_kept = self.received.gather(-1, kept.positions)[:, :, None].expand(-1, -1, m, -1)
        typical = (of_kept.gather(-1, places) * exists).sum(-1) / targets
        chance = (self.received.gather(-1, sources) / typical).nan_to_num(nan=0.0, posinf=1.0).clamp(0, 1)

        # Equal shares of the value for each of them.
        shares = (coins(chance, layer, self.seed) / targets)[..., None] * exists
        spread = shares.new_zeros(*sources.shape, kept.positions.shape[-1]).scatter_add_(-1, places, shares)
        return MergedSelection(kept.keep, sources, spread)

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Kept keys, and kept values with what they take up."""
        assert isinstance(selection, MergedSelection)
        gained = selection.shares.transpose(2, 3) @ gather(values, selection.sources).float()
        kept = gather(values, selection.positions)
        return gather(keys, selection.positions), (kept.float() + gained).to(values.dtype)


def coins(chance: Tensor, layer: DecodingObservation, seed: int) -> Tensor:
    """1 with the given probabilities (1, H, m), else 0: the same again for a seed, layer and position."""
    (generator,) = layer.generators(seed)
    return torch.bernoulli(chance.float().cpu(), generator=generator).to(chance.device)


@dataclass(frozen=True)
class CAMPress(DecodingPress):
    """A fixed number of entries while answers are written, which take up the values of what is evicted.

    Attributes:
        merge_budget: kept entries after an evicted one into which it is merged.
        seed: of the coins.
    """

    merge_budget: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an empty merge budget, and presses whose heads compete: here they decide together."""
        super().__post_init__()
        check_least(1, "entry", merge_budget=self.merge_budget)
        if self.press.traits.selects_by_layer:
            raise ValueError(
                f"cam keeps the same positions in all heads, so {self.press.name} is no help; give it the "
                "scorer itself"
            )

    @property
    def traits(self) -> Traits:
        """As decoding."""
        return replace(super().traits, only_selects=False)

    def decode_hook(self, budget: Budget) -> DecodeHook:
        """Keeps `target_size` entries at every interval and merges others."""
        return MergingEviction(
            self.press,
            self.compression_interval,
            lambda tokens: self.target_size,
            self.buffer_size,
            self.merge_budget,
            self.seed,
        )
