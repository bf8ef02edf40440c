"""A Llama checkpoint inside one GGUF file: its metadata, and its weights as transformers orders them.

Read here rather than by transformers because that takes 13 s for a model of 135M parameters (this: 2 s) and
needs `accelerate`. Source: the GGUF specification, version 3 (ggml, docs/gguf.md).
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor
from transformers import LlamaConfig

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF value type -> `struct` format."""

_STRING, _ARRAY = 8, 9
"""The GGUF value types that are no scalars."""

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of modules in GGUF -> in transformers' Llama."""

_SPECIAL_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
"""Names of special tokens in transformers -> in GGUF."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        shape: rows first, as torch has it.
        kind: type of the stored numbers.
        offset: bytes from the beginning of the file.
    """

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int


class GGUFFile:
    """A GGUF file, opened.

    Attributes:
        path: of the file.
        metadata: key -> value; arrays are lists.
        tensors: name -> where it lies.
    """

    def __init__(self, path: Path) -> None:
        """Read everything but the weights.

        Raises:
            ValueError: the file is broken, or no little-endian GGUF of version 2 or 3.
        """
        self.path = path
        with path.open("rb") as file:
            head = file.read(8)
            if head[:4] != b"GGUF" or head[4:] not in (b"\2\0\0\0", b"\3\0\0\0"):
                raise ValueError(
                    f"{path} is no GGUF file of version 2 or 3; download it again or convert it anew"
                )
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = len(head)
        try:
            self.metadata, self.tensors = self._read()
        except (struct.error, LookupError, ValueError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path} is a broken GGUF file; download it again") from error

    @cached_property
    def sha256(self) -> str:
        """Hash of the whole file."""
        return hashlib.sha256(self._bytes).hexdigest()

    @property
    def is_llama(self) -> bool:
        """Whether `config` and `weights` understand this file."""
        beyond = ("llama.expert_count", "llama.rope.scaling.type")
        return self.metadata.get("general.architecture") == "llama" and not any(
            key in self.metadata for key in beyond
        )

    def config(self) -> LlamaConfig:
        """The architecture as transformers describes it."""
        llama = {
            key.removeprefix("llama."): value
            for key, value in self.metadata.items()
            if key.startswith("llama.")
        }
        ids = {
            key: self.metadata.get(f"tokenizer.ggml.{name}_token_id") for key, name in _SPECIAL_TOKENS.items()
        }
        return LlamaConfig(
            vocab_size=self.tensors["token_embd.weight"].shape[0],
            hidden_size=llama["embedding_length"],
            intermediate_size=llama["feed_forward_length"],
            num_hidden_layers=llama["block_count"],
            num_attention_heads=llama["attention.head_count"],
            num_key_value_heads=llama.get("attention.head_count_kv", llama["attention.head_count"]),
            head_dim=llama.get("rope.dimension_count"),
            max_position_embeddings=llama["context_length"],
            rms_norm_eps=llama["attention.layer_norm_rms_epsilon"],
            rope_parameters={"rope_type": "default", "rope_theta": llama.get("rope.freq_base", 10000.0)},
            tie_word_embeddings="output.weight" not in self.tensors,
            **ids,
        )

    def weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Every parameter of the model, dequantised, under transformers' names.

        Raises:
            ValueError: a tensor that a Llama does not have.
        """
        heads = {
            "attn_q": self.metadata["llama.attention.head_count"],
            "attn_k": self.metadata.get("llama.attention.head_count_kv"),
        }
        weights = {}
        for stored_name, stored in self.tensors.items():
            *block, module, _ = stored_name.split(".")
            if module not in _NAMES:
                raise ValueError(
                    f"{self.path} has a tensor {stored_name} that a Llama does not have; "
                    "give a folder in safetensors format"
                )
            tensor = torch.from_numpy(self._dequantised(stored))
            if module in heads:
                tensor = _half_split(tensor, heads[module] or heads["attn_q"])
            prefix = f"model.layers.{block[1]}." if block else ""
            weights[f"{prefix}{_NAMES[module]}.weight"] = tensor.to(dtype)
        return weights

    def _dequantised(self, stored: StoredTensor) -> Any:
        """The numbers of a tensor, as a writable float32 array in its shape."""
        block_size, block_bytes = GGML_QUANT_SIZES[stored.kind]
        n_bytes = math.prod(stored.shape) // block_size * block_bytes
        raw = np.frombuffer(self._bytes, dtype=np.uint8, count=n_bytes, offset=stored.offset)
        numbers = dequantize(raw.reshape(*stored.shape[:-1], -1), stored.kind)
        return np.array(numbers, dtype=np.float32, copy=not numbers.flags.writeable).reshape(stored.shape)

    def _read(self) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
        """Metadata, and where each tensor lies: everything in front of the weights, in the file's order."""
        n_tensors, n_values = self._scalar("Q"), self._scalar("Q")
        metadata = {self._string(): self._value(self._scalar("I")) for _ in range(n_values)}
        tensors = dict(self._tensor_info() for _ in range(n_tensors))
        # Offsets count from the end of all this, aligned.
        alignment = metadata.get("general.alignment", 32)
        start = math.ceil(self._at / alignment) * alignment
        return metadata, {
            name: replace(tensor, offset=start + tensor.offset) for name, tensor in tensors.items()
        }

    def _scalar(self, letter: str) -> Any:
        """The next number, of a `struct` format."""
        (value,) = struct.unpack_from(f"<{letter}", self._bytes, self._at)
        self._at += struct.calcsize(f"<{letter}")
        return value

    def _string(self) -> str:
        """The next text, behind its length."""
        length = self._scalar("Q")
        self._at += length
        return self._bytes[self._at - length : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        """The next value, of a GGUF value type."""
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, length = self._scalar("I"), self._scalar("Q")
            return [self._value(inner) for _ in range(length)]
        return self._scalar(_SCALARS[kind])

    def _tensor_info(self) -> tuple[str, StoredTensor]:
        """Name and place of the next tensor, the offset as the file has it."""
        name, n_dimensions = self._string(), self._scalar("I")
        shape = tuple(self._scalar("Q") for _ in range(n_dimensions))[::-1]
        return name, StoredTensor(shape, GGMLQuantizationType(self._scalar("I")), self._scalar("Q"))


def _half_split(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of a projection to queries or keys, in transformers' order.

    GGUF has the two of a rotary pair side by side, transformers has them half a head apart.
    """
    pairs = weight.reshape(n_heads, -1, 2, weight.shape[1])  # (heads, d/2, 2, D)
    return pairs.transpose(1, 2).reshape(weight.shape)
