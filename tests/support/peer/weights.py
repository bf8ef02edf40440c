"""Made-up learned weights and texts in the published formats, equal in every environment.

Presses that need trained weights are compared on these; a recording names the function and the arguments are
the model's shapes.
"""

import json
from pathlib import Path

import numpy
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, ones

from tests.support.tiny_models import frozen_normal, frozen_uniform

DUO_SINK, DUO_RECENT = 16, 64
KVZAP_HIDDEN = 32
GATE_DIMENSION, GATE_SINKS = 16, 16
RESTORE_TOKENS, ADAPTER_RANK = 8, 4


def q_filters(layers: int, kv_heads: int, head_dim: int) -> Tensor:
    """Filters of QFilter (layers, heads, d)."""
    return frozen_normal("q_filters", (layers, kv_heads, head_dim))


def query_statistics(layers: int, heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Mean (layers, query heads, d) and covariance (…, d, d) of queries, for ExpectedAttentionStats."""
    mean = frozen_normal("query_mean", (layers, heads, head_dim))
    along = frozen_normal("query_cov", (layers, heads, head_dim))
    covariance = along.unsqueeze(-1) * along.unsqueeze(
        -2
    )  # products only, so that no sum depends on the machine
    covariance.diagonal(dim1=-2, dim2=-1).add_(0.5)
    return mean, covariance


def budget_curve(layers: int, kv_heads: int) -> NDArray[numpy.float32]:
    """Prune rates (99, layers, heads) of LU-KV; heads of row i differ by 0.3 around (i + 1) / 100."""
    ratios = numpy.arange(1, 100, dtype=numpy.float32)[:, None, None] / numpy.float32(100)
    offsets = (
        frozen_uniform("budget_curve", (1, layers, kv_heads)).numpy() - numpy.float32(0.5)
    ) * numpy.float32(0.6)
    return numpy.clip(ratios + offsets, numpy.float32(0), numpy.float32(0.99))


def head_scores(layers: int, kv_heads: int) -> NDArray[numpy.float64]:
    """Scores (layers, heads) of retrieval heads for DuoAttention; `DUO_SINK`, `DUO_RECENT` go with them."""
    return frozen_uniform("head_scores", (layers, kv_heads)).numpy().astype(numpy.float64)


def kvzap_state(kind: str, layers: int, hidden: int, kv_heads: int) -> dict[str, Tensor]:
    """State of a KVzap model by the published names; `kind` is "linear" or "mlp" (`KVZAP_HIDDEN` wide)."""
    state = {}
    for layer in range(layers):
        sizes = (
            {"": (kv_heads, hidden)}
            if kind == "linear"
            else {"0.": (KVZAP_HIDDEN, hidden), "2.": (kv_heads, KVZAP_HIDDEN)}
        )
        for part, (rows, columns) in sizes.items():
            name = f"layers.{layer}.{part}"
            state[f"{name}weight"] = (
                frozen_normal(f"kvzap {kind} {name}weight", (rows, columns)) / columns**0.5
            )
            state[f"{name}bias"] = frozen_normal(f"kvzap {kind} {name}bias", (rows,)) * 0.1
    return state


def gate_states(layers: int, hidden: int, kv_heads: int, group: int) -> list[dict[str, Tensor]]:
    """State of every layer's gate for FastKVzip, by the published names (`GATE_DIMENSION`, `GATE_SINKS`)."""
    shapes = {
        "q_proj.weight": (kv_heads * group * GATE_DIMENSION, hidden),
        "q_proj.bias": (kv_heads * group * GATE_DIMENSION,),
        "k_proj.weight": (kv_heads * GATE_DIMENSION, hidden),
        "k_base": (kv_heads, 1, GATE_SINKS, GATE_DIMENSION),
        "b": (kv_heads, 1, group),
    }
    states = []
    for layer in range(layers):
        state = {name: frozen_normal(f"gate {layer} {name}", shape) for name, shape in shapes.items()}
        for side in "qk":
            state[f"{side}_proj.weight"] *= hidden**-0.5
            state[f"{side}_norm.weight"] = ones(GATE_DIMENSION) + 0.1 * frozen_normal(
                f"gate {layer} {side}", (GATE_DIMENSION,)
            )
        states.append(state)
    return states


def restore_embeddings(hidden: int) -> Tensor:
    """RestoreKV's learned tokens (8, hidden)."""
    return frozen_normal("restore_embeddings", (RESTORE_TOKENS, hidden))


def save_restorekv(folder: Path, layers: int, hidden: int) -> None:
    """Write RestoreKV's learned tokens and its adapter of the attention's output, in the format of PEFT."""
    tensors = {}
    for layer in range(layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{name}.lora_A.weight"] = frozen_normal(f"{name} A", (ADAPTER_RANK, hidden)) / hidden**0.5
        tensors[f"{name}.lora_B.weight"] = frozen_normal(f"{name} B", (hidden, ADAPTER_RANK)) * 0.3
    config = {
        "peft_type": "LORA",
        "r": ADAPTER_RANK,
        "lora_alpha": 2 * ADAPTER_RANK,
        "target_modules": ["o_proj"],
        "bias": "none",
    }
    save_file({"restore_embeddings": restore_embeddings(hidden)}, folder / "restore_embeddings.safetensors")
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "task_type": "CAUSAL_LM", "inference_mode": True})
    )


def calibration_texts(count: int = 50, length: int = 300) -> list[str]:
    """Texts for DuoAttention's scoring on the fly: lower-case letters and spaces."""
    letters = numpy.array(list("abcdefghijklmnopqrstuvwxyz  "))
    stream = numpy.random.RandomState(7)
    return ["".join(letters[stream.randint(0, len(letters), length)]) for _ in range(count)]
