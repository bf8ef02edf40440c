"""ThinK: remove the channels of the keys that queries hardly read.

Channel c of a head counts mean over the last queries and the group of q_c² · mean over positions of k_c²;
int(d · ratio) channels go.
Source: Xu et al. 2024, arXiv 2407.21018.
Differs: the channels really leave memory (kvpress sets them to 0): a head stores its other channels and their
index, and a query reads with these alone. Values and the keys of later tokens stay whole, so at ratio r the
measured cache shrinks by r/2, not r.
Cost: queries of the window and two sums per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.budget import Budget, check_ratio
from kvcache.observation import LayerObservation
from kvcache.selection import Selection, gather
from kvcache.traits import Traits
from presses.base import BasePress
from presses.support.checks import check_least
from presses.support.scores import mean_over_group


@dataclass(frozen=True)
class ChannelSelection(Selection):
    """A selection of entries whose keys lose channels.

    Attributes:
        reading: (B, H, 1, d) mean square of the queries per channel.
        n_removed: channels removed per head.
    """

    reading: Tensor
    n_removed: int


@dataclass(frozen=True)
class ThinKPress(BasePress):
    """All entries, with fewer channels in their keys.

    Attributes:
        compression_ratio: fraction of key channels removed, in [0, 1).
        key_channel_compression_ratio: the same, fixed: then every ratio above 0 of a sweep, or of the presses
            composed with this one, removes this fraction.
        window_size: last tokens whose queries count.
    """

    compression_ratio: float = 0.0
    key_channel_compression_ratio: float | None = None
    window_size: int = 32

    def __post_init__(self) -> None:
        """Refuse ratios outside [0, 1) and an empty window."""
        super().__post_init__()
        if self.key_channel_compression_ratio is not None:
            fixed = check_ratio(self.key_channel_compression_ratio)
            object.__setattr__(self, "key_channel_compression_ratio", fixed)
            object.__setattr__(self, "compression_ratio", self.compression_ratio or fixed)
        check_least(1, "token", window_size=self.window_size)

    @property
    def traits(self) -> Traits:
        """The ratio is of key channels, which are not stored."""
        return Traits(only_selects=False, ratio_is_bytes=False, window_queries=self.window_size)

    def observe(self, layer: LayerObservation) -> tuple[Tensor, Tensor]:
        """Mean square of the window's queries per channel (B, H, 1, d), and all entries (B, H, T)."""
        squares = layer.queries(self.window_size).float().square().mean(dim=2, keepdim=True)
        everything = torch.ones((), dtype=torch.bool, device=layer.keys.device).expand(layer.keys.shape[:3])
        return mean_over_group(squares, layer.group), everything

    def select(self, evidence: Sequence[tuple[Tensor, Tensor]], budget: Budget) -> list[Selection]:
        """All entries."""
        fraction = self.key_channel_compression_ratio
        if fraction is None:
            fraction = budget.removed_share(evidence[0][1].shape[-1])
        return [
            ChannelSelection(everything, reading, int(reading.shape[-1] * fraction))
            for reading, everything in evidence
        ]

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Keys with zeros in the removed channels, which the cache then does not store."""
        assert isinstance(selection, ChannelSelection)
        written = keys.float().square().masked_fill_(~selection.keep[..., None], 0).sum(dim=2, keepdim=True)
        order = (selection.reading * written).sort(dim=-1, stable=True).indices  # (B, H, 1, d)
        removed = torch.zeros_like(written, dtype=torch.bool)
        removed.scatter_(-1, order[..., : selection.n_removed], True)
        positions = selection.positions
        return gather(keys, positions).masked_fill_(removed, 0), gather(values, positions)

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """Every entry stays."""
        return layers * heads * tokens, layers * heads * tokens
