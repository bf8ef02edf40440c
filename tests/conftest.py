"""What every test may ask for."""

import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from longpress.models.loading import LoadedModel, ModelConfig, load_model
from tests.support.browser import chromium
from tests.support.running import save_tiny_model

torch.set_num_threads(1)
gc.freeze()  # what was imported lives as long as the process; a fifth of the time went into visiting it
gc.set_threshold(100_000, 50, 100)
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell starts what runs in its background deaf to it, and so would be all below


SHARED = {"model_folder": "commands", "smollm2": "smollm2"}
"""Fixtures that cost seconds, and the groups of the tests that ask for them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have tests that share what is expensive run in one of several processes (`--dist loadgroup`)."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        groups = [SHARED[name] for name in SHARED if name in getattr(item, "fixturenames", ())]
        if groups and not item.get_closest_marker("slow"):  # the slow ones take longer than what they share
            item.add_marker(pytest.mark.xdist_group(groups[0]))


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """The embedded model in float32 on the CPU, loaded once per process; do not change it."""
    return load_model(ModelConfig(name="smollm2", dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and its tokenizer on disk, for commands; do not change it."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One headless Chromium for all: Playwright's synchronous driver allows no second one beside it."""
    with chromium() as started:
        yield started
