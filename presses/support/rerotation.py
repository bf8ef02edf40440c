"""Kept keys at new, neighbouring positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.rotary import Rotary
from kvcache.selection import Selection


@dataclass(frozen=True)
class Moved(Selection):
    """A selection whose entries move together.

    Attributes:
        inner: as the press inside made it.
        rotary: the layer's rotary embedding.
    """

    inner: Selection
    rotary: Rotary


def turned(keys: Tensor, selection: Moved) -> Tensor:
    """Kept keys (B, H, K, d), in the order of their positions, at the positions 0 … K - 1."""
    old = selection.positions  # (B, H, K), rising
    cos, sin = selection.rotary.at(torch.arange(selection.keep.shape[-1], device=keys.device))
    cos, sin = cos[0].float(), sin[0].float()  # (T, r)
    size = torch.hypot(
        cos[0, 0], sin[0, 0]
    )  # attention scaling of YaRN and its kin, already in the cached keys
    new = torch.arange(old.shape[-1], device=keys.device)
    # cos(new - old) and sin(new - old), from the model's own tables
    turn_cos = (cos[new] * cos[old] + sin[new] * sin[old]) / size**2  # (B, H, K, r)
    turn_sin = (sin[new] * cos[old] - cos[new] * sin[old]) / size**2
    rotated = selection.rotary.turn(
        keys.flatten(0, 1)[:, None], turn_cos.flatten(0, 1), turn_sin.flatten(0, 1)
    )
    return rotated.view_as(keys).to(keys.dtype)
