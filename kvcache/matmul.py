"""Matrix products in float32 on processors of which PyTorch's default library uses half.

PyTorch gives them to MKL, which does without AVX-512 on processors that Intel did not make. oneDNN, which
PyTorch brings too, uses it: 2.3 times as fast on an AMD EPYC of the fifth generation. It rounds differently,
so it is used inside `fast_products()` only: a sweep enters it, `with press(model)` does not and leaves a
model's numbers as they are to the last bit. `torch.backends.mkldnn.set_flags(False)` leaves all to the
default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LOGITS = 2**22
"""Attention logits per product: 16 MiB, more where that were fewer than `FEWEST` queries."""

FEWEST, MOST = 96, 256
"""Queries per product, of all heads of a group together.

Fewer waste the product, more compute what a causal mask hides.
"""

_INSIDE: ContextVar[bool] = ContextVar("inside fast_products", default=False)


@lru_cache(maxsize=1)
def _default_is_slow() -> bool:
    """Whether this processor has AVX-512 and MKL would not use it.

    A rule and no measurement, so that a machine always rounds alike.
    """
    description = Path("/proc/cpuinfo")
    maker = description.read_text(encoding="utf-8", errors="replace") if description.exists() else ""
    usable = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return usable and "AuthenticAMD" in maker and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def library() -> str:
    """Name of what computes float32 products of layers and attention on this machine's CPU."""
    return "oneDNN" if _default_is_slow() and torch.backends.mkldnn.enabled else "PyTorch's default"  # type: ignore[attr-defined]


def fast(*tensors: Tensor) -> bool:
    """Whether `product` is wanted at present, and faster than PyTorch's own on such tensors.

    Only inside `fast_products()`, and where none of the tensors is to be differentiated.
    """
    if not (_INSIDE.get() and _default_is_slow() and torch.backends.mkldnn.enabled):  # type: ignore[attr-defined]
        return False
    plain = all(
        tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.numel() > 0
        for tensor in tensors
    )
    return plain and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., k) times (n, k) transposed, plus (n,): (..., n); where `fast` says so."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return result


def queries_at_once(heads: int, length: int) -> int:
    """Queries of each of so many heads in one product with `length` keys."""
    return max(1, min(MOST, max(FEWEST, LOGITS // length)) // heads)


def rounded_up(keys: int, length: int) -> int:
    """`keys` rounded up, to `length` at most, so that few different numbers of keys occur."""
    grain = max(MOST, length // 16)
    return min(length, -(-keys // grain) * grain)


class _Layers(TorchFunctionMode):
    """Inside, linear layers use `product`."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is functional.linear and not kwargs and fast(*(part for part in args if part is not None)):
            return product(*args)
        return func(*args, **(kwargs or {}))


@contextmanager
def fast_products() -> Iterator[None]:
    """Inside, linear layers and attention are computed by the fastest library at hand."""
    if not _default_is_slow():
        yield
        return
    before = _INSIDE.set(True)
    try:
        with _Layers():
            yield
    finally:
        _INSIDE.reset(before)
