"""Reading the next chunk of a context on top of what is kept of the chunks before it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kvcache.attention import attending
from kvcache.cache import CompressedCache
from kvcache.layer_state import LayerState, cache_layer, states_of
from kvcache.modules import attention_modules, cache_keyword, decoder_of, is_left_whole
from kvcache.observation import AttentionInputs, LayerObservation
from kvcache.rotary import rope_of
from kvcache.selection import Selection, gather
from kvcache.storage import KVView


def chunked_forward(
    model: nn.Module,
    layers: Sequence[KVView],
    states: Sequence[LayerState | None],
    start: int,
    token_ids: Tensor,
    tokens: int,
    question: int,
    on_layer: Callable[[LayerObservation], None],
    rope_length: int = 0,
) -> tuple[list[tuple[Tensor, Tensor]], list[LayerState | None]]:
    """Let the model read a chunk of a context whose earlier tokens are compressed.

    Args:
        model: of transformers.
        layers: per model layer, what is kept of the earlier tokens.
        states: per model layer, its state after the earlier tokens, or None.
        start: position of the chunk's first token.
        token_ids: (1, n) of the chunk.
        tokens: T, of the whole context: layers that it outgrows (sliding windows) are not shown to
            `on_layer`.
        question: number of tokens at the end of the chunk that are a question.
        on_layer: called after each attention with an observation of the chunk alone: its own hidden states,
            keys, values and rotary factors, `rope` counting from its first token.
        rope_length: of the prompt, see `kvcache.rope_frequencies`.

    Returns:
        Per layer the chunk's own keys and values, (1, H, n, d) each, without heads in a layer that caches
        none; and per layer the state after the chunk.
    """
    decoder, n = decoder_of(model), token_ids.shape[1]
    cache = CompressedCache(
        [cache_layer([kept], [state], start, n) for kept, state in zip(layers, states, strict=True)],
        [rope_length],
    )
    known: dict[str, Any] = {
        "fingerprints": (zlib.crc32(token_ids[0].cpu().float().numpy().tobytes(), start),),
        "token_ids": token_ids,
        "question": question,
    }

    def of_chunk(index: int) -> tuple[Tensor, Tensor]:
        if layers[index].is_nothing:
            return layers[index].storage.keys[None], layers[index].storage.values[None]
        layer = cache.layers[index]
        return layer.tail_keys[:, :, :n], layer.tail_values[:, :, :n]

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if is_left_whole(model, module, tokens):
            return
        index: Any = module.layer_idx
        inputs = AttentionInputs.of_call(module, args, kwargs)
        rope = rope_of(decoder, module, inputs.hidden, start=start, rope_lengths=[rope_length])
        on_layer(LayerObservation.build(module, inputs, *of_chunk(index), rope, **known))

    with ExitStack() as stack:
        stack.enter_context(attending(model))
        stack.enter_context(torch.no_grad())
        for module in attention_modules(model):
            stack.callback(module.register_forward_hook(watch, with_kwargs=True).remove)
        positions = torch.arange(start, start + n, device=token_ids.device)[None]
        decoder(
            input_ids=token_ids, position_ids=positions, use_cache=True, **{cache_keyword(decoder): cache}
        )
    return [of_chunk(index) for index in range(len(layers))], states_of(cache)


def extended(old: KVView, new: KVView, positions: Tensor, window: int | None, stop: int | None) -> KVView:
    """What is kept of a layer, and more entries behind it.

    Args:
        old: kept so far.
        new: to be kept as well, in order of position.
        positions: (H, K) of the new entries in the context.
        window: the layer's sliding window or None.
        stop: position of the next token, where entries that have left the window are to be dropped; None
            drops nothing.
    """
    before, after = old.storage.whole_keys(), new.storage.whole_keys()
    heads, device = len(before), before.device

    # Which of both parts' entries exist, and where in the context they stood.
    exists = torch.cat([_first(view, view.storage.length) for view in (old, new)], dim=1)
    where = positions
    if old.storage.positions is not None:
        where = torch.cat((old.storage.positions.expand(heads, -1), positions), dim=1)
        if window is not None and stop is not None:
            exists = exists & (where > stop - window)

    # The entries that are left, side by side.
    selection = Selection(exists[None])
    all_keys = torch.cat((before, after), dim=1)
    all_values = torch.cat((old.storage.values, new.storage.values), dim=1)
    keys, values = (gather(part[None], selection.positions)[0] for part in (all_keys, all_values))
    kept_positions = where.gather(1, selection.positions[0]) if window is not None else where
    return KVView.of_entries(keys, values, selection.counts[0].to(device), kept_positions, window)


def _first(view: KVView, length: int) -> Tensor:
    """(H, K) bool: of each head's K stored entries, the first ones that it keeps."""
    device = view.storage.device
    return torch.arange(length, device=device) < torch.tensor(view.entries(), device=device)[:, None]
