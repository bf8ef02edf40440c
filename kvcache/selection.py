"""Which entries of a layer stay."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """A layer's entries that stay.

    Attributes:
        keep: (B, H, T) bool, True for kept entries.
    """

    keep: Tensor

    @classmethod
    def top(cls, scores: Tensor, counts: int | Tensor) -> Self:
        """The `counts` highest scores of every head.

        Equal scores are taken in order of position, so a smaller budget always keeps a subset of a larger
        one.

        Args:
            scores: (B, H, T).
            counts: entries per head, an int or (B, H).
        """
        tokens = scores.shape[-1]
        order = scores.sort(dim=-1, descending=True, stable=True).indices  # (B, H, T)
        if isinstance(counts, Tensor):
            chosen = torch.arange(tokens, device=scores.device) < counts[..., None]
        else:
            chosen = (torch.arange(tokens, device=scores.device) < counts).expand(order.shape)
        return cls(torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, chosen))

    @cached_property
    def counts(self) -> Tensor:
        """(B, H): kept entries per head."""
        return self.keep.sum(-1)

    @cached_property
    def positions(self) -> Tensor:
        """(B, H, K) kept positions in rising order, K the largest count.

        Behind a head's own count stand positions that it does not keep.
        """
        order = (~self.keep).to(torch.uint8).sort(dim=-1, stable=True).indices
        return order[..., : int(self.counts.max())]


def gather(entries: Tensor, positions: Tensor) -> Tensor:
    """Rows of `entries` (B, H, T, d) at `positions` (B, H, K), as (B, H, K, d)."""
    return entries.gather(2, positions[..., None].expand(*positions.shape, entries.shape[-1]))
