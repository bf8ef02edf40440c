"""Merging: evicted values live on in the most similar kept entry instead of being lost.

An evicted entry e goes to the kept entry t of the highest key cosine c_et ≥ `similarity_threshold`, with the
weight w_e = c_et · ‖v_e‖ / (‖v_e‖ + ‖v_t‖); v_t becomes (v_t + Σ w_e v_e) / (1 + Σ w_e). Keys stay as they
are.
Source: Bolya et al. 2022 (token merging), arXiv 2210.09461; Wan et al. 2024 (D2O), arXiv 2406.13035; weights
of kvpress 0.5.5.
Differs: head-wise budgets, batches of several contexts and any press that selects entries are allowed inside.
Cost: cosines of evicted with kept keys, per layer and ratio, in blocks of evicted entries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from kvcache.observation import block_size
from kvcache.selection import Selection, gather
from kvcache.traits import Traits
from presses.base import BasePress
from presses.snapkv import SnapKVPress
from presses.wrapper import WrapperPress, check_adds_nothing

EVICTED_BLOCK = 1024
"""Evicted entries whose cosines with all kept ones are held at once."""

SMALLEST = 1e-6
"""Key norms below it count as this much; also added to the denominator of the weights."""


@dataclass(frozen=True)
class MergingPress(WrapperPress):
    """Evicted values are merged into kept ones.

    Attributes:
        press: that selects.
        compression_ratio: fraction of entries removed, in [0, 1).
        similarity_threshold: cosine of keys below which an evicted entry is dropped, in [0, 1].
        merge_fraction: share of the evicted entries of a head, the most similar ones, that are merged, in
            (0, 1].
    """

    press: BasePress = SnapKVPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    similarity_threshold: float = 0.0
    merge_fraction: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a threshold or a fraction outside its range."""
        super().__post_init__()
        check_adds_nothing(self.press, self)
        if not 0 <= self.similarity_threshold <= 1:
            raise ValueError(
                f"similarity_threshold={self.similarity_threshold} must lie in [0, 1]: it is a cosine"
            )
        if not 0 < self.merge_fraction <= 1:
            raise ValueError(
                f"merge_fraction={self.merge_fraction} must lie in (0, 1]: it is the share of evicted "
                "entries to merge"
            )

    @property
    def traits(self) -> Traits:
        """Kept values take up evicted ones."""
        return replace(super().traits, only_selects=False)

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """What the press inside makes of the keys and the merged values."""
        evicted = Selection(~selection.keep)
        if evicted.positions.shape[-1] and selection.positions.shape[-1]:
            values = self._merged(keys, values, selection, evicted)
        return self.press.apply(keys, values, selection)

    def _merged(self, keys: Tensor, values: Tensor, kept: Selection, evicted: Selection) -> Tensor:
        """A copy of the values (B, H, T, d) in which kept entries have taken up evicted ones."""
        # Which evicted entries are merged, and into which kept one (a position): (B, H, E) each.
        similarity, target = nearest(keys, kept, evicted)
        padding = _padding(evicted)
        merges = (similarity >= self.similarity_threshold) & ~padding
        if self.merge_fraction < 1:
            existing = similarity.masked_fill(padding, float("nan"))
            levels = existing.nanquantile(1 - self.merge_fraction, dim=-1, keepdim=True)
            merges &= similarity >= levels

        # With which weight each is merged.
        norms = values.float().norm(dim=-1)  # (B, H, T)
        of_evicted, of_target = norms.gather(-1, evicted.positions), norms.gather(-1, target)
        share = similarity.clamp(min=0) * of_evicted / (of_evicted + of_target + SMALLEST)
        weights = share.masked_fill(~merges, 0)

        # What each kept entry takes up.
        evicted_values = gather(values, evicted.positions).float()  # (B, H, E, d)
        total = torch.zeros_like(norms).scatter_add_(-1, target, weights)
        taken = torch.zeros_like(values, dtype=torch.float32)
        index = target[..., None].expand_as(evicted_values)
        taken.scatter_add_(2, index, weights[..., None] * evicted_values)
        return ((values.float() + taken) / (1 + total)[..., None]).to(values.dtype)


def nearest(keys: Tensor, kept: Selection, evicted: Selection) -> tuple[Tensor, Tensor]:
    """For each evicted entry the highest cosine of its key with a kept one, and the position of that one.

    Both are (B, H, E). Behind a head's own number of evicted entries stand meaningless ones; in a head
    without kept entries the cosine is -inf.
    """
    directions = functional.normalize(keys.float(), dim=-1, eps=SMALLEST)
    stays = gather(directions, kept.positions).transpose(2, 3)  # (B, H, d, K)
    absent = _padding(kept)[:, :, None]
    parts = []
    n = block_size(keys.shape[0] * keys.shape[1], kept.positions.shape[-1], EVICTED_BLOCK)
    for start in range(0, evicted.positions.shape[-1], n):
        cosines = gather(directions, evicted.positions[..., start : start + n]) @ stays  # (B, H, e, K)
        parts.append(cosines.masked_fill_(absent, float("-inf")).max(dim=-1))
    similarity = torch.cat([part.values for part in parts], dim=-1)
    target = torch.cat([part.indices for part in parts], dim=-1)
    return similarity, kept.positions.gather(-1, target)


def _padding(selection: Selection) -> Tensor:
    """(B, H, K) bool: which of `selection.positions` are not its own."""
    places = torch.arange(selection.positions.shape[-1], device=selection.keep.device)
    return places >= selection.counts[..., None]
