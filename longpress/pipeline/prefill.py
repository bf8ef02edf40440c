"""Read a context once and ask every press what it would keep."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from kvcache.cache import CompressedLayer
from kvcache.compressing import Prefill, kept_entries, stack_nested
from kvcache.devices import moved, together
from kvcache.observation import LayerObservation, attention_modules, window_of
from kvcache.quantization import check_bits
from kvcache.selection import Selection, Threshold, check_ratio, gather, ratio_for
from kvcache.storage import Kept, Storage, offloaded
from longpress.pipeline.clock import now
from presses.base import BasePress, check_positions


@dataclass(frozen=True)
class Variant:
    """One line of the table: a press and its budget.

    Attributes:
        press: its own `compression_ratio` is not looked at.
        compression_ratio: fraction of entries removed, in [0, 1); or
        budget_tokens: entries kept per head on average, the whole context where it is shorter; or
        threshold: lowest score that stays, for presses that choose by a score.
        cache_bits: of a number of the context's cache: 16, 8, 4 or 2; None: as the model computes it.
    """

    press: BasePress
    compression_ratio: float = 0.0
    budget_tokens: int | None = None
    threshold: float | None = None
    cache_bits: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is not a press, a budget out of range, more than one budget, and a threshold where nothing has a score."""
        if not callable(getattr(self.press, "observe", None)):
            raise ValueError(f"a variant is (press, compression_ratio); {self.press!r} is not a press")
        object.__setattr__(self, "compression_ratio", check_ratio(self.compression_ratio))
        if (self.compression_ratio > 0) + (self.budget_tokens is not None) + (self.threshold is not None) > 1:
            raise ValueError(
                f"a variant of {self.press.name} has one budget: give compression_ratio, budget_tokens or threshold"
            )
        check_bits(self.cache_bits)
        tokens = self.budget_tokens
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
            raise ValueError(
                f"budget_tokens={tokens!r} must be a whole number from 1: it is the entries kept per head, on average"
            )
        if self.threshold is not None and Threshold(self.threshold) and not self.press.has_threshold:
            raise ValueError(
                f"press {self.press.name} takes no threshold={self.threshold}: what it keeps is not decided by one score per entry; "
                "give it compression_ratio or budget_tokens"
            )

    def limit(self, tokens: int) -> float | Threshold:
        """What the press is asked for on a context of `tokens`: a ratio, the exact one of `budget_tokens`; or a threshold."""
        if self.threshold is not None:
            return Threshold(self.threshold)
        return self.compression_ratio if self.budget_tokens is None else ratio_for(tokens, self.budget_tokens)

    def limits(self, tokens: int, size: int) -> list[float | Threshold]:
        """What the press is asked for on each chunk of `size` of a context compressed chunk by chunk.

        `budget_tokens` are dealt out in proportion to the chunks, so that they are met exactly in the end; no
        chunk loses its last entry.
        """
        if self.budget_tokens is None or self.budget_tokens >= tokens:
            return [self.limit(tokens)] * (-(-tokens // size))
        limits: list[float | Threshold] = []
        kept = 0
        for start in range(0, tokens, size):
            stop = min(start + size, tokens)
            here = max(1, stop * self.budget_tokens // tokens - kept)
            limits.append(ratio_for(stop - start, here))
            kept += here
        return limits

    @property
    def is_full(self) -> bool:
        """Whether nothing is ever removed or rounded: the full cache, which others are compared with."""
        return (
            self.press.lossless
            and self.cache_bits is None
            and self.press.while_decoding(self.compression_ratio) is None
        )

    @property
    def budget(self) -> dict[str, float]:
        """The budget by its name, empty where a field of the press sets it."""
        if self.press.own_budget:
            return {}
        if self.threshold is not None:
            return {"threshold": self.threshold}
        return (
            {"compression_ratio": self.compression_ratio}
            if self.budget_tokens is None
            else {"budget_tokens": self.budget_tokens}
        )


@dataclass(frozen=True, eq=False)
class CompressedContext:
    """What one variant keeps of a context.

    Attributes:
        layers: per model layer, what is kept.
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
        chunks: tokens and budget of each chunk that was compressed by itself (`prefill=chunked`); empty: the
            context in one piece.
    """

    layers: list[Kept]
    observed: list[int]
    next_position: int
    tokens: int
    full_entries: int
    full_bytes: int
    evidence_kept: list[float] = field(default_factory=list)
    seconds: float = 0.0
    kept_by: Tensor | None = None
    peak_entries: int | None = None
    chunks: list[tuple[int, float | Threshold]] = field(default_factory=list)
    _measured: list[Any] = field(default_factory=list, init=False, repr=False)

    def release(self) -> None:
        """Forget the entries themselves (`layers`), once nothing reads them any more; what was measured of them stays."""
        if not self._measured:
            self._measured.extend((self.entries(), self.bytes))
            self.layers.clear()

    def offloaded(self) -> CompressedContext:
        """The same with its entries in host memory; see `Storage.offloaded`."""
        return replace(self, layers=offloaded(self.layers))

    def entries(self) -> list[list[int]]:
        """Measured kept entries per layer and head."""
        return self._measured[0] if self._measured else [kept.entries() for kept in self.layers]

    @property
    def kept_fraction(self) -> float:
        """Measured share of the full cache: of its entries, an entry with fewer channels counting as the part that is stored."""
        return self.bytes / self.full_bytes

    @property
    def bytes(self) -> int:
        """Measured bytes of the kept entries."""
        return self._measured[1] if self._measured else sum(kept.bytes() for kept in self.layers)

    def storages(self) -> dict[int, int]:
        """Bytes in memory of every storage and mask read, by its identity; variants of a context may share some."""
        masks = {id(kept.keep): kept.keep.numel() for kept in self.layers if kept.keep is not None}
        return masks | {id(kept.storage): kept.storage.bytes for kept in self.layers}

    def check_budget(self, press: BasePress, ratio: float | Threshold) -> None:
        """Stop where a press kept fewer or more than it states.

        Raises:
            ValueError: the measured budget and the stated one.
        """
        if not self.observed or isinstance(ratio, Threshold):
            return
        entries = self.entries()
        kept = sum(sum(entries[index]) for index in self.observed)
        heads = len(entries[self.observed[0]])
        chunks = [
            (tokens, limit)
            for tokens, limit in self.chunks or [(self.tokens, ratio)]
            if not isinstance(limit, Threshold)
        ]
        stated = [press.entries(len(self.observed), heads, tokens, limit) for tokens, limit in chunks]
        fewest, most = (sum(bound) for bound in zip(*stated, strict=True))
        if not fewest <= kept <= most:
            raise ValueError(
                f"press {press.name} at compression_ratio={ratio} kept {kept} entries of {len(self.observed)} layers x {heads} heads x "
                f"{self.tokens} tokens, but states {fewest if fewest == most else f'{fewest} to {most}'}; it does not meet its budget"
            )


class Onlooker(BasePress):
    """Looks at a prefill for many presses and compresses nothing.

    Attributes:
        presses: one per distinct configuration, whatever the ratios.
        prefill: what was seen, after the forward pass.
        evidence: per press (by identity), what it observed in each layer.
        seconds: per press (by identity), spent observing.
        failures: per press (by identity) that raised while observing, what it raised; it is asked no more,
            the others are.
    """

    def __init__(self, presses: Sequence[BasePress]) -> None:
        """Look on for these presses; equal ones, whatever their ratio, observe once."""
        self.compression_ratio = 0.0
        self.presses = {press.identity(): press for press in presses}
        self.evidence: dict[Hashable, list[Any]] = {identity: [] for identity in self.presses}
        self.seconds: dict[Hashable, float] = dict.fromkeys(self.presses, 0.0)
        self.failures: dict[Hashable, ValueError] = {}
        self.prefill: Prefill | None = None

    def observe(self, layer: LayerObservation) -> dict[Hashable, Any]:
        """What every press observes in this layer, but those that failed."""
        seen = {}
        for identity, press in self.presses.items():
            if identity in self.failures:
                continue
            started = now()
            try:
                seen[identity] = press.observe(layer)
            except Exception as error:
                shape = tuple(layer.keys.shape)
                failure = ValueError(
                    f"press {press.name} failed observing layer {layer.index} with keys {shape}: {error}"
                )
                failure.__cause__ = error
                traceback.clear_frames(error.__traceback__)  # they hold the layer's tensors
                self.failures[identity] = failure
                self.evidence[identity].clear()
            self.seconds[identity] += now() - started
        return seen

    def compress(self, layer: LayerObservation, prefill: Prefill) -> None:
        """Keep the evidence; leave the cache whole."""
        prefill.layers.append(layer.index)
        for identity, seen in self.observe(layer).items():
            self.evidence[identity].append(seen)

    def finish(self, prefill: Prefill) -> None:
        """Keep the full cache."""
        self.prefill = replace(prefill, layers=list(prefill.layers), evidence=[])

    def select(self, evidence: Sequence[Any], ratio: float) -> list[Selection]:
        """Never called: nothing is compressed in the prefill itself."""
        raise NotImplementedError


class PrefilledContext:
    """A context that was read once: its full cache, and what every press saw."""

    def __init__(self, onlooker: Onlooker, seconds: float, offload: bool = False) -> None:
        """Take over the cache of a finished prefill that took `seconds`, observing included.

        With `offload`, what variants keep lies in host memory, each layer from when it is made; the device
        holds the full cache beside it until this object goes.
        """
        assert onlooker.prefill is not None
        self.onlooker, self.prefill, self.seconds = onlooker, onlooker.prefill, seconds
        self.tokens: int = self.prefill.cache.get_seq_length()
        self.windows = [window_of(module) for module in attention_modules(self.prefill.model)]
        self._at_rest: Callable[[Sequence[Kept]], list[Kept]] = offloaded if offload else list
        pairs = zip(self.prefill.cache.layers, self.windows, strict=True)
        self.full = self._at_rest(
            [full_layer(layer.keys, layer.values, self.tokens, window) for layer, window in pairs]
        )
        self._whole: dict[tuple[int, bool], list[Kept]] = {}

    def compress(
        self,
        press: BasePress,
        ratios: Sequence[float | Threshold],
        watched: Sequence[Sequence[int]] = (),
        *,
        count_kept: bool = False,
        in_place: bool = False,
        bits: Sequence[int | None] | None = None,
    ) -> list[CompressedContext]:
        """What `press` keeps at each ratio; variants with nested kept sets share memory, quantised ones do not.

        Args:
            press: one of those that looked on.
            ratios: fractions removed, or thresholds.
            watched: sets of positions whose survival is to be measured.
            count_kept: whether to count the heads that keep each token (`kept_by`).
            in_place: whether variants whose entries are those of the full cache read them there, each through
                a mask, instead of a copy; for many variants, which are then read together.
            bits: per ratio, of a stored number, None as the model computes it; by default None for all.

        Raises:
            ValueError: the press failed observing.
        """
        if press.identity() in self.onlooker.failures:
            raise self.onlooker.failures[press.identity()]
        started = now()
        lossy = [
            ratio for ratio in ratios if (isinstance(ratio, Threshold) or ratio > 0) and not press.lossless
        ]
        sizes = list(bits or [None] * len(ratios))
        follows = {ratio: press.while_decoding(ratio) is not None for ratio in ratios}
        layers = [list(self._full(size, follows[ratio])) for ratio, size in zip(ratios, sizes, strict=True)]
        selections: dict[float | Threshold, list[Selection]] = {}
        positions = dict.fromkeys(ratios, self.tokens)
        if lossy and self.prefill.layers:
            evidence = together(press.probe(self.prefill, self.onlooker.evidence[press.identity()]))
            for ratio in dict.fromkeys(lossy):
                found = (
                    press.select_above(evidence, ratio)
                    if isinstance(ratio, Threshold)
                    else press.select(evidence, ratio)
                )
                selections[ratio], positions[ratio] = found, press.next_position(found)
                check_positions(press, positions[ratio], found, len(self.prefill.layers) == len(self.full))
            mine = [variant for variant, ratio in enumerate(ratios) if ratio in selections]
            for at, index in enumerate(self.prefill.layers):
                notes = press.notes(evidence[at]) if any(follows.values()) else None
                chosen = [(selections[ratios[one]][at], sizes[one], follows[ratios[one]]) for one in mine]
                chosen, notes = moved((chosen, notes), self.prefill.cache.layers[index].keys.device)
                kept_here = self._at_rest(self._apply(press, index, chosen, notes, in_place))
                for variant, kept in zip(mine, kept_here, strict=True):
                    layers[variant][index] = kept
        seconds = (now() - started) / len(ratios)
        return [
            CompressedContext(
                layers[variant],
                self.prefill.layers,
                positions[ratio],
                self.tokens,
                sum(sum(kept.entries()) for kept in self.full),
                sum(kept.bytes() for kept in self.full),
                [share_kept(selections.get(ratio, ()), positions) for positions in watched],
                seconds,
                keeping_heads(selections[ratio])[: self.tokens]
                if count_kept and ratio in selections
                else None,
            )
            for variant, ratio in enumerate(ratios)
        ]

    def _full(self, bits: int | None, movable: bool) -> list[Kept]:
        """All entries of every layer in `bits` bits, made once; see `Storage.quantised`."""
        if bits is None:
            return self.full
        if (bits, movable) not in self._whole:
            self._whole[bits, movable] = [
                self._at_rest([kept.quantised(bits, movable)])[0] for kept in self.full
            ]
        return self._whole[bits, movable]

    def _apply(
        self,
        press: BasePress,
        index: int,
        chosen: Sequence[tuple[Selection, int | None, bool]],
        notes: Tensor | None,
        in_place: bool,
    ) -> list[Kept]:
        """What variants of one press keep in one layer, given selection, bits, and whether a follower acts on it, of each.

        Variants share memory where a press only gathers. What a follower acts on has its entries in order of
        position, with notes; quantised variants too are on their own, since the groups of a shared order
        would depend on the other variants.
        """
        full, window = self.prefill.cache.layers[index], self.windows[index]
        shared = [
            at
            for at, (_, bits, follows) in enumerate(chosen)
            if press.gathers and not follows and bits is None
        ]
        found: dict[int, Kept] = {}
        if in_place:
            found = {
                at: Kept(self.full[index].storage, chosen[at][0].counts[0], chosen[at][0].keep[0])
                for at in shared
            }
        elif shared:
            masks = [chosen[at][0].keep[0] for at in shared]
            found = dict(zip(shared, stack_nested(full.keys[0], full.values[0], masks, window), strict=True))
        for at, (selection, bits, follows) in enumerate(chosen):
            if at not in found:
                keys, values = press.apply(full.keys, full.values, selection)
                told = gather(notes, selection.positions)[0] if follows and notes is not None else None
                kept = kept_entries(
                    keys[0], values[0], selection.counts[0], selection.positions[0], window, told
                )
                found[at] = kept if bits is None else kept.quantised(bits, follows)
        return [found[at] for at in range(len(chosen))]


def full_layer(keys: Tensor, values: Tensor, tokens: int, window: int | None) -> Kept:
    """All entries (1, H, T', d) of a layer, where they lie; a sliding-window layer may hold the last T' < T only."""
    positions = (
        None if window is None else torch.arange(tokens - keys.shape[2], tokens, device=keys.device)[None]
    )
    return Kept(Storage(keys[0], values[0], positions, window))


def compressed_cache(model: nn.Module, cache: Any, tokens: int) -> CompressedContext:
    """The cache left by a prefill inside `with press(model)`, as rows can read it."""
    layers, observed, full_entries, full_bytes = [], [], 0, 0
    for index, (layer, module) in enumerate(zip(cache.layers, attention_modules(model), strict=True)):
        if isinstance(layer, CompressedLayer):
            observed.append(index)
            block = layer.blocks[0]
            kept = replace(block.rows[0], notes=layer.notes[0])
            heads, size = block.storage.heads, block.storage.size
            full_entries += heads * tokens
            full_bytes += (
                heads
                * tokens
                * (size + block.storage.stored_values.shape[-1])
                * block.storage.read_dtype.itemsize
            )
        else:
            kept = full_layer(layer.keys, layer.values, tokens, window_of(module))
            full_entries += sum(kept.entries())
            full_bytes += kept.bytes()
        layers.append(kept)
    starts = {int(cache.layers[index].start[0]) for index in observed}
    return CompressedContext(
        layers, observed, starts.pop() if starts else tokens, tokens, full_entries, full_bytes
    )


def keeping_heads(selections: Sequence[Selection]) -> Tensor:
    """How many heads, over all layers, keep each token: (T,) int32 on the CPU."""
    return (
        _stack([selection.keep[0].sum(0, dtype=torch.int32) for selection in selections])
        .sum(0, dtype=torch.int32)
        .cpu()
    )


def share_kept(selections: Sequence[Selection], positions: Sequence[int]) -> float:
    """Share of `positions` kept, averaged over layers and heads; 1 where nothing was removed or nothing is watched."""
    if not selections or not positions:
        return 1.0
    return float(
        _stack([selection.keep[0][:, list(positions)].float().mean() for selection in selections]).mean()
    )


def _stack(per_layer: Sequence[Tensor]) -> Tensor:
    return torch.stack(moved(list(per_layer), per_layer[0].device))
