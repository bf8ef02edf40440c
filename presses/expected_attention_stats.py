"""Expected attention with statistics: keep what the model's typical queries attend to.

Mean and covariance of the queries before rotary embedding are those of many texts, and loaded, instead of the
context's own; the rest is expected_attention.
Source: Devoto et al. 2025, arXiv 2510.00636; statistics on the hub,
`alessiodevoto/exp_att_stats_<model>_<data>_<texts>_<length>_<sinks>`.
Differs: nothing. Statistics of other models are made by `calibrate`.
Cost: one d x d product per key and layer; no queries.
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
from presses.expected_attention import ExpectedAttentionPress, attention_of_normal_queries
from presses.support.checks import check_least
from presses.support.weights import model_name, named, observe_pieces, read

FILE = "model.safetensors"
"""Name of the file with the statistics."""


@dataclass(frozen=True)
class ExpectedAttentionStatsPress(ExpectedAttentionPress):
    """Expected attention of the model's typical queries.

    Attributes:
        n_future_positions: positions after the context over which the rotation is averaged.
        n_sink: first tokens, always kept; also part of the name of published statistics.
        use_covariance: whether the spread of the queries counts, beside their mean.
        use_vnorm: whether scores are multiplied by the norm of the value.
        epsilon: added to the attention before that, so that values alone can save an entry.
        dataset_name: of published statistics.
        num_samples: texts of published statistics.
        sample_seq_len: length of a text of published statistics.
        weights: local file or folder, or hub id; None for what is published for the model under these names.
        revision: of the hub repository.
    """

    dataset_name: str = "kmfoda/booksum"
    num_samples: int = 100
    sample_seq_len: int = 1000
    weights: str | None = None
    revision: str = "main"

    def __post_init__(self) -> None:
        """Refuse, besides, statistics of no text."""
        super().__post_init__()
        check_least(1, num_samples=self.num_samples, sample_seq_len=self.sample_seq_len)

    def attention(self, layer: LayerObservation, sinks: int) -> Tensor:
        """(B, H, T - sinks): expected attention of the loaded statistics.

        Raises:
            ValueError: there are none for the model, or they are another model's.
        """
        name = model_name(layer.module)
        description = f"query statistics of {name or 'a model without a name'}"
        data = f"{self.dataset_name.replace('/', '_')}_{self.num_samples}_{self.sample_seq_len}_{self.n_sink}"
        published = f"alessiodevoto/exp_att_stats_{name.replace('/', '_')}_{data}" if name else None
        tensors = read(self.weights or published, FILE, self.revision, description)
        config: Any = layer.module.config
        shape = config.num_hidden_layers, layer.kv_heads * layer.group, layer.keys.shape[-1]
        mean = named(tensors, "query_mean", shape, description)[layer.index].to(layer.keys)[None]
        covariance = None
        if self.use_covariance:
            of_layers = named(tensors, "query_cov", (*shape, shape[-1]), description)
            covariance = of_layers[layer.index].to(layer.keys)[None]
        return attention_of_normal_queries(layer, mean, covariance, self.n_future_positions, sinks)

    @property
    def traits(self) -> Traits:
        """There is a recipe to learn what the press needs to know of a model."""
        return replace(super().traits, has_recipe=True)

    def calibrate(self, model: nn.Module, pieces: Iterable[Sequence[int]], folder: Path) -> None:
        """Write mean and covariance of the queries of all pieces to `model.safetensors`.

        Those of the first `n_sink` tokens of each piece are left out.
        """
        mean, covariance = statistics_of(model, pieces, self.n_sink)
        save_file({"query_mean": mean, "query_cov": covariance}, folder / FILE)


def statistics_of(model: nn.Module, pieces: Iterable[Sequence[int]], n_sink: int) -> tuple[Tensor, Tensor]:
    """Mean (L, H * G, d) and covariance (L, H * G, d, d) of the queries before rotary embedding.

    They are zeros in layers that are left whole.

    Args:
        model: whose queries they are.
        pieces: of text, as token ids.
        n_sink: first tokens of each piece, left out.
    """
    count: dict[int, int] = {}
    sums: dict[int, Tensor] = {}
    squares: dict[int, Tensor] = {}

    def collect(layer: LayerObservation) -> None:
        queries = layer.queries_before_rope()[0, :, n_sink:].double()  # (H * G, T - s, d)
        count[layer.index] = count.get(layer.index, 0) + queries.shape[1]
        sums[layer.index] = sums.get(layer.index, 0) + queries.sum(1)
        squares[layer.index] = squares.get(layer.index, 0) + queries.mT @ queries

    observe_pieces(model, pieces, collect)
    config: Any = model.config
    layers = config.get_text_config().num_hidden_layers
    means = {index: sums[index] / n for index, n in count.items()}
    covariances = {
        index: (squares[index] - n * means[index][..., None] * means[index][..., None, :]) / max(1, n - 1)
        for index, n in count.items()
    }

    def stacked(parts: dict[int, Tensor]) -> Tensor:
        nothing = torch.zeros_like(next(iter(parts.values())))
        return torch.stack([parts.get(index, nothing) for index in range(layers)]).float().contiguous()

    return stacked(means), stacked(covariances)
