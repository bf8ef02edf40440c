"""Queries and keys before rotary embedding, recomputed from a layer's hidden states, for each family."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kvcache import latent
from kvcache.linear import part_of, weight_of


def head_size(module: Any) -> int:
    """Size d of one key. Configurations of Qwen2 and Phi3 do not name it, their attention modules do."""
    return latent.entry_size(module) if latent.is_latent(module) else int(module.head_dim)


def query_heads(module: Any) -> int:
    """Number H * G of query heads."""
    return int(module.config.num_attention_heads)


def kv_heads(module: Any) -> int:
    """Number H of KV heads, of this layer where layers differ.

    Raises:
        AttributeError: neither module nor configuration says it.
    """
    if latent.is_latent(module):
        return 1
    # Configurations whose layers differ (Gemma 4) refuse to give one number for all of them.
    group = getattr(module, "num_key_value_groups", None)
    if group is not None:
        return query_heads(module) // int(group)
    return int(module.config.num_key_value_heads)


def has_kv_heads(module: Any) -> bool:
    """Whether `kv_heads` is known."""
    return hasattr(module, "num_key_value_groups") or hasattr(module.config, "num_key_value_heads")


def queries_before_rope(module: Any, hidden: Tensor) -> Tensor:
    """(B, H * G, T, d): queries before rotary embedding, of hidden states (B, T, D) after the input norm."""
    if latent.is_latent(module):
        return latent.queries_before_rope(module, hidden)
    n_heads, size = query_heads(module), head_size(module)
    if hasattr(module, "q_proj"):
        flat = module.q_proj(hidden)
        if flat.shape[-1] == 2 * n_heads * size:  # Qwen3-Next: of every head its queries, then its gate
            flat = flat.unflatten(-1, (n_heads, 2, size))[..., 0, :].flatten(-2)
    elif hasattr(module, "qkv_proj"):  # Phi3: queries, keys, values fused in this order
        flat = part_of(module.qkv_proj, hidden, 0, n_heads * size)
    else:
        raise ValueError(_unknown(module, "q_proj or qkv_proj"))
    return _heads(flat, size, _norm(module, "q"))


def keys_before_rope(module: Any, hidden: Tensor) -> Tensor:
    """(B, H, T, d): keys before rotary embedding, of hidden states (B, T, D) after the input norm."""
    if latent.is_latent(module):
        return latent.keys_before_rope(module, hidden)
    n_heads, size = kv_heads(module), head_size(module)
    if hasattr(module, "k_proj"):
        flat = module.k_proj(hidden)
    elif hasattr(module, "qkv_proj"):
        start = query_heads(module) * size
        flat = part_of(module.qkv_proj, hidden, start, start + n_heads * size)
    else:
        raise ValueError(_unknown(module, "k_proj or qkv_proj"))
    keys = _heads(flat, size, _norm(module, "k"))
    return keys * getattr(module, "key_multiplier", 1.0)  # of Falcon-H1


def output_weight(module: Any, like: Tensor | None = None) -> Tensor:
    """(H * G, d, D): the slice of the output projection that each query head's result passes through.

    A gate on the result (Qwen3-Next, Qwen3.5) is not in it: it differs from token to token.

    Args:
        module: an attention module.
        like: in the type and on the device of the heads' results; None: float32 on the CPU.

    Raises:
        ValueError: there is no output projection, or it tells no weights (`weight_of`).
    """
    if latent.is_latent(module):
        return latent.output_weight(module, like)
    names = ("o_proj", "dense", "out_proj")  # Phi has a `dense`, LFM2 an `out_proj`
    projection = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    if projection is None:
        raise ValueError(_unknown(module, "o_proj or dense", "output"))
    heads, size = query_heads(module), head_size(module)
    return weight_of(projection, heads * size, like).T.reshape(heads, size, -1)


def _norm(module: Any, of: str) -> nn.Module | None:
    """The norm of queries ("q") or keys ("k"), where there is one; LFM2 calls it `q_layernorm`."""
    return getattr(module, f"{of}_norm", getattr(module, f"{of}_layernorm", None))


def _heads(flat: Tensor, size: int, norm: nn.Module | None) -> Tensor:
    """(B, T, heads * d) to (B, heads, T, d), with the query or key norm where there is one.

    Qwen3 and Gemma3 have it per head, OLMo2 over all heads.
    """
    weight: Any = getattr(norm, "weight", None)
    if norm is not None and weight is not None and weight.shape[-1] == flat.shape[-1] != size:
        flat, norm = norm(flat), None
    split = flat.unflatten(-1, (-1, size))
    return (norm(split) if norm is not None else split).transpose(1, 2)


def _unknown(module: Any, projections: str, what: str = "queries and keys") -> str:
    return (
        f"{type(module).__name__} has no {projections}: longpress does not know how this attention computes "
        f"its {what}"
    )
