"""Reading the next piece of a context on top of a compressed cache, and keeping a part of what it adds."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kvcache.attention import attending
from kvcache.cache import CompressedCache, CompressedLayer
from kvcache.compressing import kept_entries
from kvcache.observation import (
    LayerObservation,
    attention_modules,
    cache_keyword,
    decoder_of,
    is_left_whole,
    rope_of,
    rotary_factors,
)
from kvcache.selection import Selection, gather
from kvcache.storage import Kept


def read_on(
    model: nn.Module,
    layers: Sequence[Kept],
    start: int,
    token_ids: Tensor,
    tokens: int,
    question: int,
    on_layer: Callable[[LayerObservation], None],
) -> list[tuple[Tensor, Tensor]]:
    """Let the model read a piece of a context whose earlier tokens are compressed.

    Args:
        model: of transformers.
        layers: per model layer, what is kept of the earlier tokens.
        start: position of the piece's first token.
        token_ids: (1, n) of the piece.
        tokens: T, of the whole context: layers that it outgrows (sliding windows) are not shown to
            `on_layer`.
        question: number of tokens at the end of the piece that are a question.
        on_layer: called after each attention with an observation of the piece alone: its own hidden states,
            keys, values and rotary factors, `rope` counting from its first token.

    Returns:
        Per layer the piece's own keys and values, (1, H, n, d) each.
    """
    decoder, n = decoder_of(model), token_ids.shape[1]
    cache = CompressedCache([CompressedLayer([kept], start, n) for kept in layers])
    fingerprint = zlib.crc32(token_ids[0].cpu().float().numpy().tobytes(), start)

    def own(index: int) -> tuple[Tensor, Tensor]:
        layer = cache.layers[index]
        return layer.tail_keys[:, :, :n], layer.tail_values[:, :, :n]

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if is_left_whole(model, module, tokens):
            return
        index: int = module.layer_idx  # type: ignore[assignment]
        hidden = args[0] if args else kwargs["hidden_states"]
        cos, sin = rotary_factors(module, args, kwargs)
        absolute = rope_of(decoder, module, hidden)

        def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
            return absolute(positions + start)

        on_layer(
            LayerObservation(
                index, module, hidden, *own(index), cos, sin, rope, (fingerprint,), token_ids, question
            )
        )

    with ExitStack() as stack:
        stack.enter_context(attending(model))
        stack.enter_context(torch.no_grad())
        for module in attention_modules(model):
            stack.callback(module.register_forward_hook(watch, with_kwargs=True).remove)
        positions = torch.arange(start, start + n, device=token_ids.device)[None]
        decoder(
            input_ids=token_ids, position_ids=positions, use_cache=True, **{cache_keyword(decoder): cache}
        )
    return [own(index) for index in range(len(layers))]


def extended(
    old: Kept,
    keys: Tensor,
    values: Tensor,
    counts: Tensor,
    positions: Tensor,
    window: int | None,
    stop: int | None,
) -> Kept:
    """What is kept of a layer, and more entries behind it.

    Args:
        old: kept so far.
        keys: (H, K, d) of the new entries, of which head h has the first `counts[h]`.
        values: (H, K, d).
        counts: (H,).
        positions: (H, K) of the new entries in the context.
        window: the layer's sliding window or None.
        stop: position of the next token, where entries that have left the window are to be dropped; None
            drops nothing.
    """
    before = old.storage.whole_keys()
    heads, device = len(before), before.device
    had = torch.tensor(old.entries(), device=device)
    exists = torch.cat(
        [torch.arange(k.shape[1], device=device) < c[:, None] for k, c in ((before, had), (keys, counts))],
        dim=1,
    )
    where = positions
    if old.storage.positions is not None:
        where = torch.cat((old.storage.positions.expand(heads, -1), positions), dim=1)
        if window is not None and stop is not None:
            exists = exists & (where > stop - window)
    selection = Selection(exists[None])
    at = selection.positions
    both = (torch.cat((before, keys), dim=1), torch.cat((old.storage.values, values), dim=1))
    all_keys, all_values = (gather(entries[None], at)[0] for entries in both)
    kept_positions = where.gather(1, at[0]) if window is not None else where
    return kept_entries(all_keys, all_values, selection.counts[0], kept_positions, window)
