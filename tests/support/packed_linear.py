"""A linear module whose weights lie packed, as quantised checkpoints have them; it needs no package."""

import torch
from torch import Tensor, nn

PROJECTIONS = tuple(f"{name}_proj" for name in ("q", "k", "v", "o", "qkv", "gate", "up", "down", "gate_up"))
"""Names of the linear modules of a decoder layer."""


class PackedLinear(nn.Module):
    """Two numbers of four bits in a byte, one scale per output.

    Attributes:
        weight: (in * out / 2, 1) bytes, of which nobody but `forward` can make sense.
        bias: (out,), or None.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise the weights of `linear`."""
        super().__init__()
        weight = linear.weight.detach()
        self.shape = weight.shape
        scale = weight.abs().amax(1, keepdim=True) / 7
        numbers = (weight / scale).round().to(torch.int8).flatten() + 8
        self.weight = nn.Parameter((numbers[::2] * 16 + numbers[1::2]).to(torch.uint8)[:, None], False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def dequantised(self) -> Tensor:
        """(out, in)."""
        bytes_ = self.weight.data[:, 0].int()
        numbers = torch.stack((bytes_ // 16, bytes_ % 16), dim=1).reshape(self.shape) - 8
        return numbers * self.scale

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., out)."""
        return nn.functional.linear(inputs, self.dequantised().to(inputs), self.bias)


class CutLinear(PackedLinear):
    """The same through a kernel without a backward pass."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., out)."""
        with torch.no_grad():
            return super().forward(inputs)


class RoundingLinear(PackedLinear):
    """Inputs are rounded to eight bits too, of which the derivative is 0."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., out)."""
        scale = inputs.detach().abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
        return super().forward((inputs / scale).round() * scale)


def with_packed_weights(model: nn.Module, kind: type[PackedLinear] = PackedLinear) -> nn.Module:
    """The model with every linear module of its layers packed; changed in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in PROJECTIONS and type(child) is nn.Linear:
                setattr(module, name, kind(child))
    return model


def dequantise(model: nn.Module) -> nn.Module:
    """The model with plain linear modules of the same numbers; changed in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, PackedLinear):
                weight = child.dequantised()
                plain = nn.Linear(weight.shape[1], weight.shape[0], bias=child.bias is not None)
                plain.weight = nn.Parameter(weight)
                plain.bias = child.bias
                setattr(module, name, plain)
    return model
