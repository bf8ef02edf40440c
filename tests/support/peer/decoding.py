"""kvpress presses that compress while decoding, under forced tokens, every compression noted; needs kvpress.

The context's first `PREFILL` tokens are read, then `QUESTION` tokens at once, then the rest one by one, with
the positions they have in the text whatever was dropped. After every pass that shortened the cache or masked
other entries, and after the last one, the kept positions are recorded as a case whose length is the number of
tokens seen so far. Where heads are masked, kvpress overwrites masked keys, so that a scorer of keys sees the
overwritten ones at the next compression.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from kvpress import BasePress, CAMPress
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tests.support.peer.goldens import Case, Goldens
from tests.support.peer.recording import Recipe, Run, attention_layers, describe_once, note_failure

PREFILL, QUESTION, TOTAL = 96, 5, 150


@dataclass
class Moment:
    """What a cache held after `seen` tokens, in pass number `step` (0: the prefill)."""

    seen: int
    step: int
    kept: Any


def passes(ids: Tensor) -> list[Tensor]:
    """The token ids of every forward pass."""
    sizes = [PREFILL, QUESTION, *[1] * (ids.shape[1] - PREFILL - QUESTION)]
    return list(ids.split(sizes, dim=1))


@torch.no_grad()
def decode(model: PreTrainedModel, press: BasePress, ids: Tensor) -> tuple[list[Moment], Run]:
    """Feed `ids` under `press`; CAM's coin is replaced by "heads if its chance is at least one half"."""
    layers = attention_layers(model)
    cache = DynamicCache()
    history = Run(
        [torch.empty(0)] * len(layers), [torch.empty(0)] * len(layers), cache, model, changes_keys=False
    )
    lengths = [0] * len(layers)

    def note(module: Any, inputs: Any, kwargs: dict[str, Any], output: Any) -> None:
        index, count = module.layer_idx, kwargs["hidden_states"].shape[1]
        layer = cache.layers[index]
        for seen, now in ((history.keys, layer.keys), (history.values, layer.values)):
            new = now[:, :, -count:].clone()
            seen[index] = torch.cat([seen[index], new], dim=2) if seen[index].numel() else new
        lengths[index] = layer.keys.shape[2]

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    moments: list[Moment] = []
    masks: list[Any] = [None] * len(layers)
    seen = 0
    chunks = passes(ids)
    try:
        with patch("torch.bernoulli", lambda chance: (chance >= 0.5).to(chance.dtype)), press(model):
            for step, chunk in enumerate(chunks):
                positions = torch.arange(seen, seen + chunk.shape[1])[None]
                model.model(input_ids=chunk, position_ids=positions, past_key_values=cache)
                seen += chunk.shape[1]
                shortened = any(
                    layer.keys.shape[2] < length for layer, length in zip(cache.layers, lengths, strict=True)
                )
                masks, before = [layer.masked_key_indices for layer in layers], masks
                if (
                    shortened
                    or step == len(chunks) - 1
                    or any(now is not old for now, old in zip(masks, before, strict=True))
                ):
                    moments.append(Moment(seen, step, history.kept()))
    finally:
        for hook in hooks:
            hook.remove()
    return moments, history


def record_decoding(
    goldens: Goldens,
    recipes: dict[str, Recipe],
    family: str,
    load: Callable[[], PreTrainedModel],
    shake: Callable[[Any], Any],
    ids: Tensor,
) -> None:
    """Record every compression of the recipes, and the final values where values are merged."""
    model, copy = load(), shake(load())
    for label, recipe in recipes.items():
        press = recipe.make(0.0)
        describe_once(goldens, label, recipe, press)
        try:
            moments, history = decode(model, press, ids)
            again, _ = decode(copy, recipe.make(0.0), ids)
        except Exception as error:  # a finding
            note_failure(goldens, Case(label, family, ids.shape[1], 0.0), error)
            continue
        for moment, second in zip(moments, again, strict=True):
            case = Case(label, family, moment.seen, 0.0)
            goldens.masks[case] = moment.kept
            goldens.details[case] = {"step": moment.step}
            if unstable := int((moment.kept != second.kept).sum()):
                goldens.details[case]["unstable"] = unstable
        if isinstance(press, CAMPress):
            goldens.arrays[" ".join(map(str, ("values", label, family, moments[-1].seen, 0.0)))] = (
                history.stored("values")
            )
