"""Attention over compressed caches, whose heads keep different entries.

A function registered with transformers; nothing of a model is patched. Context entries and a row's own tokens
are read where they lie: each part gives its weighted values and the sum of its exponentials, and the two meet
in one softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from kvcache.cache import CompressedLayer
from kvcache.hooks.decode_hooks import ForwardPass, run_decode_hooks
from kvcache.latent import is_latent, rotated_channels, taken_in, taken_out
from kvcache.logits import cap_of, capped, minus_infinity, sinks_of
from kvcache.matmul import fast, product, queries_at_once
from kvcache.modules import attention_modules, decoder_of, readers_of_other_layers, window_of
from kvcache.observation import AttentionInputs, AttentionProbe
from kvcache.prefill_attention import causal_attention
from kvcache.rope_frequencies import cache_of, frequencies_by_row, rope_lengths_of
from kvcache.row_blocks import RowBlock
from kvcache.storage import KVStorage

NAME = "longpress"
"""Name of the registered attention implementation."""

MANY = 32
"""Queries and keys from which on products by `matmul.product` pay."""


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
    """Transformers' attention interface: gives ((R, n, H * G, d), None).

    Args:
        module: the attention module; tells its sliding window, the cap of its logits and its sinks.
        query: (R, H * G, n, d) queries of the last n positions.
        key: (R, H, *, d) of the whole cache, or the new ones only where `ragged` is given.
        value: like key.
        attention_mask: always None: with this implementation transformers builds no mask.
        scaling: factor on the logits.
        ragged: the cache layer to read instead of key and value.
        attention_probe: to be told what the function was called with.
        kwargs: what models pass on; see `_check`.
    """
    _check(module, kwargs)
    latent = is_latent(module)
    if attention_probe is not None:
        last = query[:, :, -2:].detach()
        attention_probe.queries = taken_in(module, last) if latent else last.clone()
        attention_probe.scaling = scaling
    cap, sinks = cap_of(module), sinks_of(module)
    if ragged is None:
        attended = causal_attention(query, key, value, scaling, window_of(module), cap, sinks)
    elif latent:
        first = rotated_channels(module)
        latents = _ragged(taken_in(module, query), ragged, scaling, cap, sinks, value_from=first)
        attended = taken_out(module, latents)
    else:
        attended = _ragged(query, ragged, scaling, cap, sinks)
    return attended.transpose(1, 2).contiguous(), None


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
                f"{kind} passes {name} of shape {tuple(value.shape)} to its attention, which longpress does "
                "not support"
            )


AttentionInterface.register(NAME, attention_forward)


@contextmanager
def attending(model: nn.Module) -> Iterator[None]:
    """Inside, `model` reads `CompressedLayer`s; on ordinary caches it computes plain causal attention.

    Rotary frequencies that depend on the length of the text are those of each row's own prompt. The model is
    restored afterwards.
    """
    modules, readers = attention_modules(model), readers_of_other_layers(model)
    sources = set(readers.values())
    config: Any = modules[0].config
    before = config._attn_implementation
    read: dict[int, CompressedLayer | None] = {}  # per source, what it read in the pass at work
    waiting: list[tuple[CompressedLayer, ForwardPass]] = []  # decode hooks of sources

    def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
        read.clear()
        waiting.clear()

    def offer_source(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        # What its source read in this pass: a press may have compressed the source since.
        layer = read.get(readers[module])
        return args, kwargs if layer is None else kwargs | {"ragged": layer}

    def offer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        layers = getattr(cache_of(kwargs), "layers", ())
        index: int = module.layer_idx  # type: ignore[assignment]
        read[index] = None
        if index < len(layers) and isinstance(layers[index], CompressedLayer):
            layers[index].armed, read[index] = True, layers[index]
            return args, kwargs | {"ragged": layers[index]}
        return args, kwargs | {"attention_probe": AttentionProbe()}

    def act(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        layer = kwargs.get("ragged")
        if layer is not None and any(layer.decode_hooks):
            inputs = AttentionInputs.of_call(module, args, kwargs)
            forward = ForwardPass(decoder, module, inputs, rope_lengths_of(cache_of(kwargs)))
            if module.layer_idx in sources:  # others have yet to read its entries in this pass
                waiting.append((layer, forward))
            else:
                run_decode_hooks(layer, forward)

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for layer, forward in waiting:
            run_decode_hooks(layer, forward)
        waiting.clear()

    decoder = decoder_of(model)
    with ExitStack() as stack:
        stack.enter_context(frequencies_by_row(model))
        for module in modules:
            stack.callback(module.register_forward_pre_hook(offer, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(act, with_kwargs=True).remove)
        for module in readers:
            stack.callback(module.register_forward_pre_hook(offer_source, with_kwargs=True).remove)
        if readers:
            stack.callback(decoder.register_forward_pre_hook(begin).remove)
            stack.callback(decoder.register_forward_hook(end).remove)
        config._attn_implementation = NAME
        try:
            yield
        finally:
            config._attn_implementation = before


def _ragged(
    query: Tensor,
    layer: CompressedLayer,
    scaling: float,
    cap: float | None = None,
    sinks: Tensor | None = None,
    value_from: int | None = None,
) -> Tensor:
    """Attention of each row's last n tokens over its kept context and its own tail: (R, H * G, n, d).

    Values are the channels of the keys from `value_from` on, where that is given (latent attention).
    """
    rows, query_heads, n, size = query.shape
    length, heads = layer.longest, layer.tail_keys.shape[1]
    group = query_heads // heads
    grouped = (query * scaling).view(rows, heads, group, n, size)

    # The tail: a row's own tokens. `last` (R, n) is the index of each query in it.
    last = layer.lengths[:, None] - n + torch.arange(n, device=query.device)
    bias = _bias_of_tail(layer, last, query.dtype)
    if bias is not None:
        bias = bias.expand(-1, -1, group, -1, -1).reshape(rows, 1, group * n, length)
    tail_keys, tail_values = layer.tail_keys[:, :, :length], layer.tail_values[:, :, :length]
    tail_values = _values_of(tail_keys, tail_values, value_from)
    tail, tail_total = _attend(grouped.flatten(2, 3), tail_keys, tail_values, bias, cap)
    tail, tail_total = tail.unflatten(2, (group, n)), tail_total.unflatten(2, (group, n))

    # The context, for neighbouring rows that read one storage together.
    context, context_total = torch.empty_like(tail), torch.empty_like(tail_total)
    attend_rows = _one_token if n == 1 else _many_tokens
    for block in layer.blocks:
        of_block = slice(block.start, block.stop)
        positions = None
        if block.storage.positions is not None:
            positions = layer.start[of_block, None] + last[of_block]
        part = _Part(context[of_block], context_total[of_block])
        attend_rows(grouped[of_block], block, positions, part, cap, value_from)

    # Both together: by the share of the softmax's weight that lies on the context.
    share = torch.sigmoid(context_total - tail_total)[..., None]
    out = torch.lerp(tail.float(), context.float(), share)

    # A sink takes its share of the weight, and gives no value.
    if sinks is not None:
        total = torch.logaddexp(context_total, tail_total)  # (R, H, G, n)
        out = out * torch.sigmoid(total - sinks.float().view(1, heads, group, 1))[..., None]
    return out.to(query.dtype).flatten(1, 2)


def _values_of(keys: Tensor, values: Tensor, value_from: int | None) -> Tensor:
    return values if value_from is None else keys[..., value_from:]


def _bias_of_tail(layer: CompressedLayer, last: Tensor, dtype: torch.dtype) -> Tensor | None:
    """(R, 1, 1, n, length): -inf for tokens of the tail that a query does not see; None where it sees all.

    Args:
        layer: with the tails.
        last: (R, n) index of each query in its row's tail.
        dtype: of the queries.
    """
    window = layer.blocks[0].storage.window
    if last.shape[1] == 1 and layer.even and window is None:
        return None
    index = torch.arange(layer.longest, device=last.device)
    hidden = index > last[..., None]  # (R, n, length)
    if window is not None:
        hidden |= index <= last[..., None] - window
    return minus_infinity(hidden, dtype)[:, None, None]


class _Part(NamedTuple):
    """Attention over one part of what queries see.

    Attributes:
        out: (…, n, d) the weighted values.
        total: (…, n) logarithm of the sum of the exponentials.
    """

    out: Tensor
    total: Tensor


def _one_token(
    query: Tensor,
    block: RowBlock,
    at: Tensor | None,
    into: _Part,
    cap: float | None = None,
    value_from: int | None = None,
) -> None:
    """Attention of one token a row over the storage that the rows share, read once for all of them.

    Args:
        query: (r, H, G, 1, d).
        block: the rows, with the storage.
        at: (r, 1) positions of the queries; None where the storage has no positions.
        into: where the result is written.
        cap: of the logits, or None.
        value_from: see `_ragged`.
    """
    storage, bias = block.storage, block.bias
    may_see_nothing = block.has_empty_head
    if at is not None and storage.window is not None and storage.positions is not None:
        may_see_nothing = True
        left_the_window = storage.positions[:, None] <= at - storage.window  # (H or 1, r, K)
        window_bias = minus_infinity(left_the_window, query.dtype)
        bias = window_bias if bias is None else bias + window_bias

    # The rows are what the queries are elsewhere: (H, G, r, d) queries meet (H, K, d) entries.
    keys = storage.keys
    attended, total = _attend_context(
        query[..., 0, :].permute(1, 2, 0, 3),
        storage,
        keys,
        _values_of(keys, storage.values, value_from),
        None if bias is None else bias[:, None],
        may_see_nothing,
        cap,
        shared=True,
    )
    into.out[..., 0, :] = attended.permute(2, 0, 1, 3)
    into.total[..., 0] = total.permute(2, 0, 1)


def _many_tokens(
    query: Tensor,
    block: RowBlock,
    at: Tensor | None,
    into: _Part,
    cap: float | None = None,
    value_from: int | None = None,
) -> None:
    """Attention of n tokens a row over what each row keeps, side by side.

    Nothing is computed for what was removed.

    Args:
        query: (r, H, G, n, d).
        block: the rows, with the storage.
        at: (r, n) positions of the queries; None where the storage has no positions.
        into: where the result is written.
        cap: of the logits, or None.
        value_from: see `_ragged`.
    """
    storage = block.storage.at_hand()  # moved and dequantised once, not for every row
    for row, kept in enumerate(block.rows):
        keys, values, padding, positions = replace(kept, storage=storage).read()

        # What a query must not see: padding, and what has left its window.
        hidden = None if padding is None else padding[:, None, None]  # (H, 1, 1, K)
        if at is not None and storage.window is not None and positions is not None:
            left_the_window = positions[:, None] <= at[row, :, None] - storage.window  # (H or 1, n, K)
            left_the_window = left_the_window[:, None]
            hidden = left_the_window if hidden is None else hidden | left_the_window
        bias = None if hidden is None else minus_infinity(hidden, query.dtype)

        values = _values_of(keys, values, value_from)
        part = _attend_context(query[row], storage, keys, values, bias, True, cap)
        into.out[row], into.total[row] = part


def _attend_context(
    query: Tensor,
    storage: KVStorage,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    may_see_nothing: bool,
    cap: float | None = None,
    shared: bool = False,
) -> _Part:
    """Attention over entries of a storage, the same for the G query heads of a KV head.

    Args:
        query: (H, G, m, d), scaled.
        storage: tells the channels of the keys.
        keys: (H, K, c).
        values: (H, K, d).
        bias: (H or 1, 1, m or 1, K), 0 or -inf; None hides nothing.
        may_see_nothing: whether the bias may hide every entry from a query: a head may keep none.
        cap: of the logits, or None.
        shared: whether these entries are read again and again, so that products made for their number pay.

    Returns:
        (H, G, m, d) and, in float32, (H, G, m); where a query sees nothing, 0 and -inf.
    """
    heads, group, many, _ = query.shape
    if keys.shape[1] == 0:  # a layer of which nothing is kept: fused attention would end the process
        nothing = query.new_zeros(heads, group, many, values.shape[-1])
        return _Part(nothing, torch.full(nothing.shape[:3], float("-inf"), device=query.device))
    if storage.channels is not None:
        query = query.gather(-1, storage.channels[:, None, None].expand(-1, group, many, -1))
    if bias is not None:
        bias = bias.expand(heads, 1, many, -1)
    keys, values = (entries[:, None].expand(-1, group, -1, -1) for entries in (keys, values))
    part = _attend(query, keys, values, bias, cap, shared)
    if bias is None or not may_see_nothing:
        return part
    sees_nothing = bias.isneginf().all(-1)
    out = part.out.masked_fill(sees_nothing[..., None], 0.0)
    return _Part(out, part.total.masked_fill(sees_nothing, float("-inf")))


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    cap: float | None = None,
    shared: bool = False,
) -> _Part:
    """Attention over one part of what queries see.

    Args:
        query: (b, h, m, d), scaled.
        keys: (b, h, K, d); heads may be expanded.
        values: (b, h, K, d').
        bias: (b, 1 or h, m, K) added to the logits, 0 or -inf; every query sees something.
        cap: of the logits, or None.
        shared: whether these keys and values, the same for all h, are read again and again.

    Returns:
        (b, h, m, d') and, in float32, (b, h, m).
    """
    fewer = min(query.shape[1] * query.shape[2], keys.shape[2])
    if shared and cap is None and fewer >= MANY and fast(query, keys, values):
        return _by_products(query, keys[:, 0], values[:, 0], bias)
    if cap is None and query.device.type == "cpu" and keys.shape[-1] == values.shape[-1]:
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return _Part(*fused(query, keys, values, attn_mask=bias, scale=1.0))
    logits = capped(_product(query, keys.transpose(2, 3)).float(), cap)
    if bias is not None:
        logits += bias
    total = logits.logsumexp(-1)
    weights = (logits - total[..., None]).exp().to(values.dtype)
    return _Part(_product(weights, values), total)


def _by_products(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> _Part:
    """As `_attend`, by `matmul.product`, of keys (b, K, d) and values (b, K, d'), the same for all h."""
    several, heads, many, size = query.shape
    out = query.new_empty(several, heads, many, values.shape[-1])
    total = query.new_empty(several, heads, many)
    step = queries_at_once(heads, keys.shape[1])
    for index in range(several):
        for start in range(0, many, step):
            at = (index, slice(None), slice(start, start + step))
            queries = query[at]
            logits = product(queries.reshape(-1, size), keys[index])
            if bias is not None:
                per_head = logits.view(*queries.shape[:2], -1)
                per_head += bias[at]

            # In its place: new memory costs as much as the sum. The largest weight is exp(largest - total).
            largest = logits.amax(-1)
            weights = torch.softmax(logits, -1, out=logits)
            out[at] = product(weights, values[index].t()).view(*queries.shape[:2], -1)
            total[at] = (largest - weights.amax(-1).log_()).view(queries.shape[:2])
    return _Part(out, total)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """(b, h, m, x) @ (b, h, x, y), as one product per b where `right` is one matrix expanded over h."""
    if right.stride(1) == 0:
        return (left.flatten(1, 2) @ right[:, 0]).unflatten(1, left.shape[1:3])
    return left @ right
