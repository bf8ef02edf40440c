"""Contexts that a tiny model has read while presses looked on, and what they saw of its layers."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvcache.hooks.prefill import PromptTokens, observing
from kvcache.modules import cache_keyword
from kvcache.observation import LayerObservation
from longpress.pipeline.sweep_observer import PrefilledContext, SweepObserver
from presses.base import BasePress
from tests.support.tiny_models import tiny_ids, tiny_model

RATIOS = (0.25, 0.5, 0.9)
TOKENS = 203
"""The length of a context where a test does not ask for another: odd, and above every press's window."""


@cache
def model_of(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The tiny model of a family, made once; do not change it."""
    return tiny_model(family).to(dtype)


def read_context(
    model: PreTrainedModel,
    presses: Sequence[BasePress],
    tokens: int = TOKENS,
    prompt_tokens: PromptTokens | None = None,
    batch: int = 1,
    ids: Tensor | None = None,
) -> PrefilledContext:
    """One prefill that all `presses` look on, of `ids` (batch, T) or of that many made-up tokens."""
    observer = SweepObserver(list(presses))
    ids = tiny_ids(tokens, batch) if ids is None else ids
    with torch.no_grad(), observer(model, prompt_tokens):
        model.model(input_ids=ids, **{cache_keyword(model.model): DynamicCache(config=model.config)})
    return PrefilledContext(observer, 0.0)


def observations(model: PreTrainedModel, tokens: int = TOKENS, batch: int = 1) -> list[LayerObservation]:
    """What a press is shown of each compressed layer."""
    layers: list[LayerObservation] = []
    with torch.no_grad(), observing(model, lambda layer, cache: layers.append(layer)):
        model.model(
            input_ids=tiny_ids(tokens, batch),
            **{cache_keyword(model.model): DynamicCache(config=model.config)},
        )
    return layers


def observed_layer(family: str, tokens: int, index: int = -1, batch: int = 1) -> LayerObservation:
    """What a press is shown of one layer of a tiny model, the last unless told."""
    return observations(model_of(family), tokens, batch)[index]


def logits_after(
    model: PreTrainedModel, press: BasePress, continuation: Tensor, tokens: int = TOKENS
) -> Tensor:
    """Logits of a continuation (B, n) after a context that was read inside `with press(model)`."""
    keyword = cache_keyword(model)
    stored = DynamicCache(config=model.config)
    with torch.no_grad(), press(model):
        model(tiny_ids(tokens), **{keyword: stored})
        return model(continuation, **{keyword: stored}).logits
