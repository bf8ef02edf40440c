"""Context entries of a layer in memory, and what one variant reads of them.

They lie there as the model computes them, or in fewer bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from kvcache.latent import stored
from kvcache.quantization import Packed, pack, rows_at

HOST = torch.device("cpu")
"""Where offloaded entries lie."""


@dataclass(frozen=True, eq=False)
class KVStorage:
    """Context entries of one layer in memory, possibly read by several variants.

    Attributes:
        stored_keys: (H, K, d), or (H, K, c) where only some channels are stored; possibly quantised.
        stored_values: (H, K, d), possibly quantised.
        positions: (H or 1, K) position of each entry in the context; only where the layer attends within a
            sliding window.
        window: tokens that the layer attends to, None for full attention.
        channels: (H, c) index of each stored channel of the keys; the others are 0. None: all are stored.
        key_size: d, of a whole key, where `channels` is given.
        bits: of a stored number, None: as the model computes it.
        dtype: in which the model reads what is stored in 16 bits; None: as it is stored.
        reader: device on which entries in host memory are read, moved there anew at each read; None: they are
            read where they lie.
    """

    stored_keys: Tensor | Packed
    stored_values: Tensor | Packed
    positions: Tensor | None = None
    window: int | None = None
    channels: Tensor | None = None
    key_size: int | None = None
    bits: int | None = None
    dtype: torch.dtype | None = None
    reader: torch.device | None = None

    @classmethod
    def without_zero_channels(
        cls, keys: Tensor, values: Tensor, positions: Tensor | None, window: int | None
    ) -> Self:
        """Entries (H, K, d), of whose keys the channels that are 0 throughout a head are not stored."""
        if values.shape[-1] == 0:  # of latent attention, where values are channels of the keys
            return cls(keys, values, positions, window)
        used = keys.ne(0).any(dim=1)  # (H, d)
        n_used = int(used.sum(-1).max())
        if n_used in (0, keys.shape[-1]):
            return cls(keys, values, positions, window)
        channels = used.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[:, :n_used]
        stored = keys.gather(-1, channels[:, None].expand(-1, keys.shape[1], -1))
        return cls(stored, values, positions, window, channels, keys.shape[-1])

    @property
    def keys(self) -> Tensor:
        """(H, K, d), or (H, K, c), as the model reads them: moved and dequantised anew at each call."""
        return self._read(self.stored_keys)

    @property
    def values(self) -> Tensor:
        """(H, K, d), as the model reads them: moved and dequantised anew at each call."""
        return self._read(self.stored_values)

    @property
    def heads(self) -> int:
        """Number H of heads."""
        return self.stored_keys.shape[0]

    @property
    def length(self) -> int:
        """Number K of entries per head, those included that some variants do not read."""
        return self.stored_keys.shape[1]

    @property
    def size(self) -> int:
        """Size d of a whole key."""
        return self.stored_keys.shape[-1] if self.key_size is None else self.key_size

    @property
    def device(self) -> torch.device:
        """Where the entries are read."""
        return self.reader or self.stored_keys.device

    @property
    def read_dtype(self) -> torch.dtype:
        """In which the model reads the entries."""
        return self.dtype or self.stored_keys.dtype

    @property
    def bytes(self) -> int:
        """Bytes in memory, be it the device's or the host's."""
        parts = (self.stored_keys, self.stored_values, self.positions, self.channels)
        return sum(
            part.bytes if isinstance(part, Packed) else part.numel() * part.element_size()
            for part in parts
            if part is not None
        )

    def quantised(self, bits: int, counts: Tensor | None, movable: bool) -> KVStorage:
        """The same entries in `bits` bits a number.

        Args:
            bits: one of `kvcache.quantization.BITS`; 16 changes nothing where the model computes in 16 bits.
            counts: (H,) entries that exist in each head, None for all.
            movable: whether entries will be dropped one by one: then each has scales of its own, else keys
                have them per channel.
        """
        keys, values = self.keys, self.values
        if bits == 16 and keys.element_size() <= 2:
            return replace(self, bits=bits)
        if bits == 16:
            return replace(
                self,
                stored_keys=keys.bfloat16(),
                stored_values=values.bfloat16(),
                bits=bits,
                dtype=keys.dtype,
                reader=None,
            )
        packed_keys = pack(keys, bits, per_channel=not movable, counts=counts)
        packed_values = pack(values, bits, per_channel=False, counts=counts) if values.numel() else values
        return replace(self, stored_keys=packed_keys, stored_values=packed_values, bits=bits, reader=None)

    def offloaded(self) -> KVStorage:
        """The same entries in host memory, to be read on the device where they were.

        Positions and channels stay on that device.
        """
        if self.reader is not None:
            return self
        return replace(
            self,
            stored_keys=_on_host(self.stored_keys),
            stored_values=_on_host(self.stored_values),
            reader=self.device,
        )

    def at_hand(self) -> KVStorage:
        """The same entries as the model reads them, to be read several times over."""
        keys, values = self.keys, self.values
        return replace(self, stored_keys=keys, stored_values=values, bits=None, dtype=None, reader=None)

    def moved(self, keys: Tensor, values: Tensor, at: Tensor, positions: Tensor | None) -> KVStorage:
        """Some of the stored entries, which must be movable, and of new ones behind them.

        Args:
            keys: (H, m, d) of the new entries, which are quantised now.
            values: (H, m, d).
            at: (H, n) indices of the entries to be kept, among stored and new ones.
            positions: (H, n) of the kept entries in the text, where the layer has a window.
        """

        def kept(stored: Tensor | Packed, new: Tensor) -> Tensor | Packed:
            if isinstance(stored, Packed):
                return stored.to(self.device).joined(pack(new, stored.bits, False)).gathered(at)
            return rows_at(torch.cat((stored.to(self.device), new.to(stored.dtype)), dim=1), at)

        kept_keys, kept_values = kept(self.stored_keys, keys), kept(self.stored_values, values)
        return replace(
            self, stored_keys=kept_keys, stored_values=kept_values, positions=positions, reader=None
        )

    def whole_keys(self) -> Tensor:
        """(H, K, d): the keys with all their channels."""
        return self.whole(self.keys)

    def whole(self, keys: Tensor) -> Tensor:
        """(H, K, d): keys (H, K, c) of this storage with all their channels."""
        if self.channels is None:
            return keys
        heads, length, _ = keys.shape
        channels = self.channels[:, None].expand(-1, length, -1)
        return keys.new_zeros(heads, length, self.size).scatter_(-1, channels, keys)

    def _read(self, stored: Tensor | Packed) -> Tensor:
        on_reader = stored if self.reader is None else stored.to(self.reader, non_blocking=True)
        if isinstance(on_reader, Packed):
            return on_reader.unpack()
        return on_reader if self.dtype is None else on_reader.to(self.dtype)


def _on_host(stored: Tensor | Packed) -> Tensor | Packed:
    if isinstance(stored, Packed):
        codes, scale, low = (_pinned(part) for part in (stored.codes, stored.scale, stored.low))
        return replace(stored, codes=codes, scale=scale, low=low)
    return _pinned(stored)


def _pinned(tensor: Tensor) -> Tensor:
    """A tensor in host memory, which a GPU reads by itself if it comes from one."""
    if not tensor.is_cuda:
        return tensor.to(HOST)
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


class ReadEntries(NamedTuple):
    """What a variant reads of a layer.

    Attributes:
        keys: (H, K, c) of the stored channels, padded to the head that keeps most.
        values: (H, K, d), likewise.
        padding: (H, K) bool: which entries are padding; None for none.
        positions: (H or 1, K) in the context, where the storage has them.
    """

    keys: Tensor
    values: Tensor
    padding: Tensor | None
    positions: Tensor | None


@dataclass(frozen=True, eq=False)
class KVView:
    """What one variant keeps in one layer.

    Of every head the first `counts` entries of a storage, or those of a mask.

    Attributes:
        storage: the entries.
        counts: (H,) kept entries per head; None: all of the storage, in every head.
        keep: (H, K) bool, the entries kept of a storage that variants share, `counts` in each head; None: the
            first.
        entry_metadata: (H, K, m) what a decode hook is told of each stored entry, None for nothing; see
            `BasePress.entry_metadata`.
    """

    storage: KVStorage
    counts: Tensor | None = None
    keep: Tensor | None = None
    entry_metadata: Tensor | None = None

    @classmethod
    def of_entries(
        cls,
        keys: Tensor,
        values: Tensor,
        counts: Tensor,
        positions: Tensor,
        window: int | None,
        entry_metadata: Tensor | None = None,
    ) -> Self:
        """Entries (H, K, d) stored for one variant alone, of which head h keeps the first `counts[h]`.

        Args:
            keys: (H, K, d); channels that are 0 throughout a head are not stored.
            values: (H, K, d).
            counts: (H,).
            positions: (H, K) in the context, stored where the layer attends within a sliding window.
            window: the layer's sliding window or None.
            entry_metadata: see the attribute.
        """
        where = positions if window is not None else None
        storage = KVStorage.without_zero_channels(keys, values, where, window)
        everything = bool((counts == keys.shape[1]).all())
        return cls(storage, None if everything else counts, entry_metadata=entry_metadata)

    @classmethod
    def of_full_layer(cls, keys: Tensor, values: Tensor, tokens: int, window: int | None) -> Self:
        """All entries (H, T', d) of a layer, where they lie.

        A layer with a sliding window may hold the last T' < T only.
        """
        if window is None:
            return cls(KVStorage(keys, values))
        positions = torch.arange(tokens - keys.shape[1], tokens, device=keys.device)[None]
        return cls(KVStorage(keys, values, positions, window))

    @classmethod
    def of_cache_layer(cls, layer: Any, tokens: int, window: int | None, like: Tensor) -> Self:
        """All entries of a transformers cache layer of one row after `tokens`; see `of_full_layer`.

        Args:
            layer: with `keys` (1, H, T', d), or without them in a layer that caches no keys and values.
            tokens: of the context.
            window: the layer's sliding window or None.
            like: tells the device where there are no keys.
        """
        if getattr(layer, "keys", None) is None:
            return cls.nothing(like)
        keys, values = stored(layer)
        return cls.of_full_layer(keys[0], values[0], tokens, window)

    @classmethod
    def nothing(cls, like: Tensor) -> Self:
        """Of a layer that caches no keys and values: no heads.

        Args:
            like: tells device and dtype.
        """
        return cls(KVStorage(like.new_empty(0, 0, 0), like.new_empty(0, 0, 0)))

    @property
    def is_nothing(self) -> bool:
        """Whether the layer caches no keys and values at all."""
        return self.storage.heads == 0

    def entries(self) -> list[int]:
        """Kept entries per head."""
        return [self.storage.length] * self.storage.heads if self.counts is None else self.counts.tolist()

    def bytes(self) -> int:
        """Bytes of the kept keys and values.

        Included are scales, where entries are quantised, and the index of the stored channels.
        """
        channels, entries = self.storage.channels, self.entries()
        total = 0 if channels is None else channels.numel() * channels.element_size()
        for part in (self.storage.stored_keys, self.storage.stored_values):
            if isinstance(part, Packed):
                total += part.bytes_of(entries)
            else:
                total += sum(entries) * part.shape[-1] * part.element_size()
        return total

    def quantised(self, bits: int, movable: bool) -> KVView:
        """The same entries in `bits` bits a number; see `KVStorage.quantised`."""
        if self.is_nothing:
            return self
        return replace(self, storage=self.storage.quantised(bits, self.counts, movable))

    def exists(self) -> Tensor:
        """(H, K) bool: which entries of the storage are kept."""
        heads, length, device = self.storage.heads, self.storage.length, self.storage.device
        if self.keep is not None:
            return self.keep
        if self.counts is None:
            return torch.ones(heads, length, dtype=torch.bool, device=device)
        return torch.arange(length, device=device) < self.counts[:, None]

    def read(self) -> ReadEntries:
        """The kept entries side by side, in the storage's order."""
        keys, values, positions = self.storage.keys, self.storage.values, self.storage.positions
        if self.counts is None:
            return ReadEntries(keys, values, None, positions)
        heads, length, _ = keys.shape
        fewest, most = (int(count) for count in self.counts.aminmax())
        padding = None if fewest == most else torch.arange(most, device=keys.device) >= self.counts[:, None]

        # The first entries of each head.
        if self.keep is None:
            first_positions = None if positions is None else positions[:, :most]
            return ReadEntries(keys[:, :most], values[:, :most], padding, first_positions)

        # Those of the mask, by their index among the entries of all heads.
        if padding is None:
            flat = self.keep.flatten().nonzero()[:, 0]
        else:
            order = (~self.keep).to(torch.uint8).sort(dim=-1, stable=True).indices[:, :most]  # (H, K)
            flat = (order + length * torch.arange(heads, device=keys.device)[:, None]).flatten()
        keys, values = (
            part.reshape(heads * length, -1).index_select(0, flat).view(heads, most, -1)
            for part in (keys, values)
        )
        if positions is not None:
            positions = positions.expand(heads, -1).flatten().index_select(0, flat).view(heads, most)
        return ReadEntries(keys, values, padding, positions)


def offloaded(kept: Sequence[KVView]) -> list[KVView]:
    """The same with storages in host memory; those that several share are still shared."""
    storages = {id(view.storage): view.storage for view in kept}
    moved = {identity: storage.offloaded() for identity, storage in storages.items()}
    return [replace(view, storage=moved[id(view.storage)]) for view in kept]
