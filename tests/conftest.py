"""What every test may ask for."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from longpress.models.loading import LoadedModel, ModelConfig, load_model
from tests.support.browser import chromium

torch.set_num_threads(1)
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell starts what runs in its background deaf to it, and so would be all below


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """The embedded model in float32 on the CPU, loaded once per process; do not change it."""
    return load_model(ModelConfig(name="smollm2", dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One headless Chromium for the whole run: Playwright's synchronous driver allows no second one beside it."""
    with chromium() as started:
        yield started
