"""Nothing of size T x T: at 16k tokens the largest tensor of any press is far below one head's T x T."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from kvcache.hooks.prefill import chunking
from kvcache.modules import cache_keyword
from kvcache.observation import LOGITS
from longpress.pipeline.sweep_observer import PrefilledContext, SweepObserver
from tests.support.catalogue_presses import NAMES, has_no_ratio, press_named
from tests.support.tiny_models import tiny_ids, tiny_model

TOKENS = 16384
LARGEST = 4 * LOGITS + 2**20
"""Bytes; a float32 matrix T x T has four times as many, for each head."""


class Sizes(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation returns, and which operation."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = (0, "")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, (one.untyped_storage().nbytes(), str(function)))
        return made


@contextmanager
def noting(sizes: dict[str, tuple[int, str]], name: str) -> Iterator[None]:
    with Sizes() as seen:
        yield
    sizes[name] = max(seen.largest, sizes.get(name, (0, "")))


class Watched(SweepObserver):
    """Looks on for many presses, and notes the largest tensor that each makes."""

    def __init__(self, presses) -> None:
        super().__init__(presses)
        self.sizes: dict[str, tuple[int, str]] = {}

    def observe(self, layer):
        seen = {}
        for identity, press in self.presses.items():
            with noting(self.sizes, press.name):
                seen[identity] = press.observe(layer)
        return seen


@pytest.mark.slow
def test_no_press_makes_a_tensor_of_the_context_squared() -> None:
    model = tiny_model("llama", max_position_embeddings=2 * TOKENS)
    presses = [press_named(name) for name in NAMES]
    observer = Watched(presses)
    with torch.no_grad(), observer(model), chunking(model, 4096), noting(observer.sizes, "prefill"):
        model.model(
            input_ids=tiny_ids(TOKENS), **{cache_keyword(model.model): DynamicCache(config=model.config)}
        )
    prefilled = PrefilledContext(observer, 0.0)
    for press in presses:
        with noting(observer.sizes, press.name):
            prefilled.compress(press, [0.0 if has_no_ratio(press) else 0.5])
    assert set(observer.sizes) >= {press.name for press in presses if not has_no_ratio(press)}
    assert not {name: size for name, size in observer.sizes.items() if size[0] > LARGEST}
    assert LARGEST < 4 * TOKENS**2 / 3
