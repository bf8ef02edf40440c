"""`compress_every=N`: compress after every chunk of the context, so that the peak of the cache shrinks too.

Every chunk is read on what is kept of the chunks before it, and then compressed as a context of its own; what
was kept stays. Hidden states depend on the press from the second chunk on, so every variant reads the context
by itself. One chunk is the shared prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kvcache.budget import Budget
from kvcache.compress import FullLayer, Target, compress
from kvcache.hooks.chunked_forward import chunked_forward, extended
from kvcache.hooks.prefill import PromptTokens
from kvcache.layer_state import LayerState
from kvcache.modules import attention_modules, is_left_whole, windows_of
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.storage import KVView
from longpress.pipeline.clock import now
from longpress.pipeline.compressed_context import Chunk, CompressedContext, heads_keeping, share_kept
from longpress.pipeline.sweep_observer import PrefilledContext, SweepObserver
from longpress.pipeline.variants import Variant


def check_compress_while_reading(variant: Variant) -> None:
    """Refuse a press that needs the whole context at once, or works while answers are written.

    Raises:
        ValueError: it passes over the cached context again, gives kept keys new positions, adds entries,
            works while decoding, or the cache is to be quantised.
    """
    press = variant.press
    if variant.cache_bits is not None:
        raise ValueError(
            f"cache_bits={variant.cache_bits} with compress_every: quantised caches need the context whole; "
            "leave compress_every out"
        )
    if press.traits.needs_whole_context:
        raise ValueError(
            f"press {press.name} needs the whole context in the cache (it reads it again, or moves its "
            "positions), so it cannot compress chunk by chunk; leave compress_every out"
        )
    if variant.acts_while_decoding:
        raise ValueError(
            f"press {press.name} works while decoding, which compress_every cannot follow yet; leave it out"
        )


@dataclass
class _Reading:
    """A context at work: what is kept of the chunks that were read.

    Attributes:
        layers: per model layer, what is kept.
        states: per model layer, its state of fixed size, or None.
        chunks: the chunks, each with its budget.
        heads_keeping: per chunk, how many heads keep each of its tokens; None: all do.
        survived: per watched set of positions, how many of them are kept, averaged over layers and heads.
        peak: most entries that the cache held.
        observing: seconds spent observing.
        compressing: seconds spent selecting and applying.
    """

    layers: list[KVView]
    states: list[LayerState | None]
    chunks: list[Chunk]
    heads_keeping: list[Tensor | None]
    survived: list[float]
    peak: int
    observing: float
    compressing: float


def read_and_compress(
    model: nn.Module,
    token_ids: Tensor,
    variant: Variant,
    size: int,
    prefill: Callable[[Tensor, SweepObserver, PromptTokens, int], Any],
    prompt_tokens: PromptTokens,
    watched: Sequence[Sequence[int]] = (),
    count_kept: bool = False,
    rope_length: int = 0,
) -> tuple[CompressedContext, float]:
    """What a variant keeps of a context that is read and compressed `size` tokens at a time.

    Args:
        model: of transformers.
        token_ids: (1, T).
        variant: press and budget; every chunk of n tokens keeps what the press states for a context of n
            tokens.
        size: tokens per chunk.
        prefill: the ordinary prefill (ids, observer, prompt, RoPE length), which reads the first chunk.
        prompt_tokens: the prompt around the context.
        watched: sets of positions whose survival is to be measured.
        count_kept: whether to count the heads that keep each token.
        rope_length: of the whole prompt: see `kvcache.rope_frequencies`.

    Returns:
        What is kept, and the seconds spent observing.

    Raises:
        ValueError: the press needs the whole context at once; every layer has a sliding window shorter than
            the context.
    """
    check_compress_while_reading(variant)
    press, tokens = variant.press, token_ids.shape[1]
    variant = variant.for_context(tokens)
    modules: dict[Any, nn.Module] = {module.layer_idx: module for module in attention_modules(model)}
    observed = [index for index, module in modules.items() if not is_left_whole(model, module, tokens)]
    first, *rest = variant.budget.for_chunks(tokens, size)

    # The first chunk is an ordinary prefill.
    stop = min(size, tokens)
    observer = SweepObserver([press])
    question = _question_within(prompt_tokens.question, 0, stop, tokens)
    prefill(token_ids[:, :stop], observer, replace(prompt_tokens, question=question), rope_length)
    (context,) = PrefilledContext(observer, 0.0).compress(
        press, [first], [_within(positions, 0, stop) for positions in watched], count_kept=count_kept
    )
    watched_here = [len(_within(positions, 0, stop)) for positions in watched]
    reading = _Reading(
        layers=context.layers,
        states=context.states,
        chunks=[Chunk(stop, first)],
        heads_keeping=[context.kept_by],
        survived=[share * n for share, n in zip(context.evidence_kept, watched_here, strict=True)],
        peak=context.full_entries,
        observing=sum(observer.seconds.values()),
        compressing=context.seconds,
    )

    # Every other one is read on what is kept so far, and compressed by itself.
    for start, budget in zip(range(stop, tokens, size), rest, strict=True):
        stop = min(start + size, tokens)
        question = _question_within(prompt_tokens.question, start, stop, tokens)
        own, evidence = _read_chunk(
            model,
            reading,
            token_ids[:, start:stop],
            start,
            tokens,
            question,
            SweepObserver([press]),
            rope_length,
        )
        _keep_of_chunk(model, reading, variant, budget, own, evidence, observed, start)
        for number, positions in enumerate(watched):
            here = [position - start for position in _within(positions, start, stop)]
            reading.survived[number] += share_kept(evidence.selections, here) * len(here)
        kept_by = heads_keeping(evidence.selections) if count_kept and evidence.selections else None
        reading.heads_keeping.append(kept_by)

    if len(reading.chunks) == 1:
        return replace(context, peak_entries=reading.peak, chunks=reading.chunks), reading.observing
    return _finished(reading, observed, tokens, watched, count_kept), reading.observing


@dataclass
class _Evidence:
    """What a press remembers of a chunk, per observed layer, and what it then selects, if anything goes."""

    of_layers: dict[int, Any]
    selections: list[Selection]


def _read_chunk(
    model: nn.Module,
    reading: _Reading,
    token_ids: Tensor,
    start: int,
    tokens: int,
    question: int,
    observer: SweepObserver,
    rope_length: int,
) -> tuple[list[tuple[Tensor, Tensor]], _Evidence]:
    """A chunk's own keys and values in every layer, and what the press observed in them."""
    evidence = _Evidence({}, [])

    def look(layer: LayerObservation) -> None:
        observed = list(observer.observe(layer).values())
        for failure in observer.failures.values():
            raise failure
        (evidence.of_layers[layer.index],) = observed

    own, reading.states = chunked_forward(
        model, reading.layers, reading.states, start, token_ids, tokens, question, look, rope_length
    )
    held = sum(sum(kept.entries()) for kept in reading.layers) + sum(
        keys.shape[1] * keys.shape[2] for keys, _ in own
    )
    reading.peak = max(reading.peak, held)
    reading.observing += sum(observer.seconds.values())
    return own, evidence


def _keep_of_chunk(
    model: nn.Module,
    reading: _Reading,
    variant: Variant,
    budget: Budget,
    own: Sequence[tuple[Tensor, Tensor]],
    evidence: _Evidence,
    observed: Sequence[int],
    start: int,
) -> None:
    """Compress a chunk, and put what is kept of it behind what is kept of the chunks before."""
    started = now()
    press, windows = variant.press, windows_of(model)
    n = max(keys.shape[2] for keys, _ in own)
    reading.chunks.append(Chunk(n, budget))

    # Layers that are left whole, and a press that removes nothing, keep all of the chunk.
    new = [
        KVView.of_full_layer(keys[0], values[0], n, window)
        for (keys, values), window in zip(own, windows, strict=True)
    ]
    positions = [torch.arange(n, device=keys.device).expand(keys.shape[1], -1) for keys, _ in own]
    if observed and variant.removes:
        compression = compress(
            press,
            [evidence.of_layers[index] for index in observed],
            [FullLayer(index, *own[index], windows[index]) for index in observed],
            [Target(budget)],
            all_layers=len(observed) == len(attention_modules(model)),
        )
        evidence.selections = compression.choices[budget].selections
        for (layer, ((view,),)), selection in zip(compression, evidence.selections, strict=True):
            new[layer.index] = view
            positions[layer.index] = selection.positions[0].to(view.storage.device)

    # A window of a layer that is left whole moves on with the chunk.
    reading.layers = [
        kept
        if kept.is_nothing
        else extended(kept, more, at + start, window, None if index in observed else start + n)
        for index, (kept, more, at, window) in enumerate(
            zip(reading.layers, new, positions, windows, strict=True)
        )
    ]
    reading.compressing += now() - started


def _finished(
    reading: _Reading, observed: list[int], tokens: int, watched: Sequence[Sequence[int]], count_kept: bool
) -> CompressedContext:
    """What is kept of the whole context, with what was measured on the way."""
    # Of layers with windows the full cache holds no more than is kept.
    full_entries, full_bytes = 0, 0
    for index, kept in enumerate(reading.layers):
        entries = tokens * kept.storage.heads if index in observed else sum(kept.entries())
        channels = kept.storage.size + kept.storage.values.shape[-1]
        full_entries += entries
        full_bytes += entries * channels * kept.storage.values.element_size()

    kept_by = None
    if count_kept:
        everything = sum(reading.layers[index].storage.heads for index in observed)
        of_chunks = [
            torch.full((chunk.tokens,), everything, dtype=torch.int32) if heads is None else heads
            for heads, chunk in zip(reading.heads_keeping, reading.chunks, strict=True)
        ]
        kept_by = torch.cat(of_chunks)

    return CompressedContext(
        reading.layers,
        observed,
        tokens,
        tokens,
        full_entries,
        full_bytes,
        evidence_kept=[
            share / len(positions) if positions else 1.0
            for share, positions in zip(reading.survived, watched, strict=True)
        ],
        seconds=reading.compressing,
        kept_by=kept_by,
        peak_entries=reading.peak,
        chunks=reading.chunks,
        states=reading.states,
    )


def _within(positions: Sequence[int], start: int, stop: int) -> list[int]:
    return [position for position in positions if start <= position < stop]


def _question_within(question: int, start: int, stop: int, tokens: int) -> int:
    """How many of the context's last `question` tokens stand in its last chunk; none in any other."""
    return min(question, stop - start) if stop == tokens else 0
