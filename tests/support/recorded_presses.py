"""Our presses for those recorded in kvpress, and arithmetic of kvpress in place of ours."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import presses
from kvcache.observation import LayerObservation
from presses.base import BasePress
from tests.support.peer.goldens import MORE, load_goldens

WINDOW = 64
"""SnapKV's window, whose entries all have one score in kvpress."""


def recorded_press(description: Mapping[str, Any], without: Collection[str] = ()) -> BasePress:
    """Our press for the class and the fields that a recording names, those in `without` left out."""
    bookkeeping = {"class", "eager", *without}
    fields = {key: value for key, value in description.items() if key not in bookkeeping}
    if isinstance(fields.get("press"), dict):
        fields["press"] = recorded_press(fields["press"])
    if description["class"] == "PyramidKVPress":  # a subclass of SnapKV in kvpress, a wrapper here
        inner = presses.SnapKVPress(window_size=fields["window_size"], kernel_size=fields.pop("kernel_size"))
        fields["press"] = inner
    return getattr(presses, description["class"])(**fields)


def their_sketches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws of kvpress in the place of ours."""
    arrays = load_goldens(MORE).arrays

    def recorded(layer: LayerObservation, seed: int, *shape: int) -> Tensor:
        if len(shape) == 2:
            return torch.from_numpy(arrays["sketch CUR"][layer.index])[None]
        return torch.from_numpy(arrays["sketch LeverageScore"][layer.index])

    monkeypatch.setattr("presses.leverage.gaussian", recorded)
    monkeypatch.setattr("presses.cur.gaussian", recorded)


def padded_attention(layer: LayerObservation, chunk_size: int) -> Tensor:
    """Attention within chunks as kvpress pads the last one: zeros that take part in the softmax."""
    missing = -layer.tokens % chunk_size
    queries = functional.pad(layer.queries(), (0, 0, 0, missing)).unflatten(2, (-1, chunk_size))
    keys = (
        functional.pad(layer.keys, (0, 0, 0, missing))
        .repeat_interleave(layer.group, 1)
        .unflatten(2, (-1, chunk_size))
    )
    logits = queries @ keys.mT
    if missing:
        logits[:, :, -1, -missing:] = 0
        logits[:, :, -1, :, -missing:] = -1e-9
    return logits.softmax(-1).sum(-2).flatten(2)[..., : layer.tokens]
