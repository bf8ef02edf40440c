"""Q-Filters: keep the keys that point along the main direction of the model's queries.

score_t = -f·k_t, f the learned filter of the head: published filters point against the queries, so that keys
along them score high.
Source: Godey et al. 2025, arXiv 2503.02812; filters of the authors on the hub, `nthngdy/<model>_qfilt`.
Differs: nothing. Filters of other models are made by `calibrate`, as by make_filters.py of the authors'
repository (NathanGodey/qfilters at cda5c38), from all queries instead of a sample of 3000.
Cost: one product per key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.scorer import ScorerPress
from presses.support.weights import last_part, model_name, named, observe_pieces, read

FILE = "model.safetensors"
"""Name of the file with the filters."""


@dataclass(frozen=True)
class QFilterPress(ScorerPress):
    """Projection on a learned direction.

    Attributes:
        weights: local file or folder, or hub id, with the filters; None for those published for the model.
        revision: of the hub repository.
    """

    weights: str | None = None
    revision: str = "main"

    @property
    def traits(self) -> Traits:
        """There is a recipe to learn what the press needs to know of a model."""
        return replace(super().traits, reads_hidden_states=False, has_recipe=True)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): minus the projection of each key on its head's filter."""
        filters = self.filters(layer).to(layer.keys)
        return -(layer.keys @ filters[layer.index, :, :, None]).squeeze(-1)

    def filters(self, layer: LayerObservation) -> Tensor:
        """(L, H, d): the filters of the model.

        Raises:
            ValueError: there are none, or they are another model's.
        """
        name = model_name(layer.module)
        known = last_part(name) if "405B" in name else last_part(name).replace("Meta-Llama", "Llama")
        description = f"query filters of {name or 'a model without a name'}"
        published = f"nthngdy/{known}_qfilt" if known else None
        tensors = read(self.weights or published, FILE, self.revision, description)
        config: Any = layer.module.config
        shape = config.num_hidden_layers, layer.kv_heads, layer.keys.shape[-1]
        return named(tensors, "q_filters", shape, description)

    def calibrate(self, model: nn.Module, pieces: Iterable[Sequence[int]], folder: Path) -> None:
        """Write the filters to `model.safetensors`.

        Each is the first right singular vector of a head's queries of all pieces. It points against the mean
        query (authors: against most queries); the vectors of a group are averaged.
        """
        save_file({"q_filters": -main_directions(model, pieces)}, folder / FILE)


def main_directions(model: nn.Module, pieces: Iterable[Sequence[int]]) -> Tensor:
    """(L, H, d): where queries mostly point to, the mean of a group's unit vectors.

    They are zeros in layers with sliding windows, which are left whole.
    """
    squares: dict[int, Tensor] = {}
    sums: dict[int, Tensor] = {}
    groups: dict[int, int] = {}

    def collect(layer: LayerObservation) -> None:
        queries = layer.queries()[0].double()  # (H * G, T, d)
        squares[layer.index] = squares.get(layer.index, 0) + queries.mT @ queries
        sums[layer.index] = sums.get(layer.index, 0) + queries.sum(1)
        groups[layer.index] = layer.group

    observe_pieces(model, pieces, collect)
    config: Any = model.config
    layers = config.get_text_config().num_hidden_layers
    filters: dict[int, Tensor] = {}
    for index, square in squares.items():
        direction = torch.linalg.eigh(square).eigenvectors[..., -1]  # (H * G, d)
        direction = direction * (direction * sums[index]).sum(-1, keepdim=True).sign()
        filters[index] = direction.unflatten(0, (-1, groups[index])).mean(1).float()
    nothing = torch.zeros_like(next(iter(filters.values())))
    return torch.stack([filters.get(index, nothing) for index in range(layers)]).contiguous()
