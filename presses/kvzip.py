"""KVzip: keep what the model reads when it repeats the context.

The model is asked to repeat the context, chunk by chunk, on top of the full cache; score_t = max over the
tokens of the repetition and the query heads of a group of softmax(q·k/√d) over the first tokens, the chunk
and the repetition itself. The lowest scores of all layers and heads together go.
Source: Kim et al. 2025, arXiv 2505.23416; KVzip+ of kvpress 0.5.5.
Differs: head-wise budgets are real. Without a tokenizer (`with press(model)` on bare ids) the chunk is
repeated without being asked for. Layers with sliding windows are left whole. Tokens of the chat template in
front of the context are not repeated and, beyond `n_sink`, score 0, as in kvpress.
Cost: one more pass over the context on top of its cache, 2 to 3 times the prefill, once for all ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from kvcache.compressing import Prefill
from kvcache.devices import together
from kvcache.observation import LayerObservation
from kvcache.projections import output_weight
from kvcache.replay import replay
from kvcache.selection import Selection, check_ratio
from presses.base import BasePress
from presses.scorer import pin

FIRST = "\n\nRepeat the previous context exactly."
NEXT = "\n\nRepeat the part of the previous context exactly, starting with"
REMINDER = 8
"""Tokens before a chunk that are quoted when the model is asked to go on from there."""

QUERY_BLOCK = 256
"""Queries of the repetition whose attention is held at once."""


class Chunk(NamedTuple):
    """A part of the context and the ids that make the model repeat it."""

    start: int
    stop: int
    token_ids: Tensor  # (B, n)


@dataclass(frozen=True)
class KVzipPress(BasePress):
    """Attention while the context is being repeated.

    Attributes:
        compression_ratio: fraction of entries removed, in [0, 1).
        layerwise: whether every layer keeps as much as any other; heads of a layer compete in any case.
        n_sink: first tokens, always kept.
        kvzip_plus_normalization: KVzip+: multiply by the norm of what the value adds to the hidden state,
            divide by that of the state.
        chunk_size: tokens of the context repeated in one pass.
    """

    whole_context: ClassVar[bool] = True

    compression_ratio: float = 0.0
    layerwise: bool = False
    n_sink: int = 4
    kvzip_plus_normalization: bool = False
    chunk_size: int = 2048

    def __post_init__(self) -> None:
        """Refuse a ratio outside [0, 1) and empty chunks."""
        object.__setattr__(self, "compression_ratio", check_ratio(self.compression_ratio))
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size={self.chunk_size} must be at least 1 token")
        if self.n_sink < 0:
            raise ValueError(f"n_sink={self.n_sink} must not be negative")

    def observe(self, layer: LayerObservation) -> None:
        """Nothing: the context is looked at while it is repeated."""

    def probe(self, prefill: Prefill, evidence: Sequence[Any]) -> list[Tensor]:
        """Per layer the scores (B, H, T), from one repetition."""
        scores = [
            torch.zeros(_layer(prefill, index).keys.shape[:3], device=_layer(prefill, index).keys.device)
            for index in prefill.layers
        ]
        where = {index: at for at, index in enumerate(prefill.layers)}
        with torch.no_grad():
            for chunk in chunks(prefill, self.chunk_size, self.name):
                for index, found in self._scores(prefill, chunk):
                    scores[where[index]][..., chunk.start : chunk.stop] = found
        pinned = pin(torch.cat(list(together(scores)), dim=1), first=self.n_sink)
        return list(pinned.chunk(len(scores), dim=1))

    def _scores(self, prefill: Prefill, chunk: Chunk) -> Iterator[tuple[int, Tensor]]:
        """Layer index and scores (B, H, C) of one chunk's entries."""
        found: dict[int, Tensor] = {}

        def look(seen: LayerObservation) -> None:
            rows = seen.hidden.float().norm(dim=-1).reciprocal() if self.kvzip_plus_normalization else None
            scores = chunk_scores(prefill, seen, chunk, self.n_sink, rows, self.kvzip_plus_normalization)
            found[seen.index] = torch.maximum(scores, found[seen.index]) if seen.index in found else scores

        replay(prefill, chunk.token_ids, look)
        return iter(found.items())

    def select(self, evidence: Sequence[Tensor], ratio: float) -> list[Selection]:
        """The highest scores of all layers and heads; a head may keep nothing."""
        return globally_highest(evidence, ratio, self.layerwise)

    def entries(self, layers: int, heads: int, tokens: int, ratio: float) -> tuple[int, int]:
        """All entries but `int(n · ratio)`, of all layers together or of each."""
        return globally_kept(layers, heads, tokens, ratio, self.layerwise)


def globally_kept(layers: int, heads: int, tokens: int, ratio: float, layerwise: bool) -> tuple[int, int]:
    """What `globally_highest` keeps, exactly: all entries but `int(n · ratio)`, of all layers together or of each."""
    groups = layers if layerwise else 1
    size = layers * heads * tokens // groups
    exact = groups * (size - int(size * ratio))
    return exact, exact


def globally_highest(evidence: Sequence[Tensor], ratio: float, layerwise: bool = False) -> list[Selection]:
    """All but the `int(n · ratio)` lowest of the n scores of all layers, each (B, H, T), together, or of each layer alone."""
    if layerwise:
        return [selection for scores in evidence for selection in globally_highest([scores], ratio)]
    stacked = torch.stack(list(evidence), dim=1)  # (B, L, H, T)
    n = stacked[0].numel()
    keep = Selection.top(stacked.flatten(1)[:, None], n - int(n * ratio)).keep.view_as(stacked)
    return [Selection(layer) for layer in keep.unbind(1)]


def chunks(prefill: Prefill, size: int, name: str) -> Iterator[Chunk]:
    """The context in chunks of `size` tokens, each with the ids that ask for its repetition and repeat it.

    Raises:
        ValueError: the model was given embeddings, which cannot be repeated.
    """
    ids, framing = prefill.token_ids, prefill.framing
    if ids is None:
        raise ValueError(
            f"{name} lets the model repeat the context, for which it needs token ids; the model was given embeddings"
        )

    def tokens(known: Callable[[], Sequence[int]]) -> Tensor:
        given = torch.tensor([] if framing is None else list(known()), dtype=ids.dtype, device=ids.device)
        return given.expand(ids.shape[0], -1)

    first = 0 if framing is None else framing.before
    for start in range(first, ids.shape[1], size):
        stop = min(start + size, ids.shape[1])
        text = FIRST if start == first else NEXT
        asked = tokens(lambda text=text: framing.encode(text))  # type: ignore[misc, union-attr]
        reminder = ids[:, max(start - size, start - REMINDER) : start] if start > first else ids[:, :0]
        yield Chunk(
            start,
            stop,
            torch.cat((asked, reminder, tokens(lambda: framing.after), ids[:, start:stop]), dim=1),
        )  # type: ignore[union-attr]


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
    full = _layer(prefill, seen.index)
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


def output_norms(layer: LayerObservation, values: Tensor) -> Tensor:
    """(B, H, G, C): for values (B, H, C, d), the norm of what each adds to the hidden state through the output projection of each head."""
    weight = output_weight(layer.module).float()  # (H * G, d, D)
    gram = (weight @ weight.transpose(1, 2)).unflatten(0, (-1, layer.group))  # (H, G, d, d)
    spread = values.float()[:, :, None]  # (B, H, 1, C, d)
    return ((spread @ gram) * spread).sum(-1).clamp(min=0).sqrt()


def _layer(prefill: Prefill, index: int) -> Any:
    return prefill.cache.layers[index]
