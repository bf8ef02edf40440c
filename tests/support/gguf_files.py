"""Tiny models as GGUF files, written as llama.cpp's converter writes them."""

import string
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import MODEL_ARCH
from torch import nn

TOKENS = [*string.ascii_letters, *string.digits, "ab", "<|end|>"]
"""A vocabulary of 64 tokens for byte-level BPE."""

ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gemma3": MODEL_ARCH.GEMMA3,
    "gemma2": MODEL_ARCH.GEMMA2,
    "phi3": MODEL_ARCH.PHI3,
}


def described(architecture: str, config: Any) -> dict[str, Any]:
    """What the converter writes of a configuration, without what is about rotary scaling."""
    rope = config.rope_parameters
    of_full = rope.get("full_attention", rope)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    stated = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(of_full["rope_theta"]),
    }
    if architecture in ("llama", "phi3"):
        stated["rope.dimension_count"] = int(head * of_full.get("partial_rotary_factor", 1.0))
    if architecture in ("llama", "qwen3", "gemma2", "gemma3"):
        stated |= {"attention.key_length": head, "attention.value_length": head}
    if architecture == "llama":
        stated["vocab_size"] = config.vocab_size
    if architecture in ("gemma2", "gemma3"):
        stated["attention.sliding_window"] = config.sliding_window
    if architecture == "gemma2":
        stated["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        stated["final_logit_softcapping"] = float(config.final_logit_softcapping)
    return stated


def write_gguf(
    path: Path,
    architecture: str,
    model: nn.Module | None,
    stated: dict[str, Any],
    tokenizer: dict[str, Any] | None = None,
    tables: dict[str, list[float]] | None = None,
) -> Path:
    """Write a file.

    Args:
        path: of the file.
        architecture: llama.cpp's name of the family.
        model: whose weights it holds, in float32; None: none.
        stated: of the architecture, keys without prefix.
        tokenizer: keys below `tokenizer.ggml` instead of those of a small byte-level BPE.
        tables: tensors of rotary factors.
    """
    writer = gguf.GGUFWriter(path, architecture)
    of_tokenizer = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": TOKENS,
        "token_type": [1] * 63 + [3],
        "merges": ["a b"],
        "eos_token_id": 63,
    }
    of_tokenizer = of_tokenizer if tokenizer is None else tokenizer
    for prefix, values in ((architecture, stated), ("tokenizer.ggml", of_tokenizer)):
        for key, value in values.items():
            add(writer, f"{prefix}.{key}", value)
    for name, numbers in (tables or {}).items():
        writer.add_tensor(name, np.array(numbers, dtype=np.float32))
    if model is not None:
        layers = stated["block_count"]
        names = gguf.get_tensor_name_map(ARCHITECTURES[architecture], layers)
        tied = model.config.tie_word_embeddings
        for name, weight in model.state_dict().items():
            if tied and name == "lm_head.weight":
                continue
            module, kind = name.rsplit(".", 1)
            if architecture == "llama" and module.endswith(("q_proj", "k_proj")):
                heads = stated[f"attention.head_count{'_kv' if module.endswith('k_proj') else ''}"]
                halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
                weight = halves.transpose(1, 2).reshape(weight.shape)
            if architecture.startswith("gemma") and module.endswith("norm"):
                weight = weight + 1
            writer.add_tensor(f"{names.get_name(module)}.{kind}", weight.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Write a value under a key, of the type that Python gives it."""
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def llama3_factors(config: Any) -> list[float]:
    """What the converter writes as `rope_freqs.weight` of a Llama 3.1: each frequency's divisor."""
    rope = config.rope_parameters
    size = config.head_dim
    frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2) / size)
    lengths = (2 * torch.pi / frequencies).tolist()
    original, low, high = (
        rope[name] for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    factors = []
    for length in lengths:
        if length < original / high:
            factors.append(1.0)
        elif length > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / length - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return factors
