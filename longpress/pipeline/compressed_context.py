"""What one variant keeps of a context, as rows of answers read it, with everything that is measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kvcache.budget import Budget
from kvcache.cache import CompressedLayer
from kvcache.devices import moved
from kvcache.layer_state import LayerState, states_of
from kvcache.modules import decoder_of, windows_of
from kvcache.selection import Selection
from kvcache.storage import KVView, offloaded
from presses.base import BasePress


class Chunk(NamedTuple):
    """A chunk of a context that was compressed by itself: its tokens, and its budget."""

    tokens: int
    budget: Budget


@dataclass(frozen=True, eq=False)
class CompressedContext:
    """What one variant keeps of a context.

    Attributes:
        layers: per model layer, what is kept; of one that caches no keys and values, nothing.
        observed: indices of the layers that were compressed; the others are left whole (sliding windows).
        next_position: at which the question continues.
        tokens: T, of the context.
        full_entries: entries of the full cache.
        full_bytes: bytes of the full cache.
        evidence_kept: per watched set of positions, the share kept, averaged over compressed layers and
            heads.
        seconds: spent selecting and applying, this variant's share.
        kept_by: (T,) int32, how many heads of the observed layers keep each token; None where all do, or
            where that was not asked.
        peak_entries: most entries that the cache held while the context was read; None: all of the full
            cache.
        chunks: each chunk that was compressed by itself, where the context was compressed while it was read;
            empty: the context in one piece.
        states: per model layer, what it remembers beside keys and values, in tensors of fixed size; None for
            most. Only read: rows copy them. Variants of one prefill share them.
        rope_length: of the prompts that the context was read for (see `kvcache.rope_frequencies`).
    """

    layers: list[KVView]
    observed: list[int]
    next_position: int
    tokens: int
    full_entries: int
    full_bytes: int
    evidence_kept: list[float] = field(default_factory=list)
    seconds: float = 0.0
    kept_by: Tensor | None = None
    peak_entries: int | None = None
    chunks: list[Chunk] = field(default_factory=list)
    states: list[LayerState | None] = field(default_factory=list, repr=False)
    rope_length: int = 0
    _measured: list[Any] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def of_cache(cls, model: nn.Module, cache: Any, tokens: int) -> CompressedContext:
        """What a prefill inside `with press(model)` left in a transformers cache."""
        layers, observed, full_entries, full_bytes = [], [], 0, 0
        like = next(decoder_of(model).parameters())
        for index, (layer, window) in enumerate(zip(cache.layers, windows_of(model), strict=True)):
            if isinstance(layer, CompressedLayer):
                observed.append(index)
                kept = replace(layer.kept()[0], entry_metadata=layer.entry_metadata[0])
                full = kept.storage.heads * tokens
                channels = kept.storage.size + kept.storage.stored_values.shape[-1]
                full_entries += full
                full_bytes += full * channels * kept.storage.read_dtype.itemsize
            else:
                kept = KVView.of_cache_layer(layer, tokens, window, like)
                full_entries += sum(kept.entries())
                full_bytes += kept.bytes()
            layers.append(kept)
        starts = {int(cache.layers[index].start[0]) for index in observed}
        next_position = starts.pop() if starts else tokens
        sizes = (full_entries, full_bytes)
        return cls(layers, observed, next_position, tokens, *sizes, states=states_of(cache))

    def release(self) -> None:
        """Forget the entries themselves (`layers`), once nothing reads them any more.

        What was measured of them stays.
        """
        if not self._measured:
            self._measured.extend((self.entries(), self.bytes, self.state_bytes))
            self.layers.clear()
            self.states.clear()

    def offloaded(self) -> CompressedContext:
        """The same with its entries in host memory; see `KVStorage.offloaded`."""
        return replace(self, layers=offloaded(self.layers))

    def entries(self) -> list[list[int]]:
        """Measured kept entries per layer and head."""
        return self._measured[0] if self._measured else [kept.entries() for kept in self.layers]

    @property
    def growing(self) -> list[KVView]:
        """What is kept of the layers that cache keys and values."""
        return [kept for kept in self.layers if not kept.is_nothing]

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of fixed size, which no press changes."""
        if self._measured:
            return self._measured[2]
        return sum(state.bytes for state in self.states if state is not None)

    @property
    def kept_fraction_with_state(self) -> float:
        """Measured share of all that the model remembers of the context, states of fixed size included."""
        return (self.bytes + self.state_bytes) / (self.full_bytes + self.state_bytes)

    @property
    def kept_fraction(self) -> float:
        """Measured share of the full cache's bytes, states of fixed size apart.

        An entry with fewer channels counts as the part that is stored.
        """
        return self.bytes / self.full_bytes

    @property
    def bytes(self) -> int:
        """Measured bytes of the kept entries."""
        return self._measured[1] if self._measured else sum(kept.bytes() for kept in self.layers)

    def storages(self) -> dict[int, int]:
        """Bytes in memory of every storage and mask, by identity; variants of a context may share some."""
        masks = {id(kept.keep): kept.keep.numel() for kept in self.layers if kept.keep is not None}
        return masks | {id(kept.storage): kept.storage.bytes for kept in self.layers}

    def state_storages(self) -> dict[int, int]:
        """Bytes of every layer's state of fixed size, by identity; variants of a context share them."""
        return {id(state): state.bytes for state in self.states if state is not None}

    def check_budget(self, press: BasePress, budget: Budget) -> None:
        """Stop where a press kept fewer or more than it states.

        Raises:
            ValueError: the measured count and the stated one.
        """
        if not self.observed:
            return
        entries = self.entries()
        heads = len(entries[self.observed[0]])
        kept = sum(sum(entries[index]) for index in self.observed)
        bounds = [
            press.entry_bounds(len(self.observed), heads, chunk.tokens, chunk.budget)
            for chunk in self.chunks or [Chunk(self.tokens, budget)]
        ]
        fewest, most = (sum(bound) for bound in zip(*bounds, strict=True))
        if not fewest <= kept <= most:
            shape = f"{len(self.observed)} layers x {heads} heads x {self.tokens} tokens"
            stated = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            raise ValueError(
                f"press {press.name} at {budget} kept {kept} entries of {shape}, but states {stated}; "
                "it does not meet its budget"
            )


def heads_keeping(selections: Sequence[Selection]) -> Tensor:
    """How many heads, over all layers, keep each token: (T,) int32 on the CPU."""
    counts = [selection.keep[0].sum(0, dtype=torch.int32) for selection in selections]
    return _stacked(counts).sum(0, dtype=torch.int32).cpu()


def share_kept(selections: Sequence[Selection], positions: Sequence[int]) -> float:
    """Share of `positions` kept, averaged over layers and heads; 1 where nothing is removed or watched."""
    if not selections or not positions:
        return 1.0
    at = list(positions)
    return float(_stacked([selection.keep[0][:, at].float().mean() for selection in selections]).mean())


def _stacked(per_layer: Sequence[Tensor]) -> Tensor:
    return torch.stack(moved(list(per_layer), per_layer[0].device))
