"""Presses that read weights ask the module: packed and adapted weights count as what they compute."""

import copy
from functools import cache

import pytest
import torch
from torch import nn

from kvcache.budget import Budget
from kvcache.compress import Target
from kvcache.linear import is_plain, weight_of
from kvcache.modules import attention_modules
from kvcache.projections import output_weight
from longpress.pipeline.memory import Shape
from presses import KVgradPress, KVzipPress
from presses.base import BasePress
from tests.support.catalogue_presses import NAMES, has_no_ratio, press_named
from tests.support.packed_linear import (
    CutLinear,
    PackedLinear,
    RoundingLinear,
    dequantise,
    with_packed_weights,
)
from tests.support.prefilled_contexts import read_context
from tests.support.tiny_models import frozen_normal, tiny_model

PRESSES: dict[str, BasePress] = {name: press_named(name) for name in NAMES} | {
    "kvzip_plus": KVzipPress(kvzip_plus_normalization=True)
}


class Adapted(nn.Module):
    """A LoRA wrapper: the weight that it shows is without its adapter."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        outputs, inputs = base.weight.shape
        self.up, self.down = frozen_normal("up", (outputs, 4)), frozen_normal("down", (4, inputs)) / 8

    @property
    def weight(self):
        return self.base.weight

    def forward(self, hidden):
        return self.base(hidden) + hidden @ self.down.T @ self.up.T


@cache
def pair(family):
    """A model with packed weights, and the same numbers in plain modules."""
    packed = with_packed_weights(tiny_model(family))
    return packed, dequantise(copy.deepcopy(packed))


def kept(model, press):
    target = Target(Budget(ratio=0.0 if has_no_ratio(press) else 0.5))
    return read_context(model, [press], 67).compress(press, [target])[0]


@pytest.mark.parametrize("name", PRESSES)
@pytest.mark.parametrize("family", ["qwen2", "phi3"])
def test_every_press_keeps_what_it_keeps_of_the_dequantised_model(family, name):
    packed, plain = (kept(model, PRESSES[name]) for model in pair(family))
    assert packed.entries() == plain.entries()
    for mine, theirs in zip(packed.layers, plain.layers, strict=True):
        torch.testing.assert_close(mine.storage.keys, theirs.storage.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mine.storage.values, theirs.storage.values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [CutLinear, RoundingLinear])
def test_gradients_that_do_not_pass_are_refused(kind):
    model = with_packed_weights(tiny_model("llama"), kind)
    with pytest.raises(ValueError, match=f"gradients do not pass through {kind.__name__}"):
        kept(model, KVgradPress())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [PackedLinear, RoundingLinear, Adapted])
def test_the_weight_of_a_module_is_what_it_multiplies_by(kind, dtype, biased):
    linear = nn.Linear(48, 32, bias=biased)
    with torch.no_grad():
        linear.weight.copy_(frozen_normal("weight", (32, 48)))
        linear.bias is None or linear.bias.copy_(frozen_normal("bias", (32,)) * 3)
    module = kind(linear)
    expected = (
        module.dequantised() if isinstance(module, PackedLinear) else linear.weight + module.up @ module.down
    )
    found = (
        weight_of(module.to(dtype) if kind is not Adapted else module, 48, torch.empty(0, dtype=dtype))
        if kind is not Adapted
        else weight_of(module, 48)
    )
    assert not is_plain(module)
    close = 1e-5 if found.dtype == torch.float32 else 0.02
    torch.testing.assert_close(found.float(), expected.float(), rtol=close, atol=close)


def test_a_hook_counts_and_a_plain_weight_is_not_copied():
    linear = nn.Linear(8, 4)
    assert weight_of(linear, 8) is linear.weight
    linear.register_forward_hook(lambda module, args, output: 2 * output)
    torch.testing.assert_close(weight_of(linear, 8), 2 * linear.weight)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Linear(8, 4), nn.ReLU()), "does not multiply by a matrix"),
        (nn.Linear(9, 4).double(), "cannot be applied to 8 inputs"),
    ],
)
def test_what_is_no_product_is_refused(module, words):
    with pytest.raises(ValueError, match=words) as caught:
        weight_of(nn.Sequential(module), 8)
    assert "\n" not in str(caught.value)


def test_the_memory_plan_counts_packed_weights_and_entries_as_computed():
    packed, plain = pair("llama")
    module = attention_modules(packed)[0]
    assert output_weight(module).shape == output_weight(attention_modules(plain)[0]).shape
    packed.register_buffer("table", torch.zeros(1000))
    shape = Shape.of(packed)
    assert shape.element == 4
    stored = sum(one.numel() * one.element_size() for one in packed.parameters())
    assert shape.weights >= stored + 4000
    del packed.table
