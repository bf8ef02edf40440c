"""Attention over per-head ragged caches: a function registered with transformers, and nothing patched.

Context entries and a row's own tokens are read where they lie: the logits of both parts meet in one softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from kvcache.cache import Block, CompressedLayer
from kvcache.hooks.decode_hooks import ForwardPass, run_decode_hooks
from kvcache.logits import cap_of, capped, sinks_of, softmax
from kvcache.matmul import fast, product
from kvcache.modules import attention_modules, decoder_of, window_of
from kvcache.observation import AttentionInputs, AttentionProbe, block_size
from kvcache.storage import KVStorage

NAME = "longpress"
"""Name of the registered attention implementation."""

QUERY_BLOCK = 1024
"""Queries per step of a masked dense attention, which bounds the mask to QUERY_BLOCK x T; fewer where T is very long."""

LOGITS = 2**22
"""Logits per step of an attention made of products: 16 MiB, more where that were fewer than `FEWEST` queries."""

FEWEST, MOST = 96, 256
"""Queries per product, all heads of a group together: fewer waste the product, more compute what a causal mask hides."""

MANY = 32
"""Queries and keys from which on products pay."""


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    ragged: CompressedLayer | None = None,
    attention_probe: AttentionProbe | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: query (R, H * G, n, d), key and value (R, H, *, d) to ((R, n, H * G, d), None).

    Args:
        module: the attention module; tells its sliding window, the cap of its logits and its sinks.
        query: queries of the last n positions.
        key: of the whole cache, or the new ones only where `ragged` is given.
        value: like key.
        attention_mask: always None: with this implementation transformers builds no mask.
        scaling: factor on the logits.
        ragged: the cache layer to read instead of key and value.
        attention_probe: to be told what the function was called with.
        kwargs: what models pass on; see `_check`.
    """
    _check(module, kwargs)
    if attention_probe is not None:
        attention_probe.queries, attention_probe.scaling = query[:, :, -2:].detach().clone(), scaling
    cap, sinks = cap_of(module), sinks_of(module)
    if ragged is not None:
        return _ragged(query, ragged, scaling, cap, sinks).transpose(1, 2).contiguous(), None
    if cap is not None or sinks is not None:
        return _dense_by_hand(query, key, value, scaling, window_of(module), cap, sinks).transpose(
            1, 2
        ).contiguous(), None
    return _dense(query, key, value, scaling, window_of(module)).transpose(1, 2).contiguous(), None


HARMLESS = ("position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k")
"""Tensors that models pass on to every attention function, of which a plain one needs nothing."""


def _check(module: nn.Module, passed: dict[str, Any]) -> None:
    """Refuse an attention that is more than we compute.

    Raises:
        ValueError: a cap or sinks that are not where we look for them, or a tensor that we know nothing of.
    """
    kind, cap = type(module).__name__, passed.get("softcap")
    if cap is not None and cap != cap_of(module):
        raise ValueError(
            f"{kind} caps its attention logits at {cap}, in a way that longpress does not support"
        )
    for name, value in passed.items():
        if isinstance(value, Tensor) and name not in HARMLESS and value is not sinks_of(module):
            raise ValueError(
                f"{kind} passes {name} of shape {tuple(value.shape)} to its attention, which longpress does not support"
            )


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
            return args, kwargs | {"ragged": layers[index]}
        return args, kwargs | {"attention_probe": AttentionProbe()}

    def act(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        layer = kwargs.get("ragged")
        if layer is not None and any(layer.decode_hooks):
            inputs = AttentionInputs.of_call(module, args, kwargs)
            run_decode_hooks(layer, ForwardPass(decoder, module, inputs))

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
    if n > 1 and fast(query, key, value):
        return _causal(query * scaling, key, value, window)
    if n == length and (window is None or length <= window):
        return functional.scaled_dot_product_attention(
            query, key, value, scale=scaling, enable_gqa=grouped, is_causal=True
        )
    out = torch.empty(*query.shape[:3], value.shape[-1], dtype=query.dtype, device=query.device)
    step = block_size(1, 2 * length, QUERY_BLOCK)
    for start in range(0, n, step):
        part = query[:, :, start : start + step]
        at = torch.arange(length - n + start, length - n + start + part.shape[2], device=query.device)[
            :, None
        ]
        seen = int(at[-1]) + 1
        keys = torch.arange(seen, device=query.device)
        mask = keys <= at if window is None else (keys <= at) & (keys > at - window)
        out[:, :, start : start + part.shape[2]] = functional.scaled_dot_product_attention(
            part, key[:, :, :seen], value[:, :, :seen], attn_mask=mask, scale=scaling, enable_gqa=grouped
        )
    return out


def _dense_by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None,
    cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """`_dense` for attentions with a cap or sinks, which the fused one does not know."""
    n, length, heads = query.shape[2], key.shape[2], key.shape[1]
    out = torch.empty(*query.shape[:3], value.shape[-1], dtype=query.dtype, device=query.device)
    step = block_size(query.shape[0] * query.shape[1], length, QUERY_BLOCK)
    for start in range(0, n, step):
        part = query[:, :, start : start + step]
        at = torch.arange(length - n + start, length - n + start + part.shape[2], device=query.device)[
            :, None
        ]
        first, seen = 0 if window is None else max(0, int(at[0]) + 1 - window), int(at[-1]) + 1
        keys = torch.arange(first, seen, device=query.device)
        hidden = keys > at if window is None else (keys > at) | (keys <= at - window)
        grouped = part.unflatten(1, (heads, -1))  # (R, H, G, m, d)
        logits = capped(grouped @ key[:, :, None, first:seen].transpose(3, 4) * scaling, cap).masked_fill(
            hidden, float("-inf")
        )
        attended = softmax(logits, sinks).to(value.dtype) @ value[:, :, None, first:seen]
        out[:, :, start : start + part.shape[2]] = attended.flatten(1, 2)
    return out


def _causal(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """As `_dense` for scaled queries, by `product`: a block of queries at a time, over what it sees.

    Ends are rounded up to few lengths: the library keeps half a megabyte for every shape it has met, and
    buffers of ever new sizes leave holes that none of the next fits into.
    """
    rows, query_heads, n, size = query.shape
    heads, length = key.shape[1:3]
    group = query_heads // heads
    out = query.new_empty(rows, heads, group, n, value.shape[-1])
    grouped = query.reshape(rows, heads, group, n, size)
    step, grain = _at_once(group, length), max(MOST, length // 16)
    for start in range(0, n, step):
        stop = min(n, start + step)
        seen, at = (
            length - n + stop,
            torch.arange(length - n + start, length - n + stop, device=query.device)[:, None],
        )
        first = 0 if window is None else max(0, seen - (stop - start) - window + 1)
        since = (
            seen - (stop - start) if window is None else first
        )  # keys from here on are hidden from some query
        end = min(length, -(-seen // grain) * grain)
        keys = torch.arange(since, end, device=query.device)
        bias = _minus_infinity(
            keys > at if window is None else (keys > at) | (keys <= at - window), query.dtype
        )
        for row in range(rows):
            for head in range(heads):
                here = (row, head, slice(None), slice(start, stop))
                part = grouped[here].reshape(-1, size)
                logits = product(part, key[row, head, first:end])
                logits.view(group, stop - start, -1)[..., since - first :] += bias
                out[here] = product(
                    torch.softmax(logits, -1, out=logits), value[row, head, first:end].t()
                ).view(group, stop - start, -1)
    return out.flatten(1, 2)


def _at_once(heads: int, length: int) -> int:
    """Queries of each of so many heads in one product with `length` keys."""
    return max(1, min(MOST, max(FEWEST, LOGITS // length)) // heads)


def _ragged(
    query: Tensor,
    layer: CompressedLayer,
    scaling: float,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of the last n tokens of every row over its kept context and its own tail: (R, H * G, n, d)."""
    rows, query_heads, n, size = query.shape
    length, heads = layer.longest, layer.tail_keys.shape[1]
    group = query_heads // heads
    grouped = (query * scaling).view(rows, heads, group, n, size)
    last = (
        layer.lengths[:, None] - n + torch.arange(n, device=query.device)
    )  # (R, n) index of each query in its row's tail
    window = layer.blocks[0].storage.window
    bias = None
    if n > 1 or not layer.even or window is not None:
        index = torch.arange(length, device=query.device)
        unseen = index > last[..., None]  # (R, n, length)
        if window is not None:
            unseen |= index <= last[..., None] - window
        bias = (
            _minus_infinity(unseen, query.dtype)[:, None, None]
            .expand(-1, -1, group, -1, -1)
            .reshape(rows, 1, group * n, length)
        )
    tail, tail_total = _part(
        grouped.flatten(2, 3), layer.tail_keys[:, :, :length], layer.tail_values[:, :, :length], bias, cap
    )
    tail, tail_total = tail.unflatten(2, (group, n)), tail_total.unflatten(2, (group, n))
    context, context_total = torch.empty_like(tail), torch.empty_like(tail_total)
    for block in layer.blocks:
        here = slice(block.start, block.stop)
        positions = None if block.storage.positions is None else layer.start[here, None] + last[here]
        read = _one_token if n == 1 else _many_tokens
        read(grouped[here], block, positions, context[here], context_total[here], cap)
    share = torch.sigmoid(context_total - tail_total)[
        ..., None
    ]  # of the softmax's weight that lies on the context
    out = torch.lerp(tail.float(), context.float(), share)
    if sinks is not None:
        total = torch.logaddexp(context_total, tail_total)  # (R, H, G, n)
        out = out * torch.sigmoid(total - sinks.float().view(1, heads, group, 1))[..., None]
    return out.to(query.dtype).flatten(1, 2)


def _one_token(
    query: Tensor, block: Block, at: Tensor | None, out: Tensor, total: Tensor, cap: float | None = None
) -> None:
    """Attention of one token a row over the storage that the rows share, read once for all of them.

    Args:
        query: (r, H, G, 1, d).
        block: with the storage.
        at: (r, 1) positions of the queries; None where the storage has no positions.
        out: (r, H, G, 1, d) to write to.
        total: (r, H, G, 1) to write to: logarithm of the sum of the exponentials.
        cap: of the logits, or None.
    """
    storage, bias = block.storage, block.bias
    query = query[..., 0, :].permute(1, 2, 0, 3)  # (H, G, r, d)
    may_see_nothing = block.has_empty_head
    if at is not None and storage.window is not None and storage.positions is not None:
        may_see_nothing = True
        passed = _minus_infinity(
            storage.positions[:, None] <= at - storage.window, query.dtype
        )  # (H or 1, r, K)
        bias = passed if bias is None else bias + passed
    attended, weight = _shared(
        query,
        storage,
        storage.keys,
        storage.values,
        None if bias is None else bias[:, None],
        may_see_nothing,
        cap,
        shared=True,
    )
    out[..., 0, :] = attended.permute(2, 0, 1, 3)
    total[..., 0] = weight.permute(2, 0, 1)


def _many_tokens(
    query: Tensor, block: Block, at: Tensor | None, out: Tensor, total: Tensor, cap: float | None = None
) -> None:
    """Attention of n tokens a row over what each row keeps, side by side: nothing is computed for what was removed.

    Args:
        query: (r, H, G, n, d).
        block: with the storage.
        at: (r, n) positions of the queries; None where the storage has no positions.
        out: (r, H, G, n, d) to write to.
        total: (r, H, G, n) to write to: logarithm of the sum of the exponentials.
        cap: of the logits, or None.
    """
    storage = block.storage.at_hand()  # moved and dequantised once, not for every row
    for row, kept in enumerate(block.rows):
        keys, values, padding, positions = replace(kept, storage=storage).read()
        hidden = None if padding is None else padding[:, None, None]  # (H, 1, 1, K)
        if at is not None and storage.window is not None and positions is not None:
            passed = (positions[:, None] <= at[row, :, None] - storage.window)[:, None]  # (H or 1, 1, n, K)
            hidden = passed if hidden is None else hidden | passed
        bias = None if hidden is None else _minus_infinity(hidden, query.dtype)
        out[row], total[row] = _shared(query[row], storage, keys, values, bias, True, cap)


def _shared(
    query: Tensor,
    storage: KVStorage,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    may_see_nothing: bool,
    cap: float | None = None,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention of (H, G, m, d) queries over entries (H, K, *) of `storage`, the same for the G query heads of a KV head.

    Args:
        query: scaled.
        storage: tells the channels of the keys.
        keys: (H, K, c).
        values: (H, K, d).
        bias: (H or 1, 1, m or 1, K).
        may_see_nothing: whether the bias may hide every entry from a query: a head may keep none.
        cap: of the logits, or None.
        shared: whether these entries are read again and again, so that products made for their number pay.

    Returns:
        (H, G, m, d) and, in float32, (H, G, m).
    """
    heads, group, many, _ = query.shape
    if keys.shape[1] == 0:  # a layer of which nothing is kept: fused attention would end the process
        nothing = query.new_zeros(heads, group, many, values.shape[-1])
        return nothing, torch.full(nothing.shape[:3], float("-inf"), device=query.device)
    if storage.channels is not None:
        query = query.gather(-1, storage.channels[:, None, None].expand(-1, group, many, -1))
    if bias is not None:
        bias = bias.expand(heads, 1, many, -1)
    out, total = _part(
        query,
        keys[:, None].expand(-1, group, -1, -1),
        values[:, None].expand(-1, group, -1, -1),
        bias,
        cap,
        shared,
    )
    if bias is not None and may_see_nothing:
        nothing = bias.isneginf().all(-1)
        out, total = out.masked_fill(nothing[..., None], 0.0), total.masked_fill(nothing, float("-inf"))
    return out, total


def _part(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    cap: float | None = None,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention over one part of what a query sees: the weighted values, and the logarithm of the sum of the exponentials.

    Args:
        query: (b, h, m, d), scaled.
        keys: (b, h, K, d); heads may be expanded.
        values: (b, h, K, d').
        bias: (b, 1 or h, m, K) added to the logits, 0 or -inf; every query sees something.
        cap: of the logits, or None.
        shared: see `_shared`; the keys and values are the same for all h.

    Returns:
        (b, h, m, d') and, in float32, (b, h, m).
    """
    if (
        shared
        and cap is None
        and min(query.shape[1] * query.shape[2], keys.shape[2]) >= MANY
        and fast(query, keys, values)
    ):
        out, total = _by_products(query, keys[:, 0], values[:, 0], bias)
    elif cap is None and query.device.type == "cpu" and keys.shape[-1] == values.shape[-1]:
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, attn_mask=bias, scale=1.0
        )
    else:
        logits = capped(_product(query, keys.transpose(2, 3)).float(), cap)
        if bias is not None:
            logits += bias
        total = logits.logsumexp(-1)
        out = _product((logits - total[..., None]).exp().to(values.dtype), values)
    return out, total


def _by_products(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `_part`, by `product`, of keys (b, K, d) and values (b, K, d') that are the same for all h."""
    several, heads, many, size = query.shape
    out, total = (
        query.new_empty(several, heads, many, values.shape[-1]),
        query.new_empty(several, heads, many),
    )
    step = _at_once(heads, keys.shape[1])
    for at in range(several):
        for start in range(0, many, step):
            here = (at, slice(None), slice(start, start + step))
            part = query[here]
            logits = product(part.reshape(-1, size), keys[at])
            if bias is not None:
                shaped = logits.view(*part.shape[:2], -1)
                shaped += bias[here]
            largest = logits.amax(-1)
            weights = torch.softmax(
                logits, -1, out=logits
            )  # in its place: new memory costs as much as the sum
            out[here] = product(weights, values[at].t()).view(*part.shape[:2], -1)
            total[here] = (largest - weights.amax(-1).log_()).view(
                part.shape[:2]
            )  # the largest weight is exp(largest - total)
    return out, total


def _product(left: Tensor, right: Tensor) -> Tensor:
    """(b, h, m, x) @ (b, h, x, y), as one product per b where `right` is one matrix expanded over h."""
    if right.stride(1) == 0:
        return (left.flatten(1, 2) @ right[:, 0]).unflatten(1, left.shape[1:3])
    return left @ right


def _minus_infinity(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """-inf where `hidden`, 0 elsewhere."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
