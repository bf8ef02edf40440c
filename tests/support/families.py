"""Tiny random models of many families, from the configurations in `tests/data/tiny_configs`."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from longpress import CompressingPipeline
from longpress.models.loading import auto_class_of
from tests.support.byte_tokenizer import byte_tokenizer

FOLDER = Path(__file__).parent.parent / "data" / "tiny_configs"

PEAKED = ("q_proj", "k_proj", "qkv_proj", "q_b_proj", "kv_a_proj")
"""Projections whose weights are larger, so that attention is not uniform."""


def config_of(name: str, **overrides: Any) -> Any:
    """The configuration in `name`.json."""
    given = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) | overrides
    return AutoConfig.for_model(given.pop("model_type"), **given)


def new_model(name: str, **overrides: Any) -> PreTrainedModel:
    """A small float32 model in eval mode, with the same weights at every call."""
    config = config_of(name, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = auto_class_of(config).from_config(config).float().eval()
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "conv" not in key and "A_log" not in key:
                gain = 1.4 if any(part in key for part in PEAKED) else 1.0
                random = torch.randn(parameter.shape, generator=stream)
                parameter.copy_(random * gain / parameter.shape[-1] ** 0.5)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = None
    return model


@cache
def model_of(name: str) -> PreTrainedModel:
    """`new_model`, made once per process; do not change it."""
    return new_model(name)


@cache
def pipeline_of(name: str) -> CompressingPipeline:
    """A pipeline over `model_of`, whose answers end at their limit."""
    pipeline = CompressingPipeline(model_of(name), byte_tokenizer())
    pipeline.eos_ids = []
    return pipeline
