"""How much memory a sweep takes: an upper bound, stated before anything is allocated.

Reading a context holds its full cache, what presses remember of it, the work of one layer, and what the
variants keep of it. Contexts whose answers are still being written stay beside it as long as both fit
`max_context_bytes`. A decode batch holds the tails of its rows and one layer's attention. Every part is
linear in the length of the context: nothing of size T x T exists.

Where a context does not fit a GPU beside the weights, what variants keep of it lies in host memory
(`offload`), and each layer's entries are moved to the device when the layer reads them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kvcache.budget import Budget
from kvcache.hooks.replay import PIECE
from kvcache.layer_state import state_bytes_of
from kvcache.linear import computing_type
from kvcache.modules import attention_modules, decoder_of
from kvcache.observation import LOGITS, QUERY_BLOCK
from kvcache.projections import head_size, kv_heads, query_heads
from kvcache.storage import HOST
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.variants import Variant
from presses.base import BasePress

WIDE = 192
"""Unfinished rows at which decoding is fastest: with fewer, the next context is read if memory allows."""

GRADIENT = 1024
"""Tokens of a chunk that is read again with gradients."""

SLACK = 1.1
"""What an allocator needs beside what was asked of it,"""
SMALL = 96 * 2**20
"""and for what does not grow with the context: thread pools, tables of kernels, prompts."""


@dataclass(frozen=True)
class Shape:
    """What of a model decides over memory.

    Attributes:
        layers: L, those that cache keys and values.
        heads: H.
        query_heads: H * G.
        head_size: d.
        hidden: D.
        inner: channels of the feed-forward part.
        vocabulary: tokens.
        element: bytes of a number in the cache.
        weights: bytes of all parameters.
        state: bytes of the states of fixed size that a row has in all layers; see `kvcache.layer_state`.
    """

    layers: int
    heads: int
    query_heads: int
    head_size: int
    hidden: int
    inner: int
    vocabulary: int
    element: int
    weights: int
    state: int = 0

    @classmethod
    def of(cls, model: nn.Module) -> Shape:
        """Of a model of transformers; one on the meta device will do."""
        modules = attention_modules(model)
        config: Any = model.config
        text = config.get_text_config()
        given = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        inner = max(
            int(max(given) if isinstance(given, list | tuple) else given), 1
        )  # Gemma 3n names one per layer
        stored = {id(one): one for one in itertools.chain(model.parameters(), model.buffers())}
        return cls(
            len(modules),
            max(kv_heads(module) for module in modules),
            max(query_heads(module) for module in modules),
            max(head_size(module) for module in modules),
            int(text.hidden_size),
            inner,
            int(text.vocab_size),
            computing_type(decoder_of(model)).itemsize,
            sum(one.numel() * one.element_size() for one in stored.values()),
            state_bytes_of(model),
        )

    @property
    def token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.layers * self.heads * self.head_size * self.element


@dataclass(frozen=True)
class MemoryPlan:
    """Upper bounds in bytes; all but `on_host` of the device that computes.

    Attributes:
        weights: of the model.
        reading: of one context: `full_cache`, `evidence`, `work` and `stored` together.
        full_cache: keys and values of the whole context, and states of fixed size.
        evidence: what presses remember of it: scores, and what they select.
        work: activations of the prefill, and of presses looking at one layer.
        stored: what the variants keep of it; with `on_host`, their masks and the copies that one variant
            makes before they are moved.
        contexts: of all contexts held at once, the one being read included.
        decoding: of the batch of answers.
        on_host: of one context, full cache and copies in host memory while answers are written; 0 where
            nothing is offloaded.
    """

    weights: int
    full_cache: int
    evidence: int
    work: int
    stored: int
    contexts: int
    decoding: int
    on_host: int = 0

    @property
    def reading(self) -> int:
        """Bytes of one context while it is read."""
        return self.full_cache + self.evidence + self.work + self.stored

    @property
    def beside_weights(self) -> int:
        """Everything but the weights, with what the allocator takes."""
        return int(SLACK * (self.contexts + self.decoding)) + SMALL

    @property
    def total(self) -> int:
        """The bound of a sweep."""
        return self.weights + self.beside_weights

    def __str__(self) -> str:
        """One line for people."""
        parts = ("weights", "full_cache", "evidence", "work", "stored", "decoding")
        told = ", ".join(f"{name.replace('_', ' ')} {getattr(self, name) / 2**20:,.0f}" for name in parts)
        away = f"; in host memory, of each context {self.on_host / 2**20:,.0f}" if self.on_host else ""
        together = f"contexts held together {self.contexts / 2**20:,.0f}"
        return f"at most {self.total / 2**20:,.0f} MiB: {told}; {together}{away}"


def memory_plan(
    shape: Shape,
    tokens: int,
    variants: Sequence[Variant],
    tail: int,
    options: PipelineOptions,
    *,
    questions: int = 1,
    readings: int = 1,
    contexts: int = 1,
    query_aware: bool = False,
    offload: bool = False,
) -> MemoryPlan:
    """The bound of a sweep over contexts of at most `tokens`.

    Args:
        shape: of the model.
        tokens: T, of the longest context.
        variants: of every context.
        tail: most tokens of a question and its answer together.
        options: of the pipeline.
        questions: asked about each context.
        readings: of each context, where its questions need several: see `kvcache.rope_frequencies`.
        contexts: how many there are.
        query_aware: whether every question needs a compressed context of its own.
        offload: whether what variants keep lies in host memory.
    """
    variants = [variant.for_context(tokens) for variant in variants]
    alone = options.compress_every is not None  # each variant reads the context by itself
    chunk = options.compress_every or options.prefill_chunk
    entries = shape.layers * shape.heads * tokens
    presses = list({variant.press.identity(): variant.press for variant in variants}.values())

    # While a context is read: the full cache, what presses remember of it, and the work of one layer.
    full = shape.token * (min(tokens, chunk) if alone and chunk else tokens) + shape.state
    remembered = sum(press.evidence_bytes(shape.heads, shape.hidden) for press in presses)
    evidence = shape.layers * tokens * remembered + entries * _selecting(variants)
    windows = _window_queries(presses) + (tail if query_aware else 0)
    work = _work(shape, tokens, chunk, windows)
    if any(press.traits.reads_again for press in presses):
        work += _again(shape, tokens)

    # What the variants keep of it: a mask each, and copies where the full cache is not read in place.
    readings, whole = questions if query_aware else readings, shape.token * tokens
    copies = int(full_kept(variants, tokens, alone) * whole) * readings + whole * (readings - 1)
    stored = entries * len(variants) * readings + (min(copies, whole) if offload else copies)
    stored += shape.state * readings * (len(variants) if alone else 1)
    reading = full + evidence + stored + work

    # While answers are decoded: the rows of a batch, their questions, and the entries of rows with decode
    # hooks.
    max_batch_bytes, max_context_bytes = (
        int(gb * 2**30) for gb in (options.max_batch_gb, options.max_context_gb)
    )
    rows, row = len(variants) * questions, row_bytes(shape, tokens, tail)
    most = min(contexts * rows, WIDE + rows)
    batch = min(max(max_batch_bytes, row), most * row)
    asking = min(max_batch_bytes, most * tail * attention_bytes(shape.query_heads, tokens + tail))
    asking += most * tail * 4 * _per_token(shape)
    acting = sum(variant.acts_while_decoding for variant in variants)
    own = 2 * acting * questions * min(contexts, 1 + WIDE // rows) * shape.token * (tokens + tail)
    decoding = batch + asking + own + 2 * whole // shape.layers

    together = max(reading, min(contexts * reading, max_context_bytes))
    on_host = full + copies if offload else 0
    return MemoryPlan(shape.weights, full, evidence, work, stored, together, decoding, on_host)


def _selecting(variants: Sequence[Variant]) -> int:
    """Bytes per entry while one press selects: masks and positions per budget, and the sort of all layers."""
    budgets: dict[Hashable, set[Budget]] = {}
    for variant in variants:
        budgets.setdefault(variant.press.identity(), set()).add(variant.budget)
    return max(map(len, budgets.values()), default=0) * 9 + 40


def _window_queries(presses: Sequence[BasePress]) -> int:
    """Queries of the context's end whose attention is held at once.

    That of windows of equal size is held once for all presses; of one at a time there are copies in float32.
    """
    windows = {press.traits.window_queries for press in presses}
    return sum(windows) + 3 * max(windows, default=0)


def room(model: nn.Module, offload: str) -> float:
    """Bytes that a plan may total before caches are offloaded: those of the GPUs that hold the model.

    None for "always".     Infinite for "never", where "auto" finds no GPU, and for a model that lies on the
    CPU, whose memory is the host's, or is not loaded.
    """
    devices = {one.device for one in model.parameters()}
    if offload == "never" or devices <= {HOST, torch.device("meta")}:
        return math.inf
    memory = sum(
        torch.cuda.get_device_properties(device).total_memory for device in devices if device.type == "cuda"
    )
    return 0 if offload == "always" else memory or math.inf


def read_in_place(variants: Sequence[Variant], tokens: int) -> bool:
    """Whether copies of what the presses keep of a context would take more memory than the full cache itself.

    Then they would also take more time to read.
    """
    plain = [
        variant for variant in variants if variant.cache_bits is None
    ]  # a quantised cache is a copy anyway
    if any(not variant.removes for variant in plain):
        return True  # the full cache is read anyway
    most: dict[Hashable, float] = {}
    for variant in plain:
        budget, identity = variant.budget, variant.press.identity()
        kept = budget.kept_share(tokens) if budget.has_count else 1.0
        most[identity] = max(kept, most.get(identity, 0.0))
    return sum(most.values()) > 1


def full_kept(variants: Sequence[Variant], tokens: int, alone: bool) -> float:
    """Share of the full cache that copies take, of what variants keep.

    Variants whose kept sets are nested share the largest; none is copied where the full cache is read in
    place; where each variant reads alone, each has its own.
    """
    in_place = not alone and read_in_place(variants, tokens)
    shares: dict[Any, list[float]] = {}
    nested: dict[Any, bool] = {}
    for variant in (given.for_context(tokens) for given in variants):
        press, traits = variant.press, variant.press.traits
        shareable = variant.cache_bits is None and traits.only_selects and not variant.acts_while_decoding
        keeps_all = not traits.evicts_in_prefill and not alone and variant.cache_bits is None
        there = keeps_all or (in_place and shareable)
        kept = 0.0 if there else press.entry_bounds(1, 1, tokens, variant.budget)[1] / tokens
        group = (press.identity(), variant.cache_bits)
        shares.setdefault(group, []).append(min(1.0, kept))
        nested[group] = shareable and traits.takes_threshold and not alone
    return sum(max(kept) if nested[group] else sum(kept) for group, kept in shares.items())


def row_bytes(shape: Shape, entries: int, tail: int) -> int:
    """Bytes that a row adds to its batch: tails, masks, attention for one query, logits, and its states.

    Of states there are two copies while rows leave or join.
    """
    masks = shape.layers * shape.heads * entries * shape.element
    return (
        masks
        + 2 * shape.state
        + tail * shape.token
        + attention_bytes(shape.query_heads, entries + tail)
        + logits_bytes(shape.vocabulary)
    )


def attention_bytes(query_heads: int, length: int) -> int:
    """Bytes of one query's attention in one layer: logits, their copy, weights in two dtypes."""
    return 16 * query_heads * length


def logits_bytes(vocabulary: int) -> int:
    """Bytes of a row's logits, in the model's dtype and in float32."""
    return 8 * vocabulary


def _again(shape: Shape, tokens: int) -> int:
    """Bytes of reading on top of the full cache: what is read, and the gradients of a chunk."""
    return (
        2 * shape.token * tokens
        + 2 * shape.state
        + 4 * _per_token(shape) * (PIECE + shape.layers * 2 * GRADIENT)
        + 5 * 4 * LOGITS
    )


def _per_token(shape: Shape) -> int:
    """Numbers per token in one decoder layer at work: attention with its rotation, feed-forward."""
    return (
        6 * shape.hidden
        + 4 * shape.query_heads * shape.head_size
        + 8 * shape.heads * shape.head_size
        + 4 * shape.inner
    )


def _work(shape: Shape, tokens: int, prefill_chunk: int | None, window_queries: int) -> int:
    """Bytes of activations: one layer reading (a chunk of) the context, and presses looking at all of it."""
    at_once = min(tokens, prefill_chunk or tokens)
    reading = 4 * (at_once * _per_token(shape) + 4 * tokens * shape.hidden + 6 * tokens * shape.head_size)
    copies = 6 * shape.query_heads * shape.head_size + 16 * shape.heads * shape.head_size + 3 * shape.hidden
    looking = 4 * tokens * (copies + window_queries * shape.query_heads) + 5 * 4 * min(
        LOGITS, QUERY_BLOCK * shape.query_heads * tokens
    )
    return max(reading, looking) + 4 * tokens * shape.hidden * 3
