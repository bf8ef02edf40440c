"""`prefill=chunked`: compress after every chunk of the context, so that the peak of the cache shrinks too.

Every chunk is read on what is kept of the chunks before it, and then compressed as a context of its own; what
was kept stays. Hidden states depend on the press from the second chunk on, so every variant reads the context
by itself. One chunk is the shared prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kvcache.chunked_forward import extended, read_on
from kvcache.compressing import Framing
from kvcache.observation import LayerObservation, attention_modules, is_left_whole, window_of
from kvcache.selection import Selection, Threshold
from longpress.pipeline.clock import now
from longpress.pipeline.prefill import (
    CompressedContext,
    Onlooker,
    PrefilledContext,
    Variant,
    keeping_heads,
    share_kept,
)
from presses.base import BasePress


def check_chunked(variant: Variant) -> None:
    """Refuse a press that needs the whole context at once, or works while answers are written.

    Raises:
        ValueError: it passes over the cached context again, gives kept keys new positions, or works while
            decoding.
    """
    press = variant.press
    if variant.cache_bits is not None:
        raise ValueError(
            f"cache_bits={variant.cache_bits} with prefill=chunked: quantised caches need the context whole; use prefill=shared"
        )
    if press.needs_whole_context:
        raise ValueError(
            f"press {press.name} needs the whole context in the cache (it reads it again, or moves its positions), so it cannot compress "
            "chunk by chunk; run it with prefill=shared"
        )
    if press.while_decoding(variant.limit(2 * (variant.budget_tokens or 1))) is not None:
        raise ValueError(
            f"press {press.name} works while decoding, which prefill=chunked cannot follow yet; run it with prefill=shared"
        )


def check_prefill(mode: str, size: int | None) -> None:
    """Refuse an unknown mode of prefill, and a chunked one without chunks.

    Raises:
        ValueError: what is allowed.
    """
    if mode not in ("shared", "chunked"):
        raise ValueError(
            f"prefill={mode!r} must be 'shared' (one exact prefill for all variants) or 'chunked' (compress after every chunk)"
        )
    if mode == "chunked" and (size is None or size < 1):
        raise ValueError(
            f"prefill=chunked with prefill_chunk={size} has no chunks; give the tokens per chunk, such as prefill_chunk=1024"
        )


def read_in_chunks(
    model: nn.Module,
    token_ids: Tensor,
    variant: Variant,
    size: int,
    first: Callable[[Tensor, BasePress, Framing], Any],
    framing: Framing,
    watched: Sequence[Sequence[int]] = (),
    count_kept: bool = False,
) -> tuple[CompressedContext, float]:
    """What a variant keeps of a context that is read and compressed `size` tokens at a time.

    Args:
        model: of transformers.
        token_ids: (1, T).
        variant: press and ratio; every chunk of n tokens keeps what the press states for a context of n
            tokens.
        size: tokens per chunk.
        first: the ordinary prefill (ids, press, framing), which reads the first chunk.
        framing: the prompt around the context.
        watched: sets of positions whose survival is to be measured.
        count_kept: whether to count the heads that keep each token.

    Returns:
        What is kept, and the seconds spent observing.

    Raises:
        ValueError: the press needs the whole context at once; every layer has a sliding window shorter than
            the context.
    """
    check_chunked(variant)
    press, tokens = variant.press, token_ids.shape[1]
    limits = variant.limits(tokens, size)
    modules = attention_modules(model)
    observed = [index for index, module in enumerate(modules) if not is_left_whole(model, module, tokens)]
    stop = min(size, tokens)
    onlooker = Onlooker([press])
    first(
        token_ids[:, :stop], onlooker, replace(framing, question=_within(framing.question, 0, stop, tokens))
    )
    (context,) = PrefilledContext(onlooker, 0.0).compress(
        press, limits[:1], [_part(positions, 0, stop) for positions in watched], count_kept=count_kept
    )
    kept_by = [context.kept_by]
    observing, compressing, peak = sum(onlooker.seconds.values()), context.seconds, context.full_entries
    layers, chunks = context.layers, [(stop, limits[0])]
    survived = [
        share * len(_part(positions, 0, stop))
        for share, positions in zip(context.evidence_kept, watched, strict=True)
    ]
    for start, ratio in zip(range(stop, tokens, size), limits[1:], strict=True):
        stop = min(start + size, tokens)
        seen = Onlooker([press])
        evidence: dict[int, Any] = {}

        def look(layer: LayerObservation, seen: Onlooker = seen, evidence: dict[int, Any] = evidence) -> None:
            found = list(seen.observe(layer).values())
            for failure in seen.failures.values():
                raise failure
            (evidence[layer.index],) = found

        asked = _within(framing.question, start, stop, tokens)
        own = read_on(model, layers, start, token_ids[:, start:stop], tokens, asked, look)
        started = now()
        peak = max(
            peak,
            sum(
                sum(kept.entries()) + keys[0, :, :, 0].numel()
                for kept, (keys, _) in zip(layers, own, strict=True)
            ),
        )
        lossy = (isinstance(ratio, Threshold) or ratio > 0) and not press.lossless
        selections: list[Selection] = []
        if lossy and observed:
            all_evidence = [evidence[index] for index in observed]
            selections = (
                press.select_above(all_evidence, ratio)
                if isinstance(ratio, Threshold)
                else press.select(all_evidence, ratio)
            )
        if selections and press.next_position(selections) != stop - start:
            raise ValueError(
                f"press {press.name} gives kept keys new positions, which chunks cannot follow; run it with prefill=shared"
            )
        chosen = dict(zip(observed, selections, strict=True)) if selections else {}
        longer = []
        for index, (kept, (keys, values)) in enumerate(zip(layers, own, strict=True)):
            selection = chosen.get(index, Selection(torch.ones_like(keys[..., 0], dtype=torch.bool)))
            k, v = press.apply(keys, values, selection) if index in chosen else (keys, values)
            end = None if index in observed else stop
            window, at = window_of(modules[index]), selection.positions[0] + start
            longer.append(extended(kept, k[0], v[0], selection.counts[0], at, window, end))
        layers = longer
        for number, positions in enumerate(watched):
            here = [position - start for position in _part(positions, start, stop)]
            survived[number] += share_kept(selections, here) * len(here)
        chunks.append((stop - start, ratio))
        kept_by.append(keeping_heads(selections) if count_kept and selections else None)
        observing += sum(seen.seconds.values())
        compressing += now() - started
    if len(chunks) == 1:
        return replace(context, peak_entries=peak, chunks=chunks), observing
    full = [
        tokens * kept.storage.keys.shape[0] if at in observed else sum(kept.entries())
        for at, kept in enumerate(layers)
    ]
    sizes = [
        (kept.storage.size + kept.storage.values.shape[-1]) * kept.storage.values.element_size()
        for kept in layers
    ]
    full_bytes = sum(entries * size_ for entries, size_ in zip(full, sizes, strict=True))
    shares = [
        share / len(positions) if positions else 1.0
        for share, positions in zip(survived, watched, strict=True)
    ]
    everything = sum(layers[index].storage.keys.shape[0] for index in observed)
    counted = [
        torch.full((n,), everything, dtype=torch.int32) if one is None else one
        for one, (n, _) in zip(kept_by, chunks, strict=True)
    ]
    counts = torch.cat(counted) if count_kept else None
    found = CompressedContext(
        layers, observed, tokens, tokens, sum(full), full_bytes, shares, compressing, counts, peak, chunks
    )
    return found, observing


def _part(positions: Sequence[int], start: int, stop: int) -> list[int]:
    return [position for position in positions if start <= position < stop]


def _within(question: int, start: int, stop: int, tokens: int) -> int:
    """How many of the context's last `question` tokens stand at the end of the chunk, where it ends with the context."""
    return min(question, stop - start) if stop == tokens else 0
