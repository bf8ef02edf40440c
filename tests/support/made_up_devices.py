"""Devices that a machine does not have: CPU tensors that say where they lie and refuse to mix.

The devices are called "cpu:0", "cpu:1", ….

As CUDA does, an operation takes tensors of one device only; scalars and indices may come from the host (plain
"cpu"). What is computed is computed on the CPU, so results can be compared with an ordinary run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

HOST = torch.device("cpu")
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class Placed(torch.Tensor):
    """A tensor that lies on a made-up device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> Placed:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class _Making(TorchFunctionMode):
    """`torch.tensor(…, device=…)` and `.to(device)` take all CPU devices for one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func is torch.tensor:
            return made if isinstance(made, Placed) else _on(made, torch.device(kwargs.get("device") or HOST))
        if func is torch.Tensor.to:
            asked = [one for one in (*args[1:], *kwargs.values()) if isinstance(one, str | torch.device)]
            return _on(made, torch.device(asked[0])) if asked else made
        return made


def _on(tensor: Tensor, device: torch.device) -> Tensor:
    held = tensor.held if isinstance(tensor, Placed) else tensor
    return tensor if tensor.device == device else held if device == HOST else Placed(held, device)


@contextmanager
def made_up_devices() -> Iterator[None]:
    """Inside, they exist."""
    with _Making(), _Operations():
        yield


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU; refused where CUDA would refuse to mix devices."""
    asked = kwargs.get("device")
    given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    if func not in MOVES:
        bound = [
            one
            for one in given
            if one.device != HOST or (one.dim() and not (func in INDEXING and one is not args[0]))
        ]
        devices = {one.device for one in bound}
        if len(devices) > 1:
            shapes = [(tuple(one.shape), str(one.device)) for one in given]
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found {shapes}")
    device = (
        torch.device(asked)
        if asked is not None
        else next((one.device for one in given if one.device != HOST), HOST)
    )
    if func is torch.ops.aten.copy_.default:
        device = args[0].device
    if asked is not None:
        kwargs = {**kwargs, "device": HOST}
    plain = tree_map(lambda one: one.held if isinstance(one, Placed) else one, (args, kwargs))
    owners = {id(one.held): one for one in given if isinstance(one, Placed)}
    out = func(*plain[0], **plain[1])

    def wrapped(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        return owners.get(id(one)) if id(one) in owners else (Placed(one, device) if device != HOST else one)

    return tree_map(wrapped, out)


def place(module: torch.nn.Module, device: str) -> None:
    """Put a module's weights on a made-up device, and what it is called with."""
    where = torch.device(device)
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(
                    Placed(weight.detach(), where), requires_grad=False
                )
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = Placed(buffer, where)

    def move(module: Any, args: Any, kwargs: Any) -> Any:
        return tree_map(
            lambda one: one.to(where) if isinstance(one, Tensor) and one.device != where else one,
            (args, kwargs),
        )

    module.register_forward_pre_hook(move, with_kwargs=True)
