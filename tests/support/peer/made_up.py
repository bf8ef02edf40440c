"""Presses of kvpress that load trained weights, given made-up ones in their place; needs kvpress.

Only the loading is replaced, by the methods that kvpress has for it; what is done with the weights is
kvpress's own.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from kvpress import (
    DuoAttentionPress,
    ExpectedAttentionStatsPress,
    FastKVzipPress,
    KVgradPress,
    KVzapPress,
    KVzipPress,
    LUKVPress,
    QFilterPress,
    RestoreKVPress,
)
from kvpress.presses.fastkvzip_press import FastKVzipGate
from kvpress.presses.kvzap_press import KVzapConfig, KVzapModel
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.peer import weights


def shapes(model: PreTrainedModel) -> tuple[int, int, int, int, int]:
    """Layers, query heads, key-value heads, head size and hidden size."""
    config = model.config
    head_dim = model.model.layers[0].self_attn.head_dim
    return (
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        head_dim,
        config.hidden_size,
    )


class QFilter(QFilterPress):
    """QFilter with `weights.q_filters`."""

    def post_init_from_model(self, model: PreTrainedModel) -> None:
        """Make the filters up."""
        layers, _, kv_heads, head_dim, _ = shapes(model)
        self.q_filters = weights.q_filters(layers, kv_heads, head_dim)


class ExpectedAttentionStats(ExpectedAttentionStatsPress):
    """ExpectedAttentionStats with `weights.query_statistics`."""

    def post_init_from_model(self, model: PreTrainedModel) -> None:
        """Make the statistics up."""
        layers, heads, _, head_dim, _ = shapes(model)
        self.mu, self.cov = weights.query_statistics(layers, heads, head_dim)


class LUKV(LUKVPress):
    """LUKV with `weights.budget_curve`."""

    def _load_budget_curves(self, model: PreTrainedModel) -> Any:
        layers, _, kv_heads, _, _ = shapes(model)
        return weights.budget_curve(layers, kv_heads)


class DuoAttention(DuoAttentionPress):
    """DuoAttention with `weights.head_scores`."""

    @staticmethod
    def load_attention_pattern(model: PreTrainedModel) -> tuple[int, int, Any]:
        """Sink size, recent size, and scores of heads."""
        layers, _, kv_heads, _, _ = shapes(model)
        return weights.DUO_SINK, weights.DUO_RECENT, weights.head_scores(layers, kv_heads)


class KVzap(KVzapPress):
    """KVzap with `weights.kvzap_state`."""

    def post_init_from_model(self, model: PreTrainedModel) -> None:
        """Make the surrogate model up."""
        layers, _, kv_heads, _, hidden = shapes(model)
        width = None if self.model_type == "linear" else weights.KVZAP_HIDDEN
        self.kvzap_model = KVzapModel(
            KVzapConfig(input_dim=hidden, output_dim=kv_heads, n_modules=layers, hidden_dim=width)
        )
        self.kvzap_model.load_state_dict(weights.kvzap_state(self.model_type, layers, hidden, kv_heads))


class FastKVzip(FastKVzipPress):
    """FastKVzip with `weights.gate_states`."""

    def post_init_from_model(self, model: PreTrainedModel) -> None:
        """Make the gates up."""
        layers, heads, kv_heads, _, hidden = shapes(model)
        group = heads // kv_heads
        self.gates = []
        for index, state in enumerate(weights.gate_states(layers, hidden, kv_heads, group)):
            gate = FastKVzipGate(
                index, hidden, kv_heads, group, torch.float32, weights.GATE_DIMENSION, weights.GATE_SINKS
            )
            gate.load_state_dict(state)
            self.gates.append(gate)

    def compress_post(self, model: PreTrainedModel) -> None:
        """Remember the scores too."""
        self.recorded_scores = [scores[0].clone() for scores in self.score_val]
        super().compress_post(model)


class _Replaying:
    """Remembers the replayed token ids and the scores, which kvpress forgets."""

    def prepare(self, model: PreTrainedModel, tokenizer: Any, *arguments: Any) -> list[tuple[Tensor, Tensor]]:
        pairs = super().prepare(model, tokenizer, *arguments)
        self.recorded_replays = [fed[0].clone() for _, fed in pairs]
        self.recorded_prefix = self.prefix_length
        return pairs

    def compress_post(self, model: PreTrainedModel) -> None:
        self.recorded_scores = [scores[0].clone() for scores in self.score_val]
        super().compress_post(model)


class KVzip(_Replaying, KVzipPress):
    """KVzip that remembers."""


class KVgrad(_Replaying, KVgradPress):
    """KVgrad that remembers."""


class RestoreKV(RestoreKVPress):
    """RestoreKV with the tokens and the adapter of `weights.save_restorekv`."""

    def post_init_from_model(self, model: PreTrainedModel) -> None:
        """Make them up."""
        layers, _, _, _, hidden = shapes(model)
        self.restore_embeddings = weights.restore_embeddings(hidden)
        if self.adapter_name not in getattr(model, "peft_config", {}):
            with tempfile.TemporaryDirectory() as folder:
                weights.save_restorekv(Path(folder), layers, hidden)
                model.load_adapter(folder, adapter_name=self.adapter_name)
        model.disable_adapters()


def save_tokenizers(folder: Path) -> None:
    """Write the tokenizer of bytes where presses look: "template" has a chat template, "plain" has none."""
    from tests.support.byte_tokenizer import byte_tokenizer

    byte_tokenizer(chat_template=True).save_pretrained(folder / "template")
    byte_tokenizer(chat_template=False).save_pretrained(folder / "plain")
