"""What a linear module computes, asked of the module itself, whatever its weights are stored as.

`.weight` tells the truth in a plain `nn.Linear` alone. Quantised modules keep packed numbers there (or none),
a LoRA wrapper keeps the weights without its adapter, an offloaded module keeps nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

COMPUTING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The types of numbers in which models compute; others are how weights are stored."""

TOLERANCE = 0.1
"""Share by which answers may differ from a product with a matrix: int8 and fp8 inputs round by 1 to 4 %."""

TRIED = 8
"""Random inputs on which a module is compared with the matrix that was found for it."""

SCALE = 64.0
"""Factor on the inputs of a module with a bias, so that rounding after the bias is added costs no digits."""


def is_plain(module: nn.Module) -> bool:
    """Whether a module computes `x @ weight.T + bias` and nothing else.

    True of an `nn.Linear` itself, not of classes derived from it, with weights as floating-point numbers and
    without hooks or a replaced `forward`.
    """
    if type(module) is not nn.Linear or type(module.weight) not in (nn.Parameter, Tensor):
        return False
    stored = module.weight.dtype in COMPUTING and not module.weight.is_meta
    return stored and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def size_of(module: nn.Module) -> tuple[int, int] | None:
    """(outputs, inputs) of a linear module; None where it does not say."""
    weight = getattr(module, "weight", None)
    named = tuple(getattr(module, name, None) for name in ("out_features", "in_features"))
    if all(isinstance(size, int) for size in named):
        return named  # type: ignore[return-value]
    plain = isinstance(weight, Tensor) and weight.dim() == 2 and weight.dtype in COMPUTING
    return (weight.shape[0], weight.shape[1]) if plain else None  # type: ignore[union-attr]


def computing_type(model: nn.Module) -> torch.dtype:
    """The type of numbers in which a model computes: that of the first parameter which is not packed."""
    return next((one.dtype for one in model.parameters() if one.dtype in COMPUTING), torch.float32)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are, or its buffers where all of its weights are packed."""
    held = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if held is None else held.device


@torch.no_grad()
def weight_of(module: nn.Module, inputs: int, like: Tensor | None = None) -> Tensor:
    """(out, in): the matrix that a linear module multiplies by, without its bias.

    The weight itself of a plain module. Any other module is applied to the rows of an identity, so that
    whatever it computes counts: dequantised weights, adapters, hooks.

    Args:
        module: takes (n, in), gives (n, out).
        inputs: number of its inputs.
        like: in the type and on the device of the module's inputs; None: float32 on the CPU.

    Raises:
        ValueError: it cannot be applied, or computes something else than a product with a matrix.
    """
    if is_plain(module):
        return module.weight  # type: ignore[return-value]
    like = torch.empty(0) if like is None else like
    generator = torch.Generator().manual_seed(0)
    tried = torch.randn(TRIED, inputs, generator=generator).to(like.device, like.dtype)
    try:
        # Half the sum of what x and -x give is the bias, half the difference the product.
        ahead, back = module(tried).float(), module(-tried).float()
        bias = ((ahead + back) / 2).mean(0)
        has_bias = bool(bias.any())
        scale = SCALE if has_bias else 1.0
        rows = module(torch.eye(inputs, dtype=like.dtype, device=like.device) * scale)
        weight = ((rows.float() - bias) / scale if has_bias else rows).T
        expected = tried.float() @ weight.T.float()
        error = ((ahead - back) / 2 - expected).norm() / expected.norm()
    except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, AssertionError) as problem:
        reason = str(problem).strip().split("\n")[0] or type(problem).__name__
        raise ValueError(
            f"the weights of {type(module).__name__} are needed, but it cannot be applied to "
            f"{inputs} inputs ({reason}); load the model without quantization"
        ) from problem
    if not error <= TOLERANCE:  # NaN included
        raise ValueError(
            f"the weights of {type(module).__name__} are needed, but it does not multiply by a matrix: on "
            f"random inputs the one found for it errs by {float(error):.0%}; load the model without "
            "quantization"
        )
    return weight.to(like.dtype)


def part_of(module: nn.Module, hidden: Tensor, start: int, stop: int) -> Tensor:
    """(..., stop - start): some outputs of a linear module for inputs (..., in).

    Only those are computed where the module is plain.
    """
    if is_plain(module):
        bias: Any = module.bias
        some = None if bias is None else bias[start:stop]
        return nn.functional.linear(hidden, module.weight[start:stop], some)  # type: ignore[index]
    part: Tensor = module(hidden)[..., start:stop]
    return part


@contextmanager
def checking_gradients(layers: nn.Module) -> Iterator[None]:
    """Inside, linear modules that are not plain are checked at their first call: do gradients pass through?

    A quantised module may cut the graph, or round its inputs, of which the derivative is 0: a backward pass
    would then leave out a part of the model without a word.
    """
    checked: set[nn.Module] = set()

    def check(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module not in checked and isinstance(output, Tensor) and args:
            checked.add(module)
            _check_gradient(module, args[0])

    with ExitStack() as stack:
        for name, module in layers.named_modules():
            named = name.endswith(("proj", "dense", "fc1", "fc2"))
            if (named or isinstance(getattr(module, "in_features", None), int)) and not is_plain(module):
                stack.callback(module.register_forward_hook(check).remove)
        yield


def _check_gradient(module: nn.Module, hidden: Tensor) -> None:
    """Compare |W x|² with the product of x and its gradient, which are equal where y = W x + b.

    Raises:
        ValueError: they differ.
    """
    inputs = hidden.detach().flatten(0, -2)[:TRIED].clone().requires_grad_()
    ahead = module(inputs)
    error = 1.0
    if ahead.requires_grad:
        product = ((ahead - module(-inputs)) / 2).detach()
        (gradient,) = torch.autograd.grad(ahead, inputs, product, allow_unused=True)
        if gradient is not None:
            squared = float(product.double().square().sum())
            error = abs(1 - float((inputs.detach().double() * gradient.double()).sum()) / max(squared, 1e-30))
    if not error <= TOLERANCE:
        raise ValueError(
            f"gradients do not pass through {type(module).__name__}, and this press needs them; load the "
            "model without quantization or use another press"
        )
