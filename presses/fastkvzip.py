"""Fast KVzip: a small learned gate tells from a token's hidden state what KVzip would find.

All layers and heads compete. With q, k the normalised projections of the hidden state to 16 channels and s_i
learned vectors: score_t = 1 / (1 + Σ_i exp(s_i·q/4 - (k·q/4 + b))), averaged over the query heads of a group.
Source: Kim et al. 2026, arXiv 2601.17668; gates of the authors on the hub, `Jang-Hyun/Fast-KVzip`.
Differs: head-wise budgets are real; several contexts at a time. Gates of other models have to be trained by
gradient descent, with the authors' code; for what is computed from texts alone see kvzap.
Cost: two small matrix products per token and layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kvcache.budget import Budget
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from presses.base import BasePress
from presses.support.budgets import highest_together, kept_together
from presses.support.checks import check_least, check_share
from presses.support.scores import pin
from presses.support.weights import last_part, model_name, named, read

HUB = "Jang-Hyun/Fast-KVzip"
"""Where the authors publish their gates."""

CHANNELS, VECTORS = 16, 16
"""Channels and learned vectors of the published gates, part of their file names."""

LONG = 32_000
"""Tokens from which on the window has a fixed size."""


@dataclass(frozen=True)
class FastKVzipPress(BasePress):
    """Learned importance, pruned globally.

    Attributes:
        compression_ratio: fraction of all entries removed, in [0, 1).
        layerwise: whether every layer has the same budget.
        n_sink: first tokens, always kept.
        window_size: last tokens that are always kept of contexts of 32,000 tokens or more.
        window_ratio: share of a shorter context that is always kept at its end.
        weights: local .pt file or folder, or hub id; None for the authors' gates.
        revision: of the hub repository.
    """

    compression_ratio: float = 0.0
    layerwise: bool = False
    n_sink: int = 4
    window_size: int = 4096
    window_ratio: float = 0.02
    weights: str | None = None
    revision: str = "main"

    def __post_init__(self) -> None:
        """Refuse ratios outside [0, 1) and negative windows."""
        super().__post_init__()
        check_least(0, "token", n_sink=self.n_sink)
        check_least(1, "token", window_size=self.window_size)
        check_share(of="the context", window_ratio=self.window_ratio)

    def observe(self, layer: LayerObservation) -> Tensor:
        """(B, H, T) float32: the gate's scores, sinks and window on top.

        Raises:
            ValueError: there is no gate for the model, or it is another model's.
        """
        name = last_part(model_name(layer.module)).lower()
        description = f"Fast KVzip gates of {name or 'a model without a name'}"
        file = f"{name}/q{layer.group}_dim{CHANNELS}_sink{VECTORS}.pt"
        stored = read(self.weights or (HUB if name else None), file, self.revision, description)
        gates = stored.get("module") if isinstance(stored, dict) else None
        config: Any = layer.module.config
        if not isinstance(gates, list) or len(gates) != config.num_hidden_layers:
            raise ValueError(
                f"the file with {description} must hold a list 'module' of {config.num_hidden_layers} gates, "
                "one per layer"
            )
        tokens = layer.tokens
        window = max(1, int(tokens * self.window_ratio)) if tokens < LONG else self.window_size
        sinks = min(self.n_sink, tokens)
        return pin(gate_scores(layer, gates[layer.index], description), sinks, min(window, tokens - sinks))

    def select(self, evidence: Sequence[Tensor], budget: Budget) -> list[Selection]:
        """The highest scores of all layers and heads; a head may keep nothing."""
        tokens, heads = evidence[0].shape[-1], evidence[0].shape[1]
        kept = kept_together(len(evidence), heads, tokens, budget, by_layer=self.layerwise)
        return highest_together(evidence, kept, by_layer=self.layerwise)

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """All entries but `int(n · ratio)`, of all layers together or of each."""
        exact = kept_together(layers, heads, tokens, budget, by_layer=self.layerwise)
        return exact, exact


def gate_scores(layer: LayerObservation, gate: Any, description: str) -> Tensor:
    """(B, H, T) float32: what the gate of a layer says of the layer's hidden states.

    Args:
        layer: with the hidden states.
        gate: parameters by their published names.
        description: of the gates, for error messages.
    """
    heads, group, width, size = layer.kv_heads, layer.group, layer.hidden.shape[-1], CHANNELS

    def parameter(name: str, *shape: int) -> Tensor:
        return named(gate, name, shape, description).to(layer.hidden.device, torch.float32)

    vectors = gate["k_base"].shape[2] if isinstance(gate, dict) and "k_base" in gate else VECTORS
    hidden = layer.hidden.float()
    rows = heads * group * size

    # The projections, normalised: (B, T, H, G, 16) and (B, T, H, 1, 16).
    weight, bias = parameter("q_proj.weight", rows, width), parameter("q_proj.bias", rows)
    queries = functional.linear(hidden, weight, bias).unflatten(-1, (heads, group, size))
    queries = _normalised(queries, parameter("q_norm.weight", size))
    weight = parameter("k_proj.weight", heads * size, width)
    keys = functional.linear(hidden, weight).unflatten(-1, (heads, 1, size))
    keys = _normalised(keys, parameter("k_norm.weight", size))

    # A query's product with the key of its own token, against those with the learned vectors.
    own = (queries * keys).sum(-1) / size**0.5 + parameter("b", heads, 1, group)[:, 0]  # (B, T, H, G)
    learned = parameter("k_base", heads, 1, vectors, size)[:, 0]
    others = queries @ learned.mT / size**0.5  # (B, T, H, G, vectors)
    return (own - others.logsumexp(-1)).sigmoid().mean(-1).transpose(1, 2)


def _normalised(states: Tensor, weight: Tensor) -> Tensor:
    return states * (states.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
