"""The compressed cache: context entries shared read-only by decode rows, and a growing tail of every row's own tokens.

A row is one answer being written: a variant (press and budget) of a context, and a question. Rows of one
batch may keep different entries per layer and head. Nothing is padded in memory: variants share the full
cache, of which each has a mask, or one storage ordered by rank, of which each reads a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from kvcache.storage import KVStorage, KVView


@dataclass(frozen=True, eq=False)
class Block:
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
        """That all rows read."""
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


def blocks_of(rows: Sequence[KVView]) -> list[Block]:
    """One block per run of neighbouring rows with the same storage."""
    runs = [list(run) for _, run in groupby(rows, key=lambda row: id(row.storage))]
    starts = accumulate((len(run) for run in runs), initial=0)
    return [Block.of(start, run) for start, run in zip(starts, runs, strict=False)]


class CompressedLayer(CacheLayerMixin):
    """One layer of a compressed cache for R rows.

    A transformers cache layer: `update` appends, `get_seq_length` is the number of tokens that the row's
    positions continue from (not the number of entries kept, as in transformers' own sliding-window layers).
    """

    is_sliding = False
    is_compileable = False
    is_croppable = True

    def __init__(
        self,
        rows: Sequence[KVView],
        next_position: int | Sequence[int],
        capacity: int = 0,
        decode_hooks: Sequence[Any] | None = None,
    ) -> None:
        """Rows over stored entries.

        Args:
            rows: what each row keeps of its context.
            next_position: at which the tokens after the context continue, one for all rows or one each.
            capacity: tokens of tail to reserve; the tail grows by itself beyond it.
            decode_hooks: per row what acts while its answer is written (`kvcache.hooks.decode_hooks`), or None.
        """
        self.decode_hooks: list[Any] = [None] * len(rows) if decode_hooks is None else list(decode_hooks)
        self.entry_metadata = [row.entry_metadata for row in rows]
        self.held_passes: dict[int, list[Any]] | None = None
        self.blocks = blocks_of(rows)
        first = rows[0].storage
        self.device, self.dtype = first.device, first.read_dtype
        positions = [next_position] * len(rows) if isinstance(next_position, int) else list(next_position)
        self.start = torch.tensor(positions, device=self.device)  # (R,)
        self.lengths = torch.zeros(
            len(rows), dtype=torch.long, device=self.device
        )  # (R,) tokens in each row's tail
        self.longest = 0
        self.even = True
        self.armed = False
        self.is_initialized = True
        # zeros: what padding leaves behind a shorter tail is weighted with 0, and 0 times an uninitialised
        # NaN is NaN
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        self.tail_keys = like.new_zeros(len(rows), first.heads, capacity, first.size)
        self.tail_values = like.new_zeros(len(rows), first.heads, capacity, first.stored_values.shape[-1])

    @property
    def rows(self) -> int:
        """Number R of rows."""
        return self.start.shape[0]

    @property
    def is_ragged(self) -> bool:
        """Whether rows or heads keep different numbers of entries, so that only our attention may read the cache."""
        lengths = {block.storage.length for block in self.blocks}
        return len(lengths) > 1 or not self.even or any(block.bias is not None for block in self.blocks)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (R, H, n, d) keys and values of n new tokens to every row's tail.

        Returns:
            The row's keys and values (R, H, K, d): all of them where every head kept the same number, so that
            any attention function can read them; only the new ones inside `attending(model)`, whose attention
            function reads the layer itself.

        Raises:
            ValueError: a per-head cache is read outside `attending(model)`.
        """
        n = key_states.shape[2]
        needed = self.longest + n
        if needed > self.tail_keys.shape[2]:
            self._grow(max(needed, self.tail_keys.shape[2] + max(32, self.tail_keys.shape[2] // 4)))
        if self.even:
            self.tail_keys[:, :, self.longest : needed] = key_states
            self.tail_values[:, :, self.longest : needed] = value_states
        else:
            rows = torch.arange(self.rows, device=self.device)[:, None]
            at = self.lengths[:, None] + torch.arange(n, device=self.device)  # (R, n)
            self.tail_keys[rows, :, at] = key_states.transpose(1, 2)
            self.tail_values[rows, :, at] = value_states.transpose(1, 2)
        self.lengths = self.lengths + n
        self.longest = needed
        if self.armed:
            self.armed = False
            return key_states, value_states
        if self.is_ragged:
            raise ValueError(
                "this cache keeps different numbers of entries per head: read it inside `with press(model)` or `attending(model)`"
            )
        return self.keys, self.values

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Forget what stands behind the first `lengths` tokens of each row's tail (padding of a shorter question)."""
        self.lengths = torch.tensor(lengths, device=self.device)
        self.longest, self.even = max(lengths), len(set(lengths)) == 1

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all rows but these (rising indices)."""
        index = torch.tensor(rows, device=self.device)
        blocks, start = [], 0
        for block in self.blocks:
            inside = [row - block.start for row in rows if block.start <= row < block.stop]
            if inside:
                blocks.append(block.moved(start, inside))
                start += len(inside)
        self.blocks, self.start, self.lengths = blocks, self.start[index], self.lengths[index]
        self.decode_hooks, self.entry_metadata = (
            [self.decode_hooks[row] for row in rows],
            [self.entry_metadata[row] for row in rows],
        )
        remaining = self.lengths.tolist()
        self.longest, self.even = max(remaining), len(set(remaining)) == 1
        self.tail_keys, self.tail_values = self.tail_keys[index], self.tail_values[index]

    def join(self, other: CompressedLayer) -> None:
        """Take over the rows of another layer, behind the own ones."""
        moved = [block.moved(block.start + self.rows) for block in other.blocks]
        self.blocks, self.decode_hooks = [*self.blocks, *moved], [*self.decode_hooks, *other.decode_hooks]
        self.entry_metadata = [*self.entry_metadata, *other.entry_metadata]
        for name in ("tail_keys", "tail_values"):
            mine, theirs = getattr(self, name), getattr(other, name)
            new = mine.new_zeros(
                self.rows + other.rows, mine.shape[1], max(mine.shape[2], theirs.shape[2]), mine.shape[3]
            )
            new[: self.rows, :, : mine.shape[2]], new[self.rows :, :, : theirs.shape[2]] = mine, theirs
            setattr(self, name, new)
        self.start = torch.cat((self.start, other.start))
        self.set_lengths([*self.lengths.tolist(), *other.lengths.tolist()])

    def kept(self) -> list[KVView]:
        """What each row keeps in storage, its tail apart."""
        return [row for block in self.blocks for row in block.rows]

    def row_entries(self, row: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """A row's entries, stored ones and tail: keys, values (1, H, K, d), which exist (1, H, K), positions (H, K) under a window."""
        kept, tail = self.kept()[row], int(self.lengths[row])
        storage, heads, exists = kept.storage, self.tail_keys.shape[1], kept.exists()
        valid = torch.cat((exists, exists.new_ones(heads, tail)), dim=1)[None]
        positions = None
        if storage.positions is not None:
            own = self.start[row] + torch.arange(tail, device=self.device)
            positions = torch.cat((storage.positions.expand(heads, -1), own.expand(heads, -1)), dim=1)
        keys = torch.cat(
            (storage.whole_keys().masked_fill(~exists[..., None], 0), self.tail_keys[row, :, :tail]), dim=1
        )
        values = torch.cat(
            (storage.values.masked_fill(~exists[..., None], 0), self.tail_values[row, :, :tail]), dim=1
        )
        return keys[None], values[None], valid, positions

    def replace_row(self, row: int, kept: KVView) -> None:
        """Give a row entries of its own in the place of what it stored and of its tail; other rows see no difference."""
        at = next(at for at, block in enumerate(self.blocks) if row < block.stop)
        block = self.blocks[at]
        before, after = list(range(row - block.start)), list(range(row - block.start + 1, len(block.rows)))
        parts = [block.moved(block.start, before)] if before else []
        parts += [Block.of(row, [kept]), *([block.moved(row + 1, after)] if after else [])]
        self.blocks[at : at + 1], self.entry_metadata[row] = parts, kept.entry_metadata
        lengths = self.lengths.tolist()
        self.start = self.start.clone()
        self.start[row] += lengths[row]
        lengths[row] = 0
        self.set_lengths(lengths)

    def bytes_of_rows(self) -> list[int]:
        """Bytes of each row's entries, tail included."""
        token = (
            self.tail_keys.shape[1]
            * (self.tail_keys.shape[3] + self.tail_values.shape[3])
            * self.tail_keys.element_size()
        )
        return [
            kept.bytes() + token * length
            for kept, length in zip(self.kept(), self.lengths.tolist(), strict=True)
        ]

    @property
    def valid(self) -> Tensor:
        """(R, H, K) bool: which of `keys` and `values` exist; the rest is padding."""
        return self._padded(None)

    @property
    def keys(self) -> Tensor:
        """(R, H, K, d) keys, context first, then the tail; padded where heads or rows differ."""
        return self._padded("keys")

    @keys.setter
    def keys(self, value: Any) -> None:
        """Transformers' constructors assign None here; the entries live in `blocks`."""

    @property
    def values(self) -> Tensor:
        """(R, H, K, d) values, like `keys`."""
        return self._padded("values")

    @values.setter
    def values(self, value: Any) -> None:
        """Transformers' constructors assign None here; the entries live in `blocks`."""

    def _padded(self, what: str | None) -> Tensor:
        heads = self.tail_keys.shape[1]
        width = max(max(kept.entries()) for kept in self.kept())
        valid = torch.zeros(self.rows, heads, width, dtype=torch.bool, device=self.device)
        entries = None
        if what is not None:
            tail = self.tail_keys if what == "keys" else self.tail_values
            entries = tail.new_zeros(self.rows, heads, width, tail.shape[-1])
        for row, kept in enumerate(self.kept()):
            keys, values, padding, _ = kept.read()
            length = keys.shape[1]
            valid[row, :, :length] = True if padding is None else ~padding
            if entries is not None:
                entries[row, :, :length] = kept.storage.whole(keys) if what == "keys" else values
        if entries is None:
            in_tail = torch.arange(self.longest, device=self.device) < self.lengths[:, None]
            return torch.cat((valid, in_tail[:, None].expand(-1, heads, -1)), dim=2)
        entries[~valid] = 0
        return torch.cat((entries, tail[:, :, : self.longest]), dim=2)

    def _grow(self, capacity: int) -> None:
        for name in ("tail_keys", "tail_values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], capacity, old.shape[-1])
            new[:, :, : self.longest] = old[:, :, : self.longest]
            setattr(self, name, new)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: a compressed layer is made whole."""

    def get_seq_length(self) -> int:
        """Position at which the next token continues (of the longest row)."""
        return int((self.start + self.lengths).max())

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """(entries that a mask must span, offset of the first): every kept context entry lies in the past of every query."""
        n = query_length if isinstance(query_length, int) else query_length.shape[0]
        kept = max(block.storage.length for block in self.blocks)
        return kept + self.longest + n, int(self.start.max()) - kept

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    get_max_cache_shape = get_max_length

    def crop(self, tokens: int) -> None:
        """Forget the last `-tokens` tokens of the tail (negative), as transformers' layers do.

        Raises:
            ValueError: more tokens than the tail holds; evicted context entries cannot come back.
        """
        remove = -tokens if tokens < 0 else self.get_seq_length() - tokens
        if not 0 <= remove <= self.longest:
            raise ValueError(
                f"cannot crop {remove} tokens: the tail behind the compressed context holds {self.longest}"
            )
        self.set_lengths([length - remove for length in self.lengths.tolist()])

    def reset(self) -> None:
        """Forget the tail."""
        self.set_lengths([0] * self.rows)


class CompressedCache(Cache):
    """A transformers cache whose layers are `CompressedLayer`s over the same rows."""

    def __init__(self, layers: Sequence[CompressedLayer]) -> None:
        """From one layer per model layer."""
        super().__init__(layers=list(layers))

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """See `CompressedLayer.set_lengths`."""
        for layer in self.layers:
            layer.set_lengths(lengths)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """See `CompressedLayer.keep_rows`."""
        for layer in self.layers:
            layer.keep_rows(rows)

    def join(self, other: CompressedCache) -> None:
        """See `CompressedLayer.join`."""
        for layer, more in zip(self.layers, other.layers, strict=True):
            layer.join(more)
