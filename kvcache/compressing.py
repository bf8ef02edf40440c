"""`with press(model)`: compress the cache of every prefill inside the block; and the prefill in exact chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kvcache.architecture import check_model
from kvcache.attention import attending
from kvcache.cache import CompressedLayer
from kvcache.decode_hooks import Follower
from kvcache.observation import LayerObservation, attention_modules, decoder_of, observing, window_of
from kvcache.quantization import rows_at
from kvcache.selection import Selection, Threshold, gather
from kvcache.storage import Kept, Storage


@dataclass(frozen=True)
class Framing:
    """The prompt around a context, in token ids, for presses that let the model read more on top of it.

    Attributes:
        before: number of tokens in front of the context's own.
        after: ids between what a user says and the model's answer.
        encode: ids of a text.
        question: number of tokens at the end of what is read that are a question; 0 where contexts are read
            without one.
    """

    before: int
    after: Sequence[int]
    encode: Callable[[str], Sequence[int]]
    question: int = 0


@dataclass
class Prefill:
    """One forward pass over a context while a press looks on.

    Attributes:
        model: that reads the context.
        cache: the transformers cache being filled.
        layers: index in the model of each layer observed so far.
        evidence: what the press observed in each of them.
        token_ids: (B, T) of the context, None where the model was given embeddings.
        framing: the prompt around the context, where it is known.
    """

    model: nn.Module
    cache: Any = None
    layers: list[int] = field(default_factory=list)
    evidence: list[Any] = field(default_factory=list)
    token_ids: Tensor | None = None
    framing: Framing | None = None

    def collect(self, layer: LayerObservation, evidence: Any) -> None:
        """Remember what was observed in a layer, for when all layers are known."""
        self.layers.append(layer.index)
        self.evidence.append(evidence)

    def replace(
        self,
        index: int,
        keys: Tensor,
        values: Tensor,
        selection: Selection,
        next_position: int,
        notes: Tensor | None = None,
    ) -> None:
        """Put the kept entries (B, H, K, d) in the place of layer `index`'s full ones; `notes` (B, H, T, m) are of all entries."""
        told = [None] * len(keys) if notes is None else gather(notes, selection.positions)
        self.cache.layers[index] = CompressedLayer(
            [
                kept_entries(
                    keys[row],
                    values[row],
                    selection.counts[row],
                    selection.positions[row],
                    window_of(attention_modules(self.model)[index]),
                    told[row],
                )
                for row in range(keys.shape[0])
            ],
            next_position,
        )


class Press(Protocol):
    """What `compressing` needs of a press."""

    compression_ratio: float

    def forward_hook(self, layer: LayerObservation, prefill: Prefill) -> None:
        """Called after each layer's attention, in the prefill only."""

    def finish(self, prefill: Prefill) -> None:
        """Called when the prefill's forward pass is over."""

    def while_decoding(self, ratio: float | Threshold) -> Follower | None:
        """What acts on one layer of one row after the prefill, None for nothing."""


def kept_entries(
    keys: Tensor,
    values: Tensor,
    counts: Tensor,
    positions: Tensor,
    window: int | None,
    notes: Tensor | None = None,
) -> Kept:
    """Entries (H, K, d) of which head h keeps the first `counts[h]`, as stored in one layer for one variant."""
    storage = Storage.without_zero_channels(keys, values, positions if window is not None else None, window)
    return Kept(storage, None if bool((counts == keys.shape[1]).all()) else counts, notes=notes)


@contextmanager
def compressing(model: nn.Module, press: Press, framing: Framing | None = None) -> Iterator[nn.Module]:
    """Inside, every prefill of `model` (a forward pass on an empty cache) leaves a cache compressed by `press`.

    Decoding and `model.generate` work inside the block. Hidden states keep their full length; only the cache
    shrinks.

    Args:
        model: of transformers.
        press: that compresses.
        framing: the prompt around the contexts, for presses that let the model read more on top of them.

    Raises:
        ValueError: a model that would be compressed wrongly.
    """
    check_model(model)
    prefill = Prefill(model, framing=framing)

    seen: list[int] = []

    def on_layer(layer: LayerObservation, cache: Any) -> None:
        seen.append(layer.index)
        if prefill.cache is not cache:
            prefill.cache = cache
            prefill.layers.clear()
            prefill.evidence.clear()
            prefill.token_ids = layer.token_ids
        press.forward_hook(layer if framing is None else replace(layer, question=framing.question), prefill)

    def on_end(cache: Any) -> None:
        prefill.cache = cache
        press.finish(prefill)
        for index in seen:
            _add_followers(press, cache, index, window_of(attention_modules(model)[index]))
        seen.clear()
        prefill.cache = None

    with attending(model), observing(model, on_layer, on_end):
        yield model


def _add_followers(press: Press, cache: Any, index: int, window: int | None) -> None:
    """Let `press` act on layer `index` of a prefilled cache while tokens are added to it, if it does so at all."""
    layer = cache.layers[index]
    followers = [press.while_decoding(press.compression_ratio) for _ in range(layer.keys.shape[0])]
    if not any(followers):
        return
    if not isinstance(layer, CompressedLayer):
        tokens = layer.keys.shape[2]
        positions = None if window is None else torch.arange(tokens, device=layer.keys.device)[None]
        rows = [
            Kept(Storage(keys, values, positions, window))
            for keys, values in zip(layer.keys, layer.values, strict=True)
        ]
        layer = cache.layers[index] = CompressedLayer(rows, tokens)
    layer.followers = followers


@contextmanager
def chunking(model: nn.Module, size: int | None) -> Iterator[None]:
    """Inside, a prefill runs layer by layer in chunks of `size` tokens, so that activations do not grow with the context. Exact.

    Every layer reads all chunks before the next one begins, so a press still sees a layer's hidden states
    whole, and they still die with the layer. To be used inside `attending(model)`, where transformers builds
    no mask. `None` changes nothing.

    Raises:
        ValueError: `size` is not positive.
    """
    if size is None:
        yield
        return
    if size < 1:
        raise ValueError(
            f"prefill_chunk={size} must be a positive number of tokens, or null to read the context in one piece"
        )
    waiting: dict[int, tuple[Tensor, dict[str, Any]]] = {}

    def first(
        layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        hidden, rest = (
            (args[0], kwargs)
            if args
            else (kwargs["hidden_states"], {k: v for k, v in kwargs.items() if k != "hidden_states"})
        )
        if hidden.shape[1] <= size:
            return None
        waiting[id(layer)] = (hidden, rest)
        return (hidden[:, :size],), _slice(rest, 0, size, hidden.shape[1])

    def others(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if id(layer) not in waiting:
            return None
        hidden, rest = waiting.pop(id(layer))
        tokens = hidden.shape[1]
        parts = [_hidden(output)]
        for start in range(size, tokens, size):
            stop = min(start + size, tokens)
            parts.append(_hidden(layer.forward(hidden[:, start:stop], **_slice(rest, start, stop, tokens))))
        whole = torch.cat(parts, dim=1)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    with ExitStack() as stack:
        for layer in decoder_of(model).layers:  # type: ignore[union-attr]
            stack.callback(layer.register_forward_pre_hook(first, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(others, with_kwargs=True).remove)
        yield


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _slice(arguments: dict[str, Any], start: int, stop: int, tokens: int) -> dict[str, Any]:
    """The arguments of a decoder layer cut to positions start:stop: whatever has the length of the context in its token dimension."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.dim() == 1 and value.shape[0] == tokens:
                return value[start:stop]
            return value[:, start:stop] if value.dim() >= 2 and value.shape[1] == tokens else value
        return tuple(cut(part) for part in value) if isinstance(value, tuple) else value

    return {name: cut(value) for name, value in arguments.items()}


def stack_nested(keys: Tensor, values: Tensor, keeps: Sequence[Tensor], window: int | None) -> list[Kept]:
    """Variants of one layer, sharing memory where their kept sets are nested.

    Entries are ordered by how many variants keep them; a variant whose set is a prefix of that order in every
    head reads the shared storage, any other gets one of its own.

    Args:
        keys: (H, T, d) full keys of the layer.
        values: (H, T, d).
        keeps: per variant a (H, T) bool mask.
        window: the layer's sliding window or None.
    """
    masks = torch.stack(list(keeps))  # (V, H, T)
    counts = masks.sum(-1)  # (V, H)
    order = masks.sum(0).sort(dim=-1, descending=True, stable=True).indices  # (H, T)
    ranked = masks.gather(-1, order.expand_as(masks))
    prefix = torch.arange(masks.shape[-1], device=masks.device) < counts[..., None]
    nested = (ranked == prefix).flatten(1).all(-1)
    length = int(counts[nested].max()) if bool(nested.any()) else 0
    shared = _ordered(keys, values, order[:, :length], window) if length else None
    kept = []
    for variant, is_nested in enumerate(nested.tolist()):
        if is_nested and shared is not None:
            kept.append(Kept(shared, None if bool((counts[variant] == length).all()) else counts[variant]))
        else:
            alone = Selection(masks[variant][None])
            positions = alone.positions[0]
            kept.append(
                kept_entries(
                    rows_at(keys, positions), rows_at(values, positions), counts[variant], positions, window
                )
            )
    return kept


def _ordered(keys: Tensor, values: Tensor, order: Tensor, window: int | None) -> Storage:
    return Storage(
        rows_at(keys, order), rows_at(values, order), order if window is not None else None, window
    )
