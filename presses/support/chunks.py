"""A part of a context as if it were the whole."""

from __future__ import annotations

import zlib
from dataclasses import replace

from torch import Tensor

from kvcache.budget import Budget
from kvcache.observation import LayerObservation


def part(layer: LayerObservation, start: int, stop: int) -> LayerObservation:
    """The positions start:stop of `layer`, as if they were the whole context.

    What comes after them continues at `stop`.
    """

    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        return layer.rope(positions + start)

    return replace(
        layer,
        hidden=layer.hidden[:, start:stop],
        keys=layer.keys[:, :, start:stop],
        values=layer.values[:, :, start:stop],
        cos=layer.cos[:, start:stop],
        sin=layer.sin[:, start:stop],
        rope=rope,
        fingerprints=tuple(zlib.crc32(f"{start}:{stop}".encode(), row) for row in layer.fingerprints),
        token_ids=None if layer.token_ids is None else layer.token_ids[:, start:stop],
        whole=layer,
        _memo={},
    )


def entries_of_chunks(budget: Budget, tokens: int, length: int) -> list[int]:
    """Entries kept per head of each chunk of `length` tokens."""
    lengths = [min(length, tokens - start) for start in range(0, tokens, length)]
    budgets = budget.for_chunks(tokens, length)
    return [of_chunk.entries(n) for n, of_chunk in zip(lengths, budgets, strict=True)]
