"""What a model caches is found from its structure; what is not supported says why, before any work."""

import pytest
import torch

from kvcache.architecture import check_model, check_structure
from kvcache.layer_state import state_bytes_of, states_of
from kvcache.modules import attention_modules, cached_by_layers, has_state, windows_of
from longpress.models.loading import auto_class_of
from tests.support.families import config_of, model_of


def skeleton_of(name: str) -> torch.nn.Module:
    config = config_of(name)
    with torch.device("meta"):
        return auto_class_of(config).from_config(config, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "entries", "state"),
    [
        ("gemma3", [0, 1, 2], []),
        ("qwen3_next", [2, 4], [0, 1, 3]),
        ("lfm2", [1, 3], [0, 2]),
        ("nemotron_h", [2, 5], [0, 3]),
        ("falcon_h1_multiplier", [0, 1, 2], [0, 1, 2]),
    ],
)
def test_what_layers_cache_is_found_from_the_structure(name, entries, state):
    model = skeleton_of(name)
    cached = cached_by_layers(model)
    assert [at for at, layer in enumerate(cached) if layer.entries] == entries
    assert [at for at, layer in enumerate(cached) if layer.state] == state
    assert [module.layer_idx for module in attention_modules(model)] == entries
    assert has_state(model) == bool(state)
    assert len(windows_of(model)) == len(cached)


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2_moe", "granitemoehybrid", "nemotron_h", "mistral3"])
def test_the_size_of_states_is_known_before_weights_are_loaded(name):
    model = model_of(name)
    measured = state_bytes_of(model)
    assert state_bytes_of(skeleton_of(name).float()) == measured
    assert (measured > 0) == has_state(model)


REFUSED = {
    "jamba": "several tokens behind a cached state otherwise than in one piece",
    "zamba2": "no layer with `self_attn`",
    "minimax": "MiniMax uses cache of its own",
    "longcat_flash": "2 decoder layers and a cache of 4",
    "deepseek_v32": "what an indexer picks",
    "glm_moe_dsa": "what an indexer picks",
    "llama4_text": "attends within chunks of the context",
}
"""Tiny configurations of families that are not supported, and part of the reason."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_says_why_before_work(name):
    with pytest.raises(ValueError, match=REFUSED[name]) as caught:
        check_model(model_of(name))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - {"jamba", "minimax"}))
def test_most_are_refused_by_their_structure_before_weights_are_loaded(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        check_structure(skeleton_of(name))


def test_states_are_copied():
    from transformers import DynamicCache

    model = model_of("lfm2")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model.model(input_ids=torch.arange(10)[None], cache=cache)
        before = states_of(cache)
        model.model(input_ids=torch.arange(10, 12)[None], cache=cache)
    after = states_of(cache)
    for one, other in zip(before, after, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert not all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)
