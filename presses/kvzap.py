"""KVzap: a small learned model tells from a token's hidden state what KVzip would find.

score_t = log importance, from a linear map or a two-layer perceptron on the input of the attention, one per
layer.
Source: Jegou & Jeblick 2026, arXiv 2601.07891; models on the hub, `nvidia/KVzap-<kind>-<model>`.
Differs: nothing. The paper compares the scores with a threshold: wrap it in dms. `calibrate` fits the linear
model to KVzip+'s scores of texts, by least squares; the perceptron has to be trained by gradient descent,
with the authors' code.
Cost: one small matrix product per token and layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.kvzip import KVzipPress
from presses.scorer import ScorerPress
from presses.support.weights import last_part, model_name, named, prefilled, read

RIDGE = 1e-4
"""Added to the diagonal of the normal equations, as a share of its mean."""

SMALLEST = 1e-8
"""Lowest score whose logarithm is fitted; lower ones, of tokens that no repetition reads, count as this."""


@dataclass(frozen=True)
class KVzapPress(ScorerPress):
    """Learned importance.

    Attributes:
        model_type: "linear" or "mlp", the kind of the learned model.
        weights: local file or folder, or hub id; None for what is published for the model.
        revision: of the hub repository.
    """

    model_type: str = "mlp"
    weights: str | None = None
    revision: str = "main"

    def __post_init__(self) -> None:
        """Refuse an unknown kind."""
        super().__post_init__()
        if self.model_type not in ("linear", "mlp"):
            raise ValueError(f"model_type={self.model_type!r} must be linear or mlp")

    @property
    def traits(self) -> Traits:
        """There is a recipe to learn what the press needs to know of a model."""
        return replace(super().traits, has_recipe=True)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): log importance.

        Raises:
            ValueError: nothing is published for the model, or the weights are another model's.
        """
        name = model_name(layer.module)
        description = f"KVzap weights ({self.model_type}) of {name or 'a model without a name'}"
        published = f"nvidia/KVzap-{self.model_type}-{last_part(name)}" if name else None
        tensors = read(self.weights or published, "model.safetensors", self.revision, description)
        config: Any = layer.module.config
        layers = len({key.split(".")[1] for key in tensors if key.startswith("layers.")})
        if layers != config.num_hidden_layers:
            raise ValueError(
                f"{description} must be for {config.num_hidden_layers} layers, got {layers}; these weights "
                "belong to another model"
            )
        prefix, hidden = f"layers.{layer.index}.", layer.hidden
        if self.model_type == "mlp":
            width = tensors[f"{prefix}0.weight"].shape[0] if f"{prefix}0.weight" in tensors else 0
            hidden = functional.gelu(self._linear(hidden, tensors, f"{prefix}0.", width, description))
            prefix = f"{prefix}2."
        return self._linear(hidden, tensors, prefix, layer.kv_heads, description).transpose(1, 2)

    def calibrate(self, model: nn.Module, pieces: Iterable[Sequence[int]], folder: Path) -> None:
        """Write the linear model of all pieces to `model.safetensors`.

        Raises:
            ValueError: the perceptron is asked for.
        """
        if self.model_type != "linear":
            raise ValueError(
                "model_type=mlp has to be trained by gradient descent, which longpress does not do; give "
                "presses.kvzap.model_type=linear"
            )
        save_file(fitted(model, pieces), folder / "model.safetensors")

    def _linear(self, states: Tensor, tensors: Any, prefix: str, size: int, description: str) -> Tensor:
        weight = named(tensors, f"{prefix}weight", (size, states.shape[-1]), description)
        bias = named(tensors, f"{prefix}bias", (size,), description)
        return functional.linear(states, weight.to(states), bias.to(states))


def fitted(model: nn.Module, pieces: Iterable[Sequence[int]]) -> dict[str, Tensor]:
    """Weights (H, D) and biases (H,) of each layer, by their published names.

    By them hidden states tell the logarithm of KVzip+'s scores. They are 0 in layers that are left whole.
    """
    teacher = KVzipPress(n_sink=0, kvzip_plus_normalization=True)
    squares: dict[int, Tensor] = {}
    products: dict[int, Tensor] = {}
    for piece in pieces:
        rows: dict[int, Tensor] = {}

        def collect(layer: LayerObservation, rows: dict[int, Tensor] = rows) -> None:
            rows[layer.index] = functional.pad(layer.hidden[0].double(), (0, 1), value=1.0)  # (T, D + 1)

        prefill = prefilled(model, piece, collect)
        for index, scores in zip(prefill.layers, teacher.probe(prefill, []), strict=True):
            targets = scores[0].double().clamp(min=SMALLEST).log().T  # (T, H)
            squares[index] = squares.get(index, 0) + rows[index].T @ rows[index]
            products[index] = products.get(index, 0) + rows[index].T @ targets

    # The normal equations of each layer, solved.
    config: Any = model.config
    weights: dict[str, Tensor] = {}
    nothing = torch.zeros_like(next(iter(products.values())))
    for index in range(config.get_text_config().num_hidden_layers):
        solution = nothing
        if index in squares:
            square = squares[index]
            square.diagonal().add_(RIDGE * square.diagonal().mean())
            solution = torch.linalg.solve(square, products[index])
        weights[f"layers.{index}.weight"] = solution[:-1].T.float().contiguous()
        weights[f"layers.{index}.bias"] = solution[-1].float().contiguous()
    return weights
