"""Letting the model repeat its context, chunk by chunk, and the attention that the context gets meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kvcache.hooks.prefill import Prefill
from kvcache.observation import LayerObservation
from presses.support.attention import attention_to_context
from presses.support.norms import output_norms

FIRST = "\n\nRepeat the previous context exactly."
"""What the model is asked before the first chunk."""

NEXT = "\n\nRepeat the part of the previous context exactly, starting with"
"""What the model is asked before every other chunk, followed by the end of the chunk before."""

REMINDER = 8
"""Tokens before a chunk that are quoted when the model is asked to go on from there."""

QUERY_BLOCK = 256
"""Queries of the repetition whose attention is held at once."""


class Chunk(NamedTuple):
    """A part of the context.

    Attributes:
        start: position of its first token.
        stop: position behind its last token.
        token_ids: (B, n) ids that make the model repeat it.
    """

    start: int
    stop: int
    token_ids: Tensor


def chunks(prefill: Prefill, size: int, name: str) -> Iterator[Chunk]:
    """The context in chunks of `size` tokens, each with the ids that ask for its repetition and repeat it.

    Where the prompt is not known, the chunk is repeated without being asked for.

    Raises:
        ValueError: the model was given embeddings, which cannot be repeated.
    """
    ids, prompt = prefill.token_ids, prefill.prompt_tokens
    if ids is None:
        raise ValueError(
            f"{name} lets the model repeat the context, for which it needs token ids; the model was given "
            "embeddings"
        )

    def for_batch(text_ids: Sequence[int]) -> Tensor:
        return torch.tensor(list(text_ids), dtype=ids.dtype, device=ids.device).expand(ids.shape[0], -1)

    first = 0 if prompt is None else prompt.before
    for start in range(first, ids.shape[1], size):
        stop = min(start + size, ids.shape[1])
        request = for_batch([] if prompt is None else prompt.encode(FIRST if start == first else NEXT))
        reminder = ids[:, max(start - size, start - REMINDER) : start] if start > first else ids[:, :0]
        after = for_batch([] if prompt is None else prompt.after)
        yield Chunk(start, stop, torch.cat((request, reminder, after, ids[:, start:stop]), dim=1))


def chunk_scores(
    prefill: Prefill,
    layer: LayerObservation,
    chunk: Chunk,
    n_sink: int,
    factors: Tensor | None,
    by_output: bool,
) -> Tensor:
    """(B, H, C) highest attention that each entry of a chunk gets in its repetition, in float32.

    Args:
        prefill: with the full cache.
        layer: that has just read (a piece of) the repetition.
        chunk: that is being repeated.
        n_sink: first tokens of the context that take part in the softmax.
        factors: (B, n) by which the attention of each token just read is multiplied, or None.
        by_output: whether to multiply by the norm of what an entry's value adds to the hidden state.
    """
    full_keys, full_values = prefill.entries(layer.index)
    sinks, of_chunk = min(n_sink, chunk.start), slice(chunk.start, chunk.stop)
    keys = torch.cat((full_keys[:, :, :sinks], full_keys[:, :, of_chunk]), dim=2)
    batch, heads = keys.shape[:2]
    highest = keys.new_zeros(batch, heads, layer.group, chunk.stop - chunk.start, dtype=torch.float32)
    for queries, weights in attention_to_context(layer, keys, QUERY_BLOCK):
        received = weights[..., sinks:]
        if factors is not None:
            received = received * factors[:, None, None, queries, None]
        highest = torch.maximum(highest, received.amax(3))
    if by_output:
        highest = highest * output_norms(layer, full_values[:, :, of_chunk])
    return highest.amax(2)
