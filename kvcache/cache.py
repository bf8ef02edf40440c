"""The compressed cache: what is kept of the context, and each decode row's own tokens.

Context entries are shared, read-only, by rows; the own tokens of a row are its tail, which grows. A row is
one answer being written: a variant (press and budget) of a context, and a question. Rows of one batch may
keep different entries per layer and head. Nothing is padded in memory: variants share the full cache, of
which each has a mask, or one storage ordered by rank, of which each reads a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from kvcache.latent import entries_of
from kvcache.rope_frequencies import join_rope_lengths
from kvcache.row_blocks import RowBlock, blocks_of
from kvcache.storage import KVView


class RowEntries(NamedTuple):
    """All entries of one row in a layer, as a batch of one.

    Attributes:
        keys: (1, H, K, d), zeros where an entry does not exist.
        values: (1, H, K, d).
        valid: (1, H, K) bool: which exist; the others are padding of heads that keep fewer.
        positions: (H, K) in the text, where the layer attends within a sliding window.
    """

    keys: Tensor
    values: Tensor
    valid: Tensor
    positions: Tensor | None


class PaddedPrefill(NamedTuple):
    """The prefill of a batch with padding, by which later masks are judged.

    Attributes:
        mask: (R, columns) bool, which columns were a row's own tokens.
        starts: (R,) position at which each row continued.
    """

    mask: Tensor
    starts: Tensor


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
            decode_hooks: per row what acts while its answer is written (see `kvcache.hooks.decode_hooks`), or
                None.
        """
        self.decode_hooks: list[Any] = [None] * len(rows) if decode_hooks is None else list(decode_hooks)
        self.entry_metadata = [row.entry_metadata for row in rows]
        self.held_passes: dict[int, list[Any]] | None = None
        self.padded_prefill: PaddedPrefill | None = None
        self.blocks = blocks_of(rows)
        first = rows[0].storage
        self.device, self.dtype = first.device, first.read_dtype
        positions = [next_position] * len(rows) if isinstance(next_position, int) else list(next_position)
        self.start = torch.tensor(positions, device=self.device)  # (R,)
        self.lengths = torch.zeros(
            len(rows), dtype=torch.long, device=self.device
        )  # (R,) tokens in each tail
        self.longest = 0
        self.even = True
        self.armed = False
        self.is_initialized = True

        # Zeros: padding behind a shorter tail is weighted with 0, and 0 times an uninitialised NaN is NaN.
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        self.tail_keys = like.new_zeros(len(rows), first.heads, capacity, first.size)
        self.tail_values = like.new_zeros(len(rows), first.heads, capacity, first.stored_values.shape[-1])

    @property
    def rows(self) -> int:
        """Number R of rows."""
        return self.start.shape[0]

    @property
    def is_latent(self) -> bool:
        """Whether values are part of the keys, and not stored; see `kvcache.latent`."""
        return self.tail_values.shape[-1] == 0

    @property
    def is_ragged(self) -> bool:
        """Whether rows or heads keep different numbers of entries.

        Then only our attention can read the cache.
        """
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
            ValueError: a per-head or latent cache is read outside `attending(model)`.
        """
        given, n = (key_states, value_states), key_states.shape[2]
        if self.is_latent:
            key_states = entries_of(key_states, value_states)
            value_states = key_states[..., :0]
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
            return given
        if self.is_latent:
            raise ValueError(
                "read a compressed cache of latent vectors inside `with press(model)` or `attending(model)`"
            )
        if self.is_ragged:
            raise ValueError(
                "this cache keeps different numbers of entries per head: read it inside `with press(model)` "
                "or `attending(model)`"
            )
        return self.keys, self.values

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Forget what stands behind the first `lengths` tokens of each row's tail.

        That is the padding of a shorter question.
        """
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
        self.decode_hooks = [self.decode_hooks[row] for row in rows]
        self.entry_metadata = [self.entry_metadata[row] for row in rows]
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
            capacity = max(mine.shape[2], theirs.shape[2])
            new = mine.new_zeros(self.rows + other.rows, mine.shape[1], capacity, mine.shape[3])
            new[: self.rows, :, : mine.shape[2]] = mine
            new[self.rows :, :, : theirs.shape[2]] = theirs
            setattr(self, name, new)
        self.start = torch.cat((self.start, other.start))
        self.set_lengths([*self.lengths.tolist(), *other.lengths.tolist()])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows in another order, some of them several times, as beam search does.

        Raises:
            ValueError: a press acts while answers are written; what it remembers of a row cannot be copied.
        """
        if any(self.decode_hooks):
            raise ValueError(
                "beam search takes a row several times, which a press that acts while answers are written "
                "cannot follow; use num_beams=1"
            )
        rows, index = beam_idx.tolist(), beam_idx.to(self.device)
        kept, lengths = self.kept(), self.lengths.tolist()
        self.blocks = blocks_of([kept[row] for row in rows])
        self.entry_metadata = [self.entry_metadata[row] for row in rows]
        self.decode_hooks = [None] * len(rows)
        self.start = self.start[index]
        self.tail_keys, self.tail_values = self.tail_keys[index], self.tail_values[index]
        if self.padded_prefill is not None:
            mask, starts = self.padded_prefill
            self.padded_prefill = PaddedPrefill(mask[beam_idx.to(mask.device)], starts[index])
        self.set_lengths([lengths[row] for row in rows])

    def kept(self) -> list[KVView]:
        """What each row keeps in storage, its tail apart."""
        return [row for block in self.blocks for row in block.rows]

    def row_entries(self, row: int) -> RowEntries:
        """All entries of a row in order of position, stored ones and its tail."""
        kept, tail = self.kept()[row], int(self.lengths[row])
        storage, heads, exists = kept.storage, self.tail_keys.shape[1], kept.exists()
        valid = torch.cat((exists, exists.new_ones(heads, tail)), dim=1)
        positions = None
        if storage.positions is not None:
            in_tail = self.start[row] + torch.arange(tail, device=self.device)
            positions = torch.cat((storage.positions.expand(heads, -1), in_tail.expand(heads, -1)), dim=1)
        stored_keys = storage.whole_keys().masked_fill(~exists[..., None], 0)
        stored_values = storage.values.masked_fill(~exists[..., None], 0)
        keys = torch.cat((stored_keys, self.tail_keys[row, :, :tail]), dim=1)
        values = torch.cat((stored_values, self.tail_values[row, :, :tail]), dim=1)
        return RowEntries(keys[None], values[None], valid[None], positions)

    def replace_row(self, row: int, kept: KVView) -> None:
        """Give a row entries of its own in the place of what it stored and of its tail.

        Other rows see no difference.
        """
        # The row's block falls into the rows before it, itself, and the rows behind it.
        at = next(at for at, block in enumerate(self.blocks) if row < block.stop)
        block = self.blocks[at]
        before, after = list(range(row - block.start)), list(range(row - block.start + 1, len(block.rows)))
        parts = [block.moved(block.start, before)] if before else []
        parts.append(RowBlock.of(row, [kept]))
        parts += [block.moved(row + 1, after)] if after else []
        self.blocks[at : at + 1], self.entry_metadata[row] = parts, kept.entry_metadata

        # Its tail is empty now; what follows continues where the tail ended.
        lengths = self.lengths.tolist()
        self.start = self.start.clone()
        self.start[row] += lengths[row]
        lengths[row] = 0
        self.set_lengths(lengths)

    def bytes_of_rows(self) -> list[int]:
        """Bytes of each row's entries, tail included."""
        numbers = self.tail_keys.shape[1] * (self.tail_keys.shape[3] + self.tail_values.shape[3])
        token = numbers * self.tail_keys.element_size()
        lengths = self.lengths.tolist()
        return [view.bytes() + token * length for view, length in zip(self.kept(), lengths, strict=True)]

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
        """(entries that a mask must span, offset of the first).

        Every kept entry of the context lies in the past of every query.
        """
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
    """A transformers cache whose layers, `CompressedLayer`s for the most part, are over the same rows."""

    def __init__(self, layers: Sequence[Any], rope_lengths: Sequence[int] | None = None) -> None:
        """From one layer per model layer, and the RoPE length of each row.

        See `kvcache.layer_state` for layers without keys and values, `kvcache.rope_frequencies` for lengths.
        """
        super().__init__(layers=list(layers))
        self.rope_lengths = None if rope_lengths is None else list(rope_lengths)

    @property
    def growing(self) -> list[CompressedLayer]:
        """The layers that hold keys and values."""
        return [layer for layer in self.layers if isinstance(layer, CompressedLayer)]

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """See `CompressedLayer.set_lengths`."""
        for layer in self.layers:
            layer.set_lengths(lengths)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """See `CompressedLayer.keep_rows`."""
        for layer in self.layers:
            layer.keep_rows(rows)
        if self.rope_lengths is not None:
            self.rope_lengths = [self.rope_lengths[row] for row in rows]

    def join(self, other: CompressedCache) -> None:
        """See `CompressedLayer.join`."""
        for layer, more in zip(self.layers, other.layers, strict=True):
            layer.join(more)
        join_rope_lengths(self, [self, other])
