"""Leverage: keep keys that the others cannot express.

Keys before rotary embedding, centred over the context and projected by a random d x m matrix, give X.
score_t = x_t (XᵀX + λI)⁻¹ x_tᵀ, standardised over the heads and positions of the layer.
Source: Chari & Van Durme 2025 (Compactor), arXiv 2507.08143; kvpress 0.5.5 for λ.
Differs: the projection is drawn per seed, layer and context, the same on every device; every context of a
batch is standardised alone.
Cost: keys once more, two products of size T x m x m per head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.scorer import ScorerPress
from presses.support.checks import check_least

RIDGE = 1e-2
"""λ added to XᵀX, ten times more at each failed factorisation."""


@dataclass(frozen=True)
class LeverageScorePress(ScorerPress):
    """Approximate statistical leverage of the keys.

    Attributes:
        sketch_dimension: m, channels after the random projection.
        seed: of the projection, together with the layer and the content of the context.
    """

    sketch_dimension: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an empty projection."""
        super().__post_init__()
        check_least(1, "channel", sketch_dimension=self.sketch_dimension)

    @property
    def traits(self) -> Traits:
        """Keys and values are all that is looked at."""
        return replace(super().traits, reads_hidden_states=False)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T) float32: standardised leverage scores."""
        keys = layer.keys_before_rope().float()
        drawn = gaussian(layer, self.seed, keys.shape[1], keys.shape[-1], self.sketch_dimension)
        projection = drawn / self.sketch_dimension**0.5
        return standardised(leverage((keys - keys.mean(2, keepdim=True)) @ projection))


def gaussian(layer: LayerObservation, seed: int, *shape: int) -> Tensor:
    """(B, *shape) float32 standard normal numbers, drawn per row for this seed, layer and context."""
    rows = [torch.randn(shape, generator=generator) for generator in layer.generators(seed)]
    return torch.stack(rows).to(layer.keys.device)


def leverage(rows: Tensor) -> Tensor:
    """(B, H, T): x (XᵀX + λI)⁻¹ xᵀ of every row x of X (B, H, T, m), at least 0."""
    gram = rows.mT @ rows  # (B, H, m, m)
    gram = (gram + gram.mT) / 2
    identity = torch.eye(gram.shape[-1], device=gram.device)
    ridge = torch.full((*gram.shape[:2], 1, 1), RIDGE, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + ridge * identity)
    while bool(failed.any()) and bool(ridge.isfinite().all()):
        ridge = ridge.where(failed[..., None, None] == 0, ridge * 10)
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * identity)
    return (rows.mT * torch.cholesky_solve(rows.mT, factor)).sum(2).clamp_min(0)


def standardised(scores: Tensor) -> Tensor:
    """(B, H, T) minus their mean, over their deviation, both over the heads and positions of each row."""
    centred = scores - scores.mean((1, 2), keepdim=True)
    variance = centred.square().sum((1, 2), keepdim=True) / max(1, scores[0].numel() - 1)
    return centred / variance.sqrt().clamp_min(1e-6)
