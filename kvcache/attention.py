"""Attention over per-head ragged caches: a function registered with transformers, and nothing patched.

Context entries and a row's own tokens are read where they lie: the logits of both parts meet in one softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from kvcache.cache import Block, CompressedLayer
from kvcache.following import follow
from kvcache.observation import attention_modules, decoder_of, window_of

NAME = "longpress"
"""Name of the registered attention implementation."""

QUERY_BLOCK = 1024
"""Queries per step of a masked dense attention, which bounds the mask to QUERY_BLOCK x T."""


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    ragged: CompressedLayer | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: query (R, H * G, n, d), key and value (R, H, *, d) to ((R, n, H * G, d), None).

    Args:
        module: the attention module; tells its sliding window.
        query: queries of the last n positions.
        key: of the whole cache, or the new ones only where `ragged` is given.
        value: like key.
        attention_mask: always None: with this implementation transformers builds no mask.
        scaling: factor on the logits.
        ragged: the cache layer to read instead of key and value.
        kwargs: what models pass on; `softcap` is refused.
    """
    if kwargs.get("softcap") is not None:
        raise ValueError(f"{type(module).__name__} caps its attention logits, which longpress does not support")
    if ragged is None:
        return _dense(query, key, value, scaling, window_of(module)).transpose(1, 2), None
    return _ragged(query, ragged, scaling).transpose(1, 2), None


AttentionInterface.register(NAME, attention_forward)


@contextmanager
def attending(model: nn.Module) -> Iterator[None]:
    """Inside, `model` reads `CompressedLayer`s; on ordinary caches it computes plain causal attention. Restores the model afterwards."""
    modules = attention_modules(model)
    config: Any = modules[0].config
    before = config._attn_implementation

    def offer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache = kwargs.get("cache") if kwargs.get("cache") is not None else kwargs.get("past_key_values")
        layers = getattr(cache, "layers", ())
        index: int = module.layer_idx  # type: ignore[assignment]
        if index < len(layers) and isinstance(layers[index], CompressedLayer):
            layers[index].armed = True
            kwargs = kwargs | {"ragged": layers[index]}
        return args, kwargs

    def act(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        layer = kwargs.get("ragged")
        if layer is not None and any(layer.followers):
            hidden = args[0] if args else kwargs["hidden_states"]
            follow(layer, decoder, module, hidden, *(kwargs["position_embeddings"] if "position_embeddings" in kwargs else args[1]))

    decoder = decoder_of(model)
    hooks = [module.register_forward_pre_hook(offer, with_kwargs=True) for module in modules]
    hooks += [module.register_forward_hook(act, with_kwargs=True) for module in modules]
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        for hook in hooks:
            hook.remove()


def _dense(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None) -> Tensor:
    """Causal attention of the last n positions over a whole cache: (R, H * G, n, d)."""
    n, length = query.shape[2], key.shape[2]
    grouped = key.shape[1] != query.shape[1]
    if n == 1 and (window is None or length <= window):
        return functional.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=grouped)
    if n == length and (window is None or length <= window):
        return functional.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=grouped, is_causal=True)
    out = torch.empty(*query.shape[:3], value.shape[-1], dtype=query.dtype, device=query.device)
    for start in range(0, n, QUERY_BLOCK):
        part = query[:, :, start : start + QUERY_BLOCK]
        at = torch.arange(length - n + start, length - n + start + part.shape[2], device=query.device)[:, None]
        seen = int(at[-1]) + 1
        keys = torch.arange(seen, device=query.device)
        mask = keys <= at if window is None else (keys <= at) & (keys > at - window)
        out[:, :, start : start + part.shape[2]] = functional.scaled_dot_product_attention(
            part, key[:, :, :seen], value[:, :, :seen], attn_mask=mask, scale=scaling, enable_gqa=grouped
        )
    return out


def _ragged(query: Tensor, layer: CompressedLayer, scaling: float) -> Tensor:
    """Attention of the last n tokens of every row over its kept context and its own tail: (R, H * G, n, d)."""
    rows, query_heads, n, size = query.shape
    length, heads = layer.longest, layer.tail_keys.shape[1]
    group = query_heads // heads
    grouped = (query * scaling).reshape(rows, heads, group * n, size)
    last = layer.lengths[:, None] - n + torch.arange(n, device=query.device)  # (R, n) index of each query in its row's tail
    window = layer.blocks[0].storage.window
    hidden = None
    if n > 1 or not layer.even or window is not None:
        index = torch.arange(length, device=query.device)
        hidden = index > last[..., None]
        if window is not None:
            hidden |= index <= last[..., None] - window
        hidden = hidden[:, None, None].expand(-1, -1, group, -1, -1).reshape(rows, 1, group * n, length)
    tail, tail_total = _part(grouped, layer.tail_keys[:, :, :length], layer.tail_values[:, :, :length], hidden)
    context, context_total = torch.empty_like(tail), torch.empty_like(tail_total)
    for block in layer.blocks:
        here = slice(block.start, block.stop)
        _block(grouped[here], block, layer.start[here, None] + last[here], n, context[here], context_total[here])
    share = torch.sigmoid(context_total - tail_total)[..., None]  # of the softmax's weight that lies on the context
    return torch.lerp(tail.float(), context.float(), share).to(query.dtype).view(rows, query_heads, n, -1)


def _block(query: Tensor, block: Block, at: Tensor, n: int, out: Tensor, total: Tensor) -> None:
    """Attention of rows that share a storage over that storage.

    Args:
        query: (r, H, G * n, d).
        block: with the storage.
        at: (r, n) positions of the queries.
        n: queries per head.
        out: (r, H, G * n, d) to write to.
        total: (r, H, G * n) to write to: logarithm of the sum of the exponentials.
    """
    rows, heads, many = query.shape[:3]
    storage, counts = block.storage, block.counts
    kept = storage.keys.shape[1]
    if storage.channels is not None:
        query = query.gather(-1, storage.channels[None, :, None].expand(rows, -1, many, -1))
    hidden = None
    if counts is not None:
        absent = torch.arange(kept, device=query.device) >= counts.T[..., None]  # (H, r, K)
        hidden = absent[:, :, None, None].expand(-1, -1, many // n, n, -1)
    if storage.window is not None and storage.positions is not None:
        passed = storage.positions[:, None, None] <= at[None, ..., None] - storage.window  # (H or 1, r, n, K)
        passed = passed[:, :, None].expand(heads, -1, many // n, -1, -1)
        hidden = passed if hidden is None else hidden | passed
    mask = None if hidden is None else hidden.reshape(1, heads, rows * many, kept)
    stacked = query.transpose(0, 1).reshape(1, heads, rows * many, -1)
    attended, weight = _part(stacked, storage.keys[None], storage.values[None], mask)
    out.copy_(attended.view(heads, rows, many, -1).transpose(0, 1))
    total.copy_(weight.view(heads, rows, many).transpose(0, 1))


def _part(query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention over one part of what a query sees: the weighted values, and the logarithm of the sum of the exponentials.

    Args:
        query: (b, H, m, d), scaled.
        keys: (b, H, K, d).
        values: (b, H, K, d').
        hidden: (b, 1 or H, m, K) bool, what is not seen; a query may see nothing of this part.

    Returns:
        (b, H, m, d') and, in float32, (b, H, m).
    """
    if query.device.type == "cpu" and keys.shape[-1] == values.shape[-1]:
        mask = None if hidden is None else query.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, keys, values, attn_mask=mask, scale=1.0)
    else:
        logits = (query @ keys.transpose(2, 3)).float()
        if hidden is not None:
            logits.masked_fill_(hidden, float("-inf"))
        total = logits.logsumexp(-1)
        out = (logits - total[..., None]).exp().to(values.dtype) @ values
    if hidden is not None:
        nothing = hidden.all(-1)  # a head may keep no entry at all
        out, total = out.masked_fill(nothing[..., None], 0.0), total.masked_fill(nothing, float("-inf"))
    return out, total
