"""Neighbouring rows of a batch that read one storage, so that it is read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Self

import torch
from torch import Tensor

from kvcache.storage import KVStorage, KVView


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Neighbouring rows of a batch, from row `start`, that read one storage.

    Attributes:
        start: index of the first row.
        rows: what each keeps.
        bias: (H, r, K), what is added to the logits of each row: 0 where it keeps the entry, -inf elsewhere;
            None: all keep all.
        has_empty_head: whether a row keeps nothing in some head.
    """

    start: int
    rows: list[KVView]
    bias: Tensor | None
    has_empty_head: bool

    @property
    def storage(self) -> KVStorage:
        """The entries that all rows read from."""
        return self.rows[0].storage

    @property
    def stop(self) -> int:
        """Index behind the last row."""
        return self.start + len(self.rows)

    @classmethod
    def of(cls, start: int, rows: list[KVView]) -> Self:
        """Rows of one storage."""
        if all(row.counts is None for row in rows):
            return cls(start, rows, None, False)
        storage = rows[0].storage
        bias = torch.zeros(
            storage.heads, len(rows), storage.length, dtype=storage.read_dtype, device=storage.device
        )
        for at, row in enumerate(rows):
            bias[:, at].masked_fill_(~row.exists(), float("-inf"))
        return cls(start, rows, bias, any(0 in row.entries() for row in rows))

    def moved(self, start: int, inside: list[int] | None = None) -> Self:
        """The rows `inside` the block, all by default, as a block that begins at row `start`."""
        if inside is None or len(inside) == len(self.rows):
            return replace(self, start=start)
        bias = None if self.bias is None else self.bias[:, inside]
        return replace(self, start=start, rows=[self.rows[row] for row in inside], bias=bias)


def blocks_of(rows: Sequence[KVView]) -> list[RowBlock]:
    """One block per run of neighbouring rows with the same storage."""
    runs = [list(run) for _, run in groupby(rows, key=lambda row: id(row.storage))]
    starts = accumulate((len(run) for run in runs), initial=0)
    return [RowBlock.of(start, run) for start, run in zip(starts, runs, strict=False)]
