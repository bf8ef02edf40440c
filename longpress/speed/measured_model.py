"""Which model is measured: the embedded one, or random weights in the shape of a larger one.

Random weights take as long as trained ones. Their answers mean nothing and seldom end, so that all have their
full length, for both engines alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longpress.models.loading import LoadedModel

EMBEDDED = "smollm2"
"""Name of the embedded model, on the command line."""

_LLAMA_3 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "eos_token_id": None,
}
_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        **_LLAMA_3,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
        "rope_parameters": {**_ROPE, "factor": 8.0, "original_max_position_embeddings": 8192},
    },
    "llama-3.2-1b": {
        **_LLAMA_3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "rope_parameters": {**_ROPE, "factor": 32.0, "original_max_position_embeddings": 8192},
    },
}
"""Shapes of published models: `config.json` of meta-llama/Llama-3.1-8B and meta-llama/Llama-3.2-1B.

Their texts are tokenised by the embedded tokenizer.
"""


@dataclass(frozen=True)
class MeasuredModel:
    """A model to measure, as a process of its own is told of it.

    Attributes:
        name: `EMBEDDED`, or any other of a `shape`.
        shape: transformers' configuration of a model with random weights; None for the embedded one.
        dtype: of the weights.
        device: that holds them.
    """

    name: str = EMBEDDED
    shape: Mapping[str, Any] | None = None
    dtype: str = "float32"
    device: str = "cpu"

    @classmethod
    def named(cls, name: str, dtype: str, device: str) -> MeasuredModel:
        """The embedded model, or one of `SHAPES`."""
        return cls(name, SHAPES.get(name), dtype, device)

    @property
    def label(self) -> str:
        """For people."""
        what = "SmolLM2-135M-Instruct (embedded)" if self.shape is None else f"{self.name} (random weights)"
        return f"{what}, {self.dtype}"

    @property
    def window(self) -> int | None:
        """Tokens of prompt and answer; None: the embedded model says so itself."""
        return None if self.shape is None else int(self.shape["max_position_embeddings"])

    def load(self) -> LoadedModel:
        """The model at work. Random weights are the same in every process on the same device."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from longpress.models.loading import LoadedModel, ModelConfig, find_model, load_model

        embedded = ModelConfig(dtype=self.dtype, device=self.device)
        if self.shape is None:
            return load_model(embedded)
        assert self.window is not None
        known, config = find_model(embedded), AutoConfig.for_model(**self.shape)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, self.dtype)).eval()
        random = torch.Generator(self.device).manual_seed(0)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "norm" not in name:
                    weight.normal_(0.0, config.initializer_range, generator=random)
        return LoadedModel(model, known.tokenizer, self.name, "random", self.dtype, model.device, self.window)
