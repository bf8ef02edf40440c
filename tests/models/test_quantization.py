"""Weights in few bits: refused before work where something is missing, else as on the dequantised model."""

import importlib.util

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from kvcache.budget import Budget
from kvcache.compress import Target
from kvcache.linear import is_plain, weight_of
from longpress.models import quantization
from longpress.models.configs import ModelConfig, check_model
from longpress.models.loading import find_model, load_model
from longpress.models.quantization import QUANTIZERS
from presses import CriticalKVPress, KnormPress, KVgradPress, KVzipPress
from tests.support.prefilled_contexts import read_context
from tests.support.tiny_models import save_tiny_llama

PRESSES = [CriticalKVPress(KnormPress()), KVzipPress(kvzip_plus_normalization=True), KVgradPress()]


@pytest.fixture(scope="module")
def folder(smollm2, tmp_path_factory):
    """A tiny Llama on disk, its sizes multiples of what quantizers group."""
    folder = tmp_path_factory.mktemp("llama")
    save_tiny_llama(folder, smollm2.tokenizer, hidden_size=128, intermediate_size=256, head_dim=32)
    return folder


def dequantised(model, folder):
    """The model of a folder with what each projection of a quantised model multiplies by."""
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    modules = dict(plain.named_modules())
    for name, module in model.named_modules():
        linear = modules.get(name)
        if isinstance(linear, nn.Linear) and not is_plain(module):
            linear.weight.data = weight_of(module, linear.in_features, linear.weight).clone()
    return plain


def test_unknown_values_and_missing_packages_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="quantization=int3 is unknown; use one of bitsandbytes-4bit"):
        check_model(ModelConfig(quantization="int3"))
    monkeypatch.setattr(quantization, "_is_installed", lambda module: False)
    for name in QUANTIZERS:
        extra = name.split("-")[0]
        with pytest.raises(ValueError, match=rf"needs the package .*pip install 'longpress\[{extra}\]'"):
            check_model(ModelConfig(quantization=name))


def test_what_is_packed_already_is_refused(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(quantization, "_is_installed", lambda module: True)
    with pytest.raises(ValueError, match="smollm2 is a GGUF file, whose numbers are packed already"):
        check_model(ModelConfig(quantization="bitsandbytes-4bit"))
    packed = {"quant_method": "gptq", "bits": 4}
    LlamaConfig(num_hidden_layers=1, quantization_config=packed).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"are packed already \(gptq\)"):
        check_model(ModelConfig(path=str(tmp_path), quantization="bitsandbytes-8bit"))


def test_the_way_is_part_of_what_a_record_names(monkeypatch, folder):
    monkeypatch.setattr(quantization, "_is_installed", lambda module: True)
    revisions = {
        find_model(ModelConfig(path=str(folder), quantization=name)).revision for name in [None, *QUANTIZERS]
    }
    assert len(revisions) == 1 + len(QUANTIZERS)


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUANTIZERS)
def test_presses_keep_what_they_keep_of_the_dequantised_model(name, folder):
    read = load_model(ModelConfig(path=str(folder), quantization=name, dtype="float32", device="cpu"))
    assert (read.dtype, read.device.type) == ("float32", "cpu")
    assert not any(
        is_plain(module.q_proj) for module in (layer.self_attn for layer in read.model.model.layers)
    )
    plain = dequantised(read.model, folder)
    ids = torch.randperm(40000, generator=torch.Generator().manual_seed(0))[None, :67]
    with torch.no_grad():
        expected = plain(ids).logits
        error = (read.model(ids).logits - expected).norm() / expected.norm()
    assert error < 0.02
    for press in PRESSES:
        target = Target(Budget(ratio=0.5))
        of_plain = read_context(plain, [press], ids=ids).compress(press, [target])[0]
        try:
            packed = read_context(read.model, [press], ids=ids).compress(press, [target])[0]
        except ValueError as refusal:  # of bitsandbytes on a CPU, whose kernel for 4 bits has none
            assert press.name == "kvgrad" and "gradients do not pass through" in str(refusal)
            continue
        if error > 1e-4:  # inputs are rounded too (LLM.int8), so scores differ a little
            assert packed.bytes == of_plain.bytes
            continue
        for mine, theirs in zip(packed.layers, of_plain.layers, strict=True):
            torch.testing.assert_close(mine.storage.keys, theirs.storage.keys, rtol=1e-3, atol=1e-3)


def test_every_extra_is_declared():
    import tomllib
    from pathlib import Path

    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = declared["project"]["optional-dependencies"]
    for name, quantizer in QUANTIZERS.items():
        listed = " ".join(extras[name.split("-")[0]])
        assert all(package in listed for package in quantizer.packages)
    assert importlib.util.find_spec("transformers")
