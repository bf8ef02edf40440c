"""Facts about the attention modules of a transformers model: where they are, and what each attends to."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def decoder_of(model: nn.Module) -> nn.Module:
    """The stack of decoder layers inside `model` (the text model of a multimodal one)."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    if not hasattr(decoder, "layers"):
        raise ValueError(
            f"{type(model).__name__} has no decoder with `layers`, which longpress needs; models as Llama or "
            "Qwen have one"
        )
    return decoder


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The self-attention module of every decoder layer, in order."""
    modules = [layer.self_attn for layer in decoder_of(model).layers if hasattr(layer, "self_attn")]  # type: ignore[union-attr]
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no layer with `self_attn`, where longpress looks for a KV cache; "
            "use a model as Llama or Qwen"
        )
    return modules


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
