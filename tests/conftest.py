"""What every test may ask for."""

import pytest
import torch

from pipeline.model import LoadedModel, ModelConfig, load_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """The embedded model in float32 on the CPU, loaded once per process; do not change it."""
    return load_model(ModelConfig(name="smollm2", dtype="float32", device="cpu"))
