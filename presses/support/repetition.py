"""Letting the model repeat its context, chunk by chunk, and the attention that the context gets while it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kvcache.hooks.prefill import Prefill
from kvcache.observation import LayerObservation
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
    """A part of the context and the ids that make the model repeat it."""

    start: int
    stop: int
    token_ids: Tensor  # (B, n)


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

    def for_batch(known: Sequence[int]) -> Tensor:
        return torch.tensor(list(known), dtype=ids.dtype, device=ids.device).expand(ids.shape[0], -1)

    first = 0 if prompt is None else prompt.before
    for start in range(first, ids.shape[1], size):
        stop = min(start + size, ids.shape[1])
        asked = for_batch([] if prompt is None else prompt.encode(FIRST if start == first else NEXT))
        reminder = ids[:, max(start - size, start - REMINDER) : start] if start > first else ids[:, :0]
        after = for_batch([] if prompt is None else prompt.after)
        yield Chunk(start, stop, torch.cat((asked, reminder, after, ids[:, start:stop]), dim=1))


def chunk_scores(
    prefill: Prefill, seen: LayerObservation, chunk: Chunk, n_sink: int, rows: Tensor | None, by_output: bool
) -> Tensor:
    """(B, H, C) highest attention that each entry of a chunk gets in its repetition, in float32.

    Args:
        prefill: with the full cache.
        seen: a layer that has just read (a piece of) the repetition.
        chunk: that is being repeated.
        n_sink: first tokens of the context that take part in the softmax.
        rows: (B, n) factor per token of the repetition, or None.
        by_output: whether to multiply by the norm of what an entry's value adds to the hidden state.
    """
    full: Any = prefill.cache.layers[seen.index]
    sinks, size, group = min(n_sink, chunk.start), chunk.stop - chunk.start, seen.group
    keys = torch.cat((full.keys[:, :, :sinks], full.keys[:, :, chunk.start : chunk.stop], seen.keys), dim=2)
    queries = seen.queries(seen.hidden.shape[1]).unflatten(1, (-1, group))  # (B, H, G, n, d)
    n, own = queries.shape[3], seen.tokens
    best = queries.new_full((*queries.shape[:3], size), 0, dtype=torch.float32)
    for start in range(0, n, QUERY_BLOCK):
        block = queries[:, :, :, start : start + QUERY_BLOCK]
        logits = seen.logits(block, keys)  # (B, H, G, q, sinks + C + own)
        at = own - n + start + torch.arange(block.shape[3], device=keys.device)
        logits[..., sinks + size :].masked_fill_(
            torch.arange(own, device=keys.device) > at[:, None], float("-inf")
        )
        weights = seen.softmax(logits)[..., sinks : sinks + size]
        if rows is not None:
            weights = weights * rows[:, None, None, start : start + QUERY_BLOCK, None]
        best = torch.maximum(best, weights.amax(3))
    if by_output:
        best = best * output_norms(seen, full.values[:, :, chunk.start : chunk.stop])
    return best.amax(2)
