"""Kept keys at new, neighbouring positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.rotary import Rotary
from kvcache.selection import Selection


@dataclass(frozen=True)
class RotatedSelection(Selection):
    """A selection whose kept keys are rotated to neighbouring positions.

    Attributes:
        inner: as the press inside made it.
        rotary: the layer's rotary embedding.
    """

    inner: Selection
    rotary: Rotary


def rerotated(keys: Tensor, selection: RotatedSelection) -> Tensor:
    """Kept keys (B, H, K, d), in the order of their positions, at the positions 0 … K - 1."""
    old = selection.positions  # (B, H, K), rising
    cos, sin = selection.rotary.at(torch.arange(selection.keep.shape[-1], device=keys.device))
    cos, sin = cos[0].float(), sin[0].float()  # (T, r)
    new = torch.arange(old.shape[-1], device=keys.device)

    # cos(new - old) and sin(new - old), from the model's own tables. Their size is the attention scaling of
    # YaRN and its kin, which is in the cached keys already.
    size = torch.hypot(cos[0, 0], sin[0, 0])
    turn_cos = (cos[new] * cos[old] + sin[new] * sin[old]) / size**2  # (B, H, K, r)
    turn_sin = (sin[new] * cos[old] - cos[new] * sin[old]) / size**2

    per_head = keys.flatten(0, 1)[:, None]  # (B * H, 1, K, d)
    rotated = selection.rotary.turn(per_head, turn_cos.flatten(0, 1), turn_sin.flatten(0, 1))
    return rotated.view_as(keys).to(keys.dtype)
