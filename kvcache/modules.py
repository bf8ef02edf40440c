"""Facts about the attention modules of a transformers model: where they are, and what each attends to."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import CacheLayerMixin

STATE: Any = getattr(cache_utils, "LinearAttentionCacheLayerMixin", ())
"""The base of transformers' cache layers that hold a state of fixed size; older versions have none."""


class Cached(NamedTuple):
    """What a decoder layer caches.

    Attributes:
        entries: keys and values of its own, which grow with the context.
        state: tensors of fixed size, as linear attention, state spaces and short convolutions have them.
    """

    entries: bool
    state: bool


_cached: WeakKeyDictionary[nn.Module, list[Cached]] = WeakKeyDictionary()


def decoder_of(model: nn.Module) -> nn.Module:
    """The stack of decoder layers inside `model` (the text model of a multimodal one)."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    if not hasattr(decoder, "layers"):  # Llama 4 gives itself
        decoder = getattr(model, "model", decoder)
    if not hasattr(decoder, "layers"):
        raise ValueError(
            f"{type(model).__name__} has no decoder with `layers`, which longpress needs; models as Llama or "
            "Qwen have one"
        )
    return decoder


def cached_by_layers(model: nn.Module) -> list[Cached]:
    """What each decoder layer caches, in order, as the cache that transformers makes for the model tells.

    Raises:
        ValueError: that cache has another number of layers than the decoder.
    """
    if model not in _cached:
        config: Any = model.config
        layers: Any = decoder_of(model).layers
        made = DynamicCache(config=config.get_text_config()).layers
        if len(made) != len(layers):
            raise ValueError(
                f"{type(model).__name__} has {len(layers)} decoder layers and a cache of {len(made)}: "
                "longpress supports models with one cache layer per decoder layer"
            )
        _cached[model] = [Cached(isinstance(one, CacheLayerMixin), isinstance(one, STATE)) for one in made]
    return _cached[model]


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The attention module of every decoder layer that caches keys and values of its own, in order.

    Hybrid models have fewer than decoder layers; a module's own `layer_idx` tells which layer it is of.
    """
    layers: Any = decoder_of(model).layers
    found = [
        getattr(layer, "self_attn", getattr(layer, "mixer", None))  # Nemotron-H calls all of them `mixer`
        for layer, cached in zip(layers, cached_by_layers(model), strict=True)
        if cached.entries
    ]
    modules = [module for module in found if module is not None]
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no layer with `self_attn`, where longpress looks for a KV cache; "
            "use a model as Llama or Qwen"
        )
    return modules


def readers_of_other_layers(model: nn.Module) -> dict[nn.Module, int]:
    """Attention modules that read the keys and values of an earlier layer, to the index of that layer.

    Gemma 3n and 4 have such: the last layer of each kind that caches its own keys and values serves all later
    ones, which cache none.

    Raises:
        ValueError: it cannot be told which layer is read.
    """
    sources: dict[Any, Any] = {}  # per kind of attention
    readers: dict[nn.Module, int] = {}
    layers: Any = decoder_of(model).layers
    for layer in layers:
        module: Any = getattr(layer, "self_attn", None)
        if getattr(module, "store_full_length_kv", False):
            sources[module.layer_type] = module.layer_idx
        if getattr(module, "is_kv_shared_layer", False):
            if module.layer_type not in sources:
                raise ValueError(
                    f"layer {module.layer_idx} of {type(model).__name__} reads the cache of another layer; "
                    "longpress cannot tell which"
                )
            readers[module] = sources[module.layer_type]
    return readers


def attention_module(model: nn.Module, index: int) -> nn.Module:
    """The attention module of decoder layer `index`, which must be one of `attention_modules`."""
    return next(module for module in attention_modules(model) if module.layer_idx == index)


def has_state(model: nn.Module) -> bool:
    """Whether some layer holds a state of fixed size, from which no token can be removed again."""
    return any(cached.state for cached in cached_by_layers(model))


def cache_keyword(module: nn.Module) -> str:
    """Name of the argument that carries the cache: `past_key_values`, since transformers 5.24 `cache`."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def window_of(module: nn.Module) -> int | None:
    """Tokens that a sliding-window attention sees, None for full attention."""
    if kind_of(module) not in (None, "sliding_attention"):  # EXAONE 4 names the window in all of its modules
        return None
    if hasattr(module, "sliding_window"):
        return module.sliding_window  # type: ignore[return-value]
    config: Any = module.config
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


def windows_of(model: nn.Module) -> list[int | None]:
    """Per decoder layer `window_of` its attention; None too for layers without keys and values."""
    windows: dict[Any, int | None] = {
        module.layer_idx: window_of(module) for module in attention_modules(model)
    }
    return [windows.get(index) for index in range(len(cached_by_layers(model)))]


def kind_of(module: nn.Module) -> str | None:
    """The kind of an attention, such as "sliding_attention", where the model has several kinds; else None."""
    config: Any = module.config
    kinds = getattr(config, "layer_types", None)
    return kinds[module.layer_idx] if kinds else None


def is_left_whole(model: nn.Module, module: nn.Module, tokens: int) -> bool:
    """Whether this layer is not compressed.

    A sliding-window layer already forgets, so presses leave it as it is. A model in which every layer has a
    window that covers the whole context behaves as one with full attention and is compressed as such.

    Raises:
        ValueError: every layer has a window shorter than the context, so nothing could be compressed.
    """
    window = window_of(module)
    if window is None:
        return False
    windows = [window_of(other) for other in attention_modules(model)]
    if None in windows:
        return True
    if window < tokens:
        raise ValueError(
            f"every layer of {type(model).__name__} attends within a sliding window of {window} tokens, "
            f"fewer than the context's {tokens}: there is nothing left for a press to compress; use contexts "
            "within the window or a model with full-attention layers"
        )
    return False
