"""Multi-head latent attention (DeepSeek): what is cached, and how it is attended to without being expanded.

Such models cache of every token one latent vector, from which keys and values of all heads are made, and one
rotated vector that all heads share. That is an attention with a single KV head: its key is the rotated vector
with the latent one behind it, its value is the latent one. Queries are taken into the space of the latents
and what they attend to is taken out of it, so nothing is expanded; `entry` below is such a key (r + c
channels, r of them rotated), and the value is not stored beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvcache.linear import weight_of

NEEDED = ("kv_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "expand_kv", "o_proj")
"""What a latent attention of a kind that is known here has."""


def is_latent(module: Any) -> bool:
    """Whether an attention module caches latent vectors."""
    return all(hasattr(module, name) for name in NEEDED)


def rotated_channels(module: Any) -> int:
    """Number r of channels of an entry that rotary embedding turns; those behind them are the value."""
    return int(module.qk_rope_head_dim)


def entry_size(module: Any) -> int:
    """Number r + c of channels of an entry."""
    return int(module.kv_lora_rank) + rotated_channels(module)


def entries_of(latents: Tensor, rotated: Tensor) -> Tensor:
    """(B, 1, T, r + c): entries of latent (B, 1, T, c) and rotated vectors (B, 1, T, r)."""
    return torch.cat((rotated, latents), dim=-1)


def fuse(layer: Any, module: Any) -> None:
    """Lay what a cache layer of transformers holds of each token side by side, as entries.

    Its own two tensors become views of them, so that nothing is held twice.
    """
    entries, r = entries_of(layer.keys, layer.values), rotated_channels(module)
    layer.entries, layer.keys, layer.values = entries, entries[..., r:], entries[..., :r]


def stored(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values (B, H, T, *) of a cache layer of transformers, as they are to be stored.

    Of a fused one the entries, and values without channels.
    """
    entries = getattr(layer, "entries", None)
    if entries is None or entries.shape[2] != layer.keys.shape[2]:
        return layer.keys, layer.values
    return entries, entries[..., :0]


def seen(module: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values as presses see them, given as they are stored or as transformers caches them."""
    if not is_latent(module):
        return keys, values
    entries = keys if keys.shape[-1] == entry_size(module) else entries_of(keys, values)
    return entries, entries[..., rotated_channels(module) :]


def _to_heads(module: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """(G, n, c) and (G, v, c): the matrices that make the keys and the values of each head of latents."""
    weight = weight_of(module.kv_b_proj, int(module.kv_lora_rank), like)
    of_heads = weight.unflatten(0, (-1, module.qk_nope_head_dim + module.v_head_dim))
    return of_heads[:, : module.qk_nope_head_dim], of_heads[:, module.qk_nope_head_dim :]


def taken_in(module: Any, queries: Tensor) -> Tensor:
    """(B, G, m, r + c): queries (B, G, m, n + r), which meet entries as the model's meet its keys."""
    plain, rotated = queries.split([module.qk_nope_head_dim, module.qk_rope_head_dim], dim=-1)
    return torch.cat((rotated, plain @ _to_heads(module, queries)[0]), dim=-1)


def taken_out(module: Any, attended: Tensor) -> Tensor:
    """(B, G, m, v): what each head gives, of the latents (B, G, m, c) that it attends to."""
    return attended @ _to_heads(module, attended)[1].transpose(1, 2)


def output_weight(module: Any, like: Tensor | None) -> Tensor:
    """(G, c, D): what the attended latents of each query head pass through."""
    like = torch.empty(0) if like is None else like
    heads = int(module.config.num_attention_heads)
    projection = weight_of(module.o_proj, heads * int(module.v_head_dim), like).T
    return _to_heads(module, like)[1].transpose(1, 2) @ projection.unflatten(0, (heads, -1))


def queries_before_rope(module: Any, hidden: Tensor) -> Tensor:
    """(B, G, T, r + c): queries before rotary embedding, of hidden states (B, T, D)."""
    if getattr(module, "q_lora_rank", None) is None:
        flat = module.q_proj(hidden)
    else:
        flat = module.q_b_proj(module.q_a_layernorm(module.q_a_proj(hidden)))
    heads = flat.unflatten(-1, (int(module.config.num_attention_heads), -1)).transpose(1, 2)
    plain, rotated = heads.split([module.qk_nope_head_dim, module.qk_rope_head_dim], dim=-1)
    return taken_in(module, torch.cat((plain, _in_order(module, rotated)), dim=-1))


def keys_before_rope(module: Any, hidden: Tensor) -> Tensor:
    """(B, 1, T, r + c): entries before rotary embedding, of hidden states (B, T, D)."""
    sizes = [module.kv_lora_rank, module.qk_rope_head_dim]
    latents, rotated = module.kv_a_proj_with_mqa(hidden).split(sizes, dim=-1)
    return entries_of(module.kv_a_layernorm(latents), _in_order(module, rotated))[:, None]


def _in_order(module: Any, rotated: Tensor) -> Tensor:
    """The channels to be rotated, in the order in which the model rotates them."""
    if not getattr(module.config, "rope_interleave", False):
        return rotated
    return rotated.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
