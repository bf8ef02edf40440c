"""Causal attention over a whole cache, as in a prefill.

Fused where PyTorch's function knows the attention; by products of the faster library where that is at hand;
by hand where logits are capped or a sink takes its share. Queries go block by block, so that no mask or
matrix of size T x T exists.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kvcache.logits import capped, minus_infinity, softmax
from kvcache.matmul import fast, product, queries_at_once, rounded_up
from kvcache.observation import block_size

QUERY_BLOCK = 1024
"""Queries per step of a masked attention, which bounds the mask; fewer where there are very many keys."""


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None,
    cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of the last n of T positions: (R, H * G, n, d).

    Args:
        query: (R, H * G, n, d).
        key: (R, H, T, d).
        value: (R, H, T, d).
        scaling: factor on the logits.
        window: tokens that a query sees, None for all before it.
        cap: of the logits, or None.
        sinks: (H * G,) logits of the sinks, or None.
    """
    if cap is not None or sinks is not None:
        return _by_hand(query, key, value, scaling, window, cap, sinks)
    n, length = query.shape[2], key.shape[2]
    grouped = key.shape[1] != query.shape[1]
    sees_all = window is None or length <= window
    if n == 1 and sees_all:
        return functional.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=grouped)
    if n > 1 and fast(query, key, value):
        return causal_attention_by_products(query * scaling, key, value, window)
    if n == length and sees_all:
        return functional.scaled_dot_product_attention(
            query, key, value, scale=scaling, enable_gqa=grouped, is_causal=True
        )
    return _fused_with_mask(query, key, value, scaling, window)


def _fused_with_mask(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None) -> Tensor:
    """By PyTorch's fused function, which is told what each block of queries sees."""
    n, length = query.shape[2], key.shape[2]
    grouped = key.shape[1] != query.shape[1]
    out = torch.empty(*query.shape[:3], value.shape[-1], dtype=query.dtype, device=query.device)
    step = block_size(1, 2 * length, QUERY_BLOCK)
    for start in range(0, n, step):
        stop = min(n, start + step)
        end = length - n + stop  # keys from here on are later than all queries of the block
        visible = ~_hidden(range(length - n + start, end), range(end), window, query.device)
        out[:, :, start:stop] = functional.scaled_dot_product_attention(
            query[:, :, start:stop],
            key[:, :, :end],
            value[:, :, :end],
            attn_mask=visible,
            scale=scaling,
            enable_gqa=grouped,
        )
    return out


def _by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None,
    cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """For attentions with a cap or sinks, which the fused function does not know."""
    n, length, heads = query.shape[2], key.shape[2], key.shape[1]
    out = torch.empty(*query.shape[:3], value.shape[-1], dtype=query.dtype, device=query.device)
    step = block_size(query.shape[0] * query.shape[1], length, QUERY_BLOCK)
    for start in range(0, n, step):
        stop = min(n, start + step)

        # The keys that some query of the block sees.
        first_query, end = length - n + start, length - n + stop
        first = 0 if window is None else max(0, first_query + 1 - window)
        hidden = _hidden(range(first_query, end), range(first, end), window, query.device)

        # Logits, weights, weighted values.
        grouped = query[:, :, start:stop].unflatten(1, (heads, -1))  # (R, H, G, m, d)
        logits = capped(grouped @ key[:, :, None, first:end].transpose(3, 4) * scaling, cap)
        weights = softmax(logits.masked_fill(hidden, float("-inf")), sinks).to(value.dtype)
        out[:, :, start:stop] = (weights @ value[:, :, None, first:end]).flatten(1, 2)
    return out


def causal_attention_by_products(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """For scaled queries, by `matmul.product`: a block of queries at a time, over the keys that it sees.

    The last key is rounded up to one of few lengths: the library keeps half a megabyte for every shape it has
    met, and buffers of ever new sizes leave holes that none of the next fits into.
    """
    rows, query_heads, n, size = query.shape
    heads, length = key.shape[1:3]
    group = query_heads // heads
    out = query.new_empty(rows, heads, group, n, value.shape[-1])
    grouped = query.reshape(rows, heads, group, n, size)
    step = queries_at_once(group, length)
    for start in range(0, n, step):
        stop = min(n, start + step)
        block = stop - start

        # The keys that some query of the block sees, and from where on some query does not see them.
        end = length - n + stop
        first = 0 if window is None else max(0, end - block - window + 1)
        some_hidden = end - block if window is None else first
        rounded = rounded_up(end, length)
        hidden = _hidden(range(end - block, end), range(some_hidden, rounded), window, query.device)
        bias = minus_infinity(hidden, query.dtype)

        # One product of all query heads of a group with the keys that they share.
        for row in range(rows):
            for head in range(heads):
                at = (row, head, slice(None), slice(start, stop))
                logits = product(grouped[at].reshape(-1, size), key[row, head, first:rounded])
                logits.view(group, block, -1)[..., some_hidden - first :] += bias
                weights = torch.softmax(logits, -1, out=logits)
                out[at] = product(weights, value[row, head, first:rounded].t()).view(group, block, -1)
    return out.flatten(1, 2)


def _hidden(queries: range, keys: range, window: int | None, device: torch.device) -> Tensor:
    """(n, K) bool: which keys a query does not see: later ones, and those before its window.

    Args:
        queries: their positions.
        keys: their positions.
        window: tokens that a query sees, None for all before it.
        device: of the result.
    """
    at = torch.arange(queries.start, queries.stop, device=device)[:, None]
    keys_at = torch.arange(keys.start, keys.stop, device=device)
    later = keys_at > at
    return later if window is None else later | (keys_at <= at - window)
