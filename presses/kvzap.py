"""KVzap: a small learned model tells from a token's hidden state what KVzip would find.

score_t = log importance, from a linear map or a two-layer perceptron on the input of the attention, one per layer.
Source: Jegou & Jeblick 2026, arXiv 2601.07891; models on the hub, `nvidia/KVzap-<kind>-<model>`.
Differs: nothing. The paper compares the scores with a threshold: wrap it in dms.
Cost: one small matrix product per token and layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from kvcache.observation import LayerObservation
from kvcache.weights import last_part, model_name, named, read
from presses.scorer import ScorerPress


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

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): log importance.

        Raises:
            ValueError: nothing is published for the model, or the weights are another model's.
        """
        name = model_name(layer.module)
        wanted = f"KVzap weights ({self.model_type}) of {name or 'a model without a name'}"
        published = f"nvidia/KVzap-{self.model_type}-{last_part(name)}" if name else None
        tensors = read(self.weights or published, "model.safetensors", self.revision, wanted)
        config: Any = layer.module.config
        known = len({key.split(".")[1] for key in tensors if key.startswith("layers.")})
        if known != config.num_hidden_layers:
            raise ValueError(f"{wanted} must be for {config.num_hidden_layers} layers, got {known}; these weights belong to another model")
        prefix, hidden = f"layers.{layer.index}.", layer.hidden
        if self.model_type == "mlp":
            width = tensors[f"{prefix}0.weight"].shape[0] if f"{prefix}0.weight" in tensors else 0
            hidden = functional.gelu(self._linear(hidden, tensors, f"{prefix}0.", width, wanted))
            prefix = f"{prefix}2."
        return self._linear(hidden, tensors, prefix, layer.kv_heads, wanted).transpose(1, 2)

    def _linear(self, states: Tensor, tensors: Any, prefix: str, size: int, wanted: str) -> Tensor:
        weight = named(tensors, f"{prefix}weight", (size, states.shape[-1]), wanted)
        bias = named(tensors, f"{prefix}bias", (size,), wanted)
        return functional.linear(states, weight.to(states), bias.to(states))
