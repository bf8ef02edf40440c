"""Tiny models whose weights are the same on every machine and with every library version.

A model's own initialisation changes between library versions, and its attention is nearly uniform. Here every
parameter is filled by its name from a frozen random stream, with scales that give peaked attention, so that
kept positions recorded elsewhere can be compared.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3")
LAYERS, HEADS, KV_HEADS, HEAD_DIM = 3, 4, 2, 16
VOCABULARY = 1031
PAD, EOS, BOS = 0, 1, 2
ORDINARY = 4
"""The first token id without a special meaning."""

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HEADS * HEAD_DIM,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 4096,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
    "tie_word_embeddings": False,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"head_dim": HEAD_DIM, "rope_parameters": _ROPE}),
    "mistral": (
        MistralConfig,
        MistralForCausalLM,
        {"head_dim": HEAD_DIM, "rope_parameters": _ROPE, "sliding_window": None},
    ),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"rope_parameters": _ROPE}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": HEAD_DIM, "rope_parameters": _ROPE}),
    "phi3": (Phi3Config, Phi3ForCausalLM, {"rope_parameters": _ROPE, "sliding_window": None}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            "head_dim": HEAD_DIM,
            "query_pre_attn_scalar": HEAD_DIM,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "sliding_window": 1024,
            "rope_parameters": {
                "sliding_attention": _ROPE,
                "full_attention": {**_ROPE, "rope_theta": 1000000.0},
            },
        },
    ),
}


def tiny_model(family: str, attention: str = "sdpa", **overrides: Any) -> PreTrainedModel:
    """A small float32 model of `family` in eval mode: the same bits at every call, for given shapes.

    Args:
        family: One of `FAMILIES`.
        attention: The attention implementation, "sdpa" or "eager".
        overrides: Other configuration values, as `sliding_window=64`.
    """
    config_class, model_class, own = _FAMILIES[family]
    config = config_class(**{**_COMMON, **own, **overrides}, attn_implementation=attention)
    with torch.random.fork_rng(
        devices=[]
    ):  # the initialisation, overwritten below, must not move the caller's random state
        model = model_class(config)
    fill(model)
    return model.to(torch.float32).eval()


def save_tiny_llama(folder: Path, tokenizer: Any, **sizes: int) -> None:
    """Write a Llama of two layers and a tokenizer, as checkpoints are published.

    Args:
        folder: to write into.
        tokenizer: of transformers, whose vocabulary the model has.
        sizes: hidden_size, intermediate_size and the like.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        **sizes,
    )
    model = LlamaForCausalLM(config)
    fill(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fill(model: torch.nn.Module) -> None:
    """Overwrite every parameter by values made from the model's type and the parameter's name and shape."""
    kind = type(model).__name__
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_values(kind, name, tuple(parameter.shape)))


def _values(kind: str, name: str, shape: tuple[int, ...]) -> Tensor:
    noise = frozen_normal(f"{kind} {name}", shape)
    if "norm" in name:
        centre = 1.35 if "q_norm" in name or "k_norm" in name else 1.0
        return noise * 0.1 + (centre - 1 if kind.startswith("Gemma") else centre)
    if len(shape) == 1:
        return noise * 0.3
    if "embed_tokens" in name:
        return noise
    gain = (
        1.35 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj")) else 1.0
    )  # logits with a deviation near 1.35² = 1.8
    return noise * (gain / shape[-1] ** 0.5)


def frozen_normal(name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 values seeded by `name`, from the stream that numpy keeps as it is."""
    return torch.from_numpy(numpy.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)).to(
        torch.float32
    )


def frozen_uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform float32 values in [0, 1) seeded by `name`, from the same frozen stream."""
    return torch.from_numpy(numpy.random.RandomState(zlib.crc32(name.encode())).random_sample(shape)).to(
        torch.float32
    )


def tiny_ids(n: int, batch: int = 1, seed: int = 0) -> Tensor:
    """Token ids (batch, n) without special ones, and without repeats as far as the vocabulary goes.

    The first layer's key of a repeated token has the same norm as before, which would tie.
    """
    stream = numpy.random.RandomState(seed)
    ordinary = numpy.arange(ORDINARY, VOCABULARY)
    rounds = -(-n // len(ordinary))
    rows = [
        numpy.concatenate([stream.permutation(ordinary) for _ in range(rounds)])[:n] for _ in range(batch)
    ]
    return torch.from_numpy(numpy.stack(rows)).to(torch.int64)


def smollm2_ids(n: int, seed: int = 0) -> Tensor:
    """Token ids (1, n) for SmolLM2: ordinary tokens without repeats, in a fixed random order."""
    return torch.from_numpy(
        numpy.random.RandomState(seed).permutation(numpy.arange(1000, 41000))[None, :n]
    ).to(torch.int64)
