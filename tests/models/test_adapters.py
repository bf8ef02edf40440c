"""Folders of PEFT: an adapter is loaded with its model, or a sentence says how to merge it."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from longpress.models.configs import ModelConfig, check_model
from longpress.models.loading import find_model, load_model
from tests.support.tiny_models import save_tiny_llama

IDS = torch.arange(100, 140)[None]


@pytest.fixture(scope="module")
def base(smollm2, tmp_path_factory):
    """A tiny Llama on disk."""
    folder = tmp_path_factory.mktemp("base")
    save_tiny_llama(folder, smollm2.tokenizer, hidden_size=32, intermediate_size=64)
    return folder


def written(folder, base, weights=True, **fields):
    """A folder as `save_pretrained` of an adapter writes it."""
    folder.mkdir(exist_ok=True)
    config = {"base_model_name_or_path": str(base), "peft_type": "LORA", "revision": None} | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if weights:
        save_file({"base_model.model.a.lora_A.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    return ModelConfig(path=str(folder), device="cpu")


@pytest.mark.parametrize(
    ("fields", "weights", "words"),
    [
        ({"base_model_name_or_path": None}, True, "names no model.*merge_and_unload"),
        ({"peft_type": "PREFIX_TUNING"}, True, "PREFIX_TUNING, which adds entries to the cache"),
        ({}, False, "has no adapter_model.safetensors"),
    ],
)
def test_what_cannot_be_used_is_refused(fields, weights, words, base, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        check_model(written(tmp_path / "adapter", base, weights, **fields))
    assert "\n" not in str(caught.value)


def test_without_peft_the_sentence_says_what_to_install_and_how_to_merge(base, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    with pytest.raises(ValueError, match=r"pip install 'longpress\[peft\]'`, or merge it"):
        check_model(written(tmp_path / "adapter", base))


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_answers_are_those_of_the_adapted_model(options, base, tmp_path):
    from peft import LoraConfig, get_peft_model

    plain = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    targets = ["q_proj", "o_proj", "down_proj"]
    adapted = get_peft_model(plain, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **options))
    torch.manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.05
    adapted.save_pretrained(tmp_path / "adapter")
    config = ModelConfig(path=str(tmp_path / "adapter"), device="cpu", dtype="float32")
    read = load_model(config)
    with torch.no_grad():
        expected, unchanged = adapted.eval()(IDS).logits, load_model(str(base)).model(IDS).logits
        found = read.model(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - unchanged).abs().max() > 0.01
    assert type(read.model) is LlamaForCausalLM and read.name == str(tmp_path / "adapter")

    # Another adapter has another name in records; parts that fit no module are refused.
    before = find_model(config).revision
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    first = next(name for name in weights if "lora_A" in name)
    save_file(weights | {first: weights[first] + 1}, tmp_path / "adapter" / "adapter_model.safetensors")
    assert find_model(config).revision != before
    del weights[first]
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        load_model(config)
