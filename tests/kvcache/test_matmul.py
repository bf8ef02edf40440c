"""Products by the faster library equal PyTorch's: layers, causal attention, attention to shared entries."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kvcache import attention, matmul, prefill_attention
from tests.support.tiny_models import tiny_ids, tiny_model

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch was built without oneDNN"
)


@pytest.fixture(autouse=True)
def any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where it pays."""
    monkeypatch.setattr(matmul, "_default_is_slow", lambda: True)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
def test_a_layer_and_what_is_left_to_pytorch(biased: bool) -> None:
    layer = torch.nn.Linear(24, 40, bias=biased)
    x = numbers(2, 3, 24)
    assert not matmul.fast(x), "outside, a model's numbers stay as they are"
    with torch.no_grad(), matmul.fast_products():
        assert matmul.fast(x)
        close(
            layer(x),
            torch.addmm(layer.bias if biased else torch.zeros(40), x.flatten(0, 1), layer.weight.t()).view(
                2, 3, 40
            ),
        )
        assert layer(x[:0]).shape == (0, 3, 40)
        assert layer.double()(x.double()).dtype == torch.float64
    layer.float()
    with matmul.fast_products():
        layer(x).sum().backward()
    assert layer.weight.grad is not None, "what is differentiated is left to PyTorch"
    torch.backends.mkldnn.set_flags(False)
    try:
        with matmul.fast_products():
            assert not matmul.fast(x)
    finally:
        torch.backends.mkldnn.set_flags(True)


@pytest.mark.parametrize(
    ("n", "length", "window"),
    [(1, 1, None), (7, 7, None), (300, 300, None), (5, 300, None), (300, 300, 40), (9, 90, 16)],
)
def test_causal_attention(n: int, length: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "MOST", 12)  # several steps
    query, key, value = numbers(2, 6, n, 8), numbers(2, 2, length, 8), numbers(2, 2, length, 8)
    at, keys = torch.arange(length - n, length)[:, None], torch.arange(length)
    seen = (keys <= at) & (keys > at - (window or length + 1))
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
    close(prefill_attention.causal_attention_by_products(query * 8**-0.5, key, value, window), expected)


@pytest.mark.parametrize("steps", [1, 3])
def test_attention_to_shared_entries(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, keys, values = numbers(2, 3, 40, 8), numbers(2, 50, 8), numbers(2, 50, 8)
    monkeypatch.setattr(matmul, "MOST", 3 * 40 // steps)
    bias = torch.zeros(2, 1, 40, 50).masked_fill(numbers(2, 1, 40, 50) > 0.5, float("-inf"))
    out, total = attention._by_products(query, keys, values, bias)
    logits = query @ keys[:, None].transpose(2, 3) + bias
    close(total, logits.logsumexp(-1))
    close(out, logits.softmax(-1) @ values[:, None])


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "mistral"])
def test_a_model_computes_the_same(family: str) -> None:
    model = tiny_model(family)
    ids = tiny_ids(90)
    with torch.no_grad():
        expected = model(ids).logits
        with attention.attending(model), matmul.fast_products():
            close(model(ids).logits, expected)
