"""Layers of one model on several devices (`device_map`).

What is decided for all layers together is decided on one device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvcache.observation import LayerObservation


def together(evidence: Sequence[Any]) -> Sequence[Any]:
    """Per-layer evidence with all tensors on the device of the first one.

    As it is where they share a device already.

    A `LayerObservation` stays with its layer, whose weights compute on it.
    """
    devices = {tensor.device for tensor in _tensors(evidence)}
    return evidence if len(devices) < 2 else moved(evidence, next(_tensors(evidence)).device)


def moved(value: Any, device: torch.device) -> Any:
    """The same value with its tensors on `device`.

    Args:
        value: a tensor, or tensors in lists, tuples, mappings and dataclasses.
        device: where they are to lie.
    """
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        parts = [moved(part, device) for part in value]
        # a named tuple takes them one by one
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {key: moved(part, device) for key, part in value.items()}
    if _is_record(value):
        names = [field.name for field in fields(value) if field.init]
        changes = {name: moved(getattr(value, name), device) for name in names}
        same = all(getattr(value, name) is part for name, part in changes.items())
        return value if same else replace(value, **changes)  # the same object keeps what it has worked out
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif _is_record(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type | LayerObservation)
