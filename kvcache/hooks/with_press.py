"""`with press(model)`: every prefill inside leaves a compressed cache, on which decoding goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from kvcache.architecture import check_model
from kvcache.attention import attending
from kvcache.budget import Budget
from kvcache.cache import CompressedLayer
from kvcache.compress import check_can_compress
from kvcache.hooks.decode_hooks import DecodeHook
from kvcache.hooks.padded_batches import reading_rows_alone
from kvcache.hooks.prefill import Prefill, PromptTokens, observing
from kvcache.latent import stored
from kvcache.layer_state import compressed_in_place_of
from kvcache.modules import attention_module, window_of
from kvcache.observation import LayerObservation
from kvcache.rope_frequencies import keeping_caches
from kvcache.storage import KVView
from kvcache.traits import Traits


class PrefillWatcher(Protocol):
    """What looks on at a prefill: a press that compresses, or an observer that keeps what presses saw."""

    def forward_hook(self, layer: LayerObservation, prefill: Prefill) -> None:
        """Called after each layer's attention, in the prefill only."""

    def finish(self, prefill: Prefill) -> None:
        """Called when the prefill's forward pass is over."""


class Press(PrefillWatcher, Protocol):
    """What `compressing` needs of a press."""

    @property
    def name(self) -> str:
        """In the catalogue."""

    @property
    def traits(self) -> Traits:
        """What kind of method it is."""

    @property
    def budget(self) -> Budget:
        """Of the press by itself."""

    def acts_while_decoding(self, budget: Budget) -> bool:
        """Whether there is a decode hook at that budget."""

    def decode_hook(self, budget: Budget) -> DecodeHook:
        """What acts on one layer of one row after the prefill."""


@contextmanager
def watching(
    model: nn.Module, watcher: PrefillWatcher, prompt_tokens: PromptTokens | None = None
) -> Iterator[nn.Module]:
    """Inside, `watcher` is told of every prefill of `model` (a forward pass on an empty cache).

    Raises:
        ValueError: a model that would be compressed wrongly.
    """
    check_model(model)
    prefill = Prefill(model, prompt_tokens=prompt_tokens)

    def on_layer(layer: LayerObservation, cache: Any) -> None:
        if prefill.cache is not cache:
            prefill.cache, prefill.token_ids = cache, layer.token_ids
            prefill.layers.clear()
            prefill.evidence.clear()
        question = 0 if prompt_tokens is None else prompt_tokens.question
        watcher.forward_hook(replace(layer, question=question) if question else layer, prefill)

    def on_end(cache: Any) -> None:
        prefill.cache = cache
        watcher.finish(prefill)
        prefill.cache = None

    with attending(model), observing(model, on_layer, on_end):
        yield model


@contextmanager
def compressing(
    model: nn.Module, press: Press, prompt_tokens: PromptTokens | None = None
) -> Iterator[nn.Module]:
    """Inside, every prefill of `model` leaves a cache compressed by `press`.

    Decoding and `model.generate` work inside the block, on batches with padding too: each context is then
    read by itself. Hidden states keep their full length; only the cache shrinks.

    Args:
        model: of transformers.
        press: that compresses.
        prompt_tokens: the prompt around the contexts, for presses that let the model read more on top of
            them.

    Raises:
        ValueError: a model that would be compressed wrongly.
    """
    with (
        watching(model, _Compression(press), prompt_tokens),
        reading_rows_alone(model),
        keeping_caches(model),
    ):
        yield model


class _Compression:
    """A press at work on a prefill: it compresses the cache, then its decode hooks are set on it."""

    def __init__(self, press: Press) -> None:
        self.press = press
        self.observed: list[int] = []

    def forward_hook(self, layer: LayerObservation, prefill: Prefill) -> None:
        check_can_compress(self.press, layer)
        self.observed.append(layer.index)
        self.press.forward_hook(layer, prefill)

    def finish(self, prefill: Prefill) -> None:
        self.press.finish(prefill)
        if self.press.acts_while_decoding(self.press.budget):
            for index in self.observed:
                self._set_decode_hooks(prefill, index)
        self.observed.clear()

    def _set_decode_hooks(self, prefill: Prefill, index: int) -> None:
        """Let the press act on a layer of the prefilled cache while tokens are added to it."""
        layer = prefill.cache.layers[index]
        if not isinstance(layer, CompressedLayer):
            tokens, window = layer.keys.shape[2], window_of(attention_module(prefill.model, index))
            rows = [
                KVView.of_full_layer(keys, values, tokens, window)
                for keys, values in zip(*stored(layer), strict=True)
            ]
            layer = prefill.cache.layers[index] = compressed_in_place_of(layer, rows, tokens)
        layer.decode_hooks = [self.press.decode_hook(self.press.budget) for _ in range(layer.rows)]
