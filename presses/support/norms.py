"""How large a value is by what it adds to the hidden state, through the output projection."""

from __future__ import annotations

import torch
from torch import Tensor

from kvcache.observation import LayerObservation
from kvcache.projections import output_weight

TOKEN_BLOCK = 1024
"""Tokens projected at a time, so that nothing of size T x D exists per head."""


def output_norms(layer: LayerObservation, values: Tensor) -> Tensor:
    """(B, H, G, C): the norm of what each of some values (B, H, C, d) adds to the hidden state.

    A value adds something through the output projection of every query head of its group.
    """
    weight = output_weight(layer.module, like=values).float()  # (H * G, d, D)
    gram = (weight @ weight.transpose(1, 2)).unflatten(0, (-1, layer.group))  # (H, G, d, d)
    spread = values.float()[:, :, None]  # (B, H, 1, C, d)
    return ((spread @ gram) * spread).sum(-1).clamp(min=0).sqrt()


def projected_value_norms(layer: LayerObservation) -> Tensor:
    """(B, H, T) float32: ‖v_t W_O‖₁ of each value, averaged over the query heads of its group.

    Computed once per layer.
    """

    def compute() -> Tensor:
        weights = output_weight(layer.module, like=layer.values)
        weights = weights.unflatten(0, (-1, layer.group))  # (H, G, d, D)
        blocks = []
        for values in layer.values.split(TOKEN_BLOCK, dim=2):
            per_head = [
                torch.linalg.vector_norm(values @ weights[:, g], ord=1, dim=-1, dtype=torch.float32)
                for g in range(layer.group)
            ]
            blocks.append(torch.stack(per_head).mean(0))
        return torch.cat(blocks, dim=-1)

    return layer.once("projected value norms", compute)
