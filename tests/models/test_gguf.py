"""GGUF files: whatever a file states of its model is applied or refused, never passed over."""

import math

import pytest
import torch
from transformers import (
    AutoConfig,
    Gemma2Config,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from longpress.models.gguf_file import GGUFFile
from longpress.models.gguf_model import config_of, settle
from longpress.models.loading import ModelConfig, find_model, load_model
from tests.support.gguf_files import TOKENS, described, llama3_factors, write_gguf
from tests.support.tiny_models import fill

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
}
PLAIN = {"rope_type": "default", "rope_theta": 5e4}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 5e4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 5e4,
}
STATED_LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
STATED_YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
GEMMA3 = {
    "num_hidden_layers": 6,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}
CASES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"head_dim": 16, "rope_parameters": PLAIN}, {}),
    "llama tied, with biases": (
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_parameters": PLAIN, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {},
    ),
    "llama linear": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LINEAR}, STATED_LINEAR),
    "llama yarn": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": YARN}, STATED_YARN),
    "llama yarn, betas": (
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_parameters": {**YARN, "beta_fast": 16.0, "attention_factor": 0.5 * (0.1 * math.log(4) + 1)}},
        {**STATED_YARN, "rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.attn_factor": 0.5},
    ),
    "llama rope_freqs": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3, "head_dim": 16}, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"rope_parameters": PLAIN}, {}),
    "qwen2 yarn": (Qwen2Config, Qwen2ForCausalLM, {"rope_parameters": YARN}, STATED_YARN),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16, "rope_parameters": PLAIN}, {}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {**GEMMA3, "rope_parameters": {"full_attention": PLAIN, "sliding_attention": LOCAL}},
        {},
    ),
    "gemma3 linear": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {**GEMMA3, "rope_parameters": {"full_attention": LINEAR, "sliding_attention": LOCAL}},
        STATED_LINEAR,
    ),
}
"""Name -> classes of configuration and model, configuration, and what the file states of rotary scaling."""


def made(case, folder):
    """A model, and the file that was written of it."""
    config_class, model_class, options, scaling = CASES[case]
    architecture = case.split()[0]
    model = model_class(config_class(**SIZES | {"tie_word_embeddings": False} | options)).eval()
    fill(model)
    if model.config.tie_word_embeddings:
        model.tie_weights()
    tables = {"rope_freqs.weight": llama3_factors(model.config)} if "rope_freqs" in case else None
    stated = described(architecture, model.config) | scaling
    return model, write_gguf(folder / "model.gguf", architecture, model, stated, tables=tables)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_model_that_was_written(case, tmp_path):
    model, path = made(case, tmp_path)
    read = load_model(ModelConfig(path=str(path), device="cpu"))
    assert (read.window, read.dtype, read.named_ends) == (256, "float32", (63,))
    ids = torch.arange(200)[None] % 60
    with torch.no_grad():
        expected = model(ids).logits
        torch.testing.assert_close(read.model(ids).logits, expected, rtol=2e-4, atol=2e-4)


def test_the_table_of_a_llama_3_is_known_and_another_is_taken_as_it_is(tmp_path):
    """Llama 3.1 and 3.2 as they are, and a made-up table."""
    for factor in (8.0, 32.0):
        rope = LLAMA3 | {"factor": factor, "original_max_position_embeddings": 8192, "rope_theta": 5e5}
        config = LlamaConfig(**SIZES | {"head_dim": 128}, rope_parameters=rope)
        tables = {"token_embd.weight": [[0.0] * 32] * 64, "rope_freqs.weight": llama3_factors(config)}
        path = write_gguf(tmp_path / "a.gguf", "llama", None, described("llama", config), tables=tables)
        assert config_of(GGUFFile(path)).rope_parameters == rope
    tables["rope_freqs.weight"] = [1.0 + index for index in range(64)]
    path = write_gguf(tmp_path / "b.gguf", "llama", None, described("llama", config), tables=tables)
    read = config_of(GGUFFile(path)).rope_parameters
    assert (read["rope_type"], read["attention_factor"]) == ("longrope", 1.0)
    assert read["short_factor"] == read["long_factor"] == tables["rope_freqs.weight"]


@pytest.mark.parametrize(
    "stated",
    [
        {"rope.scaling.type": "su"},
        {"rope.scaling.yarn_log_multiplier": 0.1},
        {"rope.scaling.attn_factor": 2.0},
        {"rope.dimension_count": 4},
        {"attention.sliding_window": 16},
        {"attention.value_length": 4},
        {"attention.head_count_kv": [1, 2]},
        {"attention.scale": 0.5},
        {"final_logit_softcapping": 30.0},
        {"logit_scale": 0.5},
        {"vocab_size": 65},
        {"something.new": 1},
    ],
    ids=lambda stated: next(iter(stated)),
)
def test_what_cannot_be_applied_is_refused_before_work(stated, tmp_path):
    config = LlamaConfig(**SIZES, rope_parameters=PLAIN)
    table = {"token_embd.weight": [[0.0] * 32] * 64}
    path = write_gguf(
        tmp_path / "model.gguf", "llama", None, described("llama", config) | stated, tables=table
    )
    key = next(iter(stated))
    with pytest.raises(ValueError, match=rf"states llama\.{key}=.*cannot apply") as caught:
        find_model(ModelConfig(path=str(path), device="cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_no_stated_property_can_change_without_a_word(architecture, tmp_path):
    config_class, _, options, _ = CASES[architecture]
    config = config_class(**SIZES | options)
    table = {"token_embd.weight": [[0.0] * 32] * 64}
    stated = described(architecture, config) | {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    before = config_of(GGUFFile(write_gguf(tmp_path / "0.gguf", architecture, None, stated, tables=table)))
    for number, (key, value) in enumerate(stated.items(), 1):
        changed = "none" if isinstance(value, str) else value * 2
        path = write_gguf(
            tmp_path / f"{number}.gguf", architecture, None, {**stated, key: changed}, tables=table
        )
        try:
            after = config_of(GGUFFile(path))
        except ValueError as error:
            assert "which longpress cannot apply" in str(error)
        else:
            assert after.to_dict() != before.to_dict(), key


def test_windows_and_tables_that_change_nothing_are_taken(tmp_path):
    config = LlamaConfig(**SIZES, rope_parameters=PLAIN)
    stated = described("llama", config) | {
        "attention.sliding_window": 256,
        "expert_count": 0,
        "rope.scaling.type": "none",
        "attention.head_count_kv": [2, 2],
    }
    tables = {"token_embd.weight": [[0.0] * 32] * 64, "rope_freqs.weight": [1.0] * 4}
    read = config_of(GGUFFile(write_gguf(tmp_path / "model.gguf", "llama", None, stated, tables=tables)))
    assert read.rope_parameters["rope_type"] == "default" and read.num_key_value_heads == 2


def test_every_end_that_a_file_names_ends_an_answer(tmp_path):
    config = Qwen2Config(**SIZES, rope_parameters=PLAIN)
    tokenizer = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": TOKENS,
        "token_type": [1] * 61 + [3, 3, 3],
        "merges": ["a b"],
        "eos_token_id": 63,
        "eot_token_id": 62,
        "eom_token_id": 61,
    }
    stated = described("qwen2", config)
    path = write_gguf(tmp_path / "model.gguf", "qwen2", Qwen2ForCausalLM(config), stated, tokenizer)
    assert find_model(ModelConfig(path=str(path), device="cpu")).named_ends == (61, 62, 63)


PHI3 = {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [1.5 + i for i in range(8)],
        "rope_theta": 5e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.2,
    },
}


def phi3_file(folder, model=None):
    config = Phi3Config(**SIZES | PHI3)
    stated = described("phi3", config) | {
        "rope.scaling.original_context_length": 64,
        "rope.scaling.attn_factor": 1.2,
        "attention.sliding_window": 100,
    }
    tables = {
        f"rope_factors_{name}.weight": PHI3["rope_parameters"][f"{name}_factor"] for name in ("short", "long")
    }
    return write_gguf(folder / "model.gguf", "phi3", model, stated, tables=tables)


def test_what_transformers_leaves_out_of_a_phi3_is_settled(tmp_path):
    gguf = GGUFFile(phi3_file(tmp_path))
    config = AutoConfig.from_pretrained(tmp_path, gguf_file="model.gguf")
    settle(gguf, config)
    assert (config.sliding_window, config.original_max_position_embeddings) == (100, 64)
    expected = PHI3["rope_parameters"]
    assert {key: config.rope_parameters[key] for key in expected} == {
        key: pytest.approx(value) for key, value in expected.items()
    }
    assert config.eos_token_id == 63 and config.tie_word_embeddings  # there is no output.weight


@pytest.mark.extras
def test_a_family_that_transformers_reads(tmp_path):
    model = Phi3ForCausalLM(Phi3Config(**SIZES | PHI3 | {"sliding_window": 100})).eval()
    fill(model)
    read = load_model(ModelConfig(path=str(phi3_file(tmp_path, model)), device="cpu", dtype="float32"))
    ids = torch.arange(200)[None] % 60
    with torch.no_grad():
        torch.testing.assert_close(read.model(ids).logits, model(ids).logits, rtol=2e-4, atol=2e-4)


def test_soft_caps_of_a_gemma2_are_settled_and_strange_keys_refused(tmp_path):
    config = Gemma2Config(**SIZES, head_dim=16, sliding_window=24, final_logit_softcapping=7.0)
    stated = described("gemma2", config)
    gguf = GGUFFile(write_gguf(tmp_path / "model.gguf", "gemma2", None, stated))
    read = AutoConfig.from_pretrained(tmp_path, gguf_file="model.gguf")
    settle(gguf, read)
    assert (read.final_logit_softcapping, read.sliding_window) == (7.0, 24)
    assert read.rope_parameters["rope_theta"] == config.rope_parameters["rope_theta"]
    gguf = GGUFFile(write_gguf(tmp_path / "other.gguf", "gemma2", None, {**stated, "strange": 1}))
    with pytest.raises(ValueError, match=r"states gemma2\.strange=1"):
        settle(gguf, read)


def test_an_unknown_way_to_split_text_needs_the_tokenizer_files(smollm2, tmp_path):
    config = LlamaConfig(**SIZES, rope_parameters=PLAIN)
    tokenizer = {
        "model": "gpt2",
        "pre": "never-heard-of",
        "tokens": TOKENS,
        "token_type": [1] * 64,
        "merges": ["a b"],
    }
    model = LlamaForCausalLM(config)
    path = write_gguf(tmp_path / "model.gguf", "llama", model, described("llama", config), tokenizer)
    with pytest.raises(ValueError, match=r"states tokenizer\.ggml\.pre=never-heard-of.*beside it"):
        find_model(ModelConfig(path=str(path), device="cpu"))
    smollm2.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="are another model's"):
        find_model(ModelConfig(path=str(path), device="cpu"))


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "it's 123", ["it", "'s", "Ġ", "1", "2", "3"]),
        ("gpt-2", "it's 123", ["it", "'s", "Ġ123"]),
        ("llama-bpe", "IT'S 1234", ["IT", "'S", "Ġ", "123", "4"]),
        ("qwen2", "IT'S 1234", ["IT", "'S", "Ġ", "1", "2", "3", "4"]),
    ],
)
def test_text_is_split_as_the_file_says(pre, text, pieces):
    from longpress.models.gguf_tokenizer import gguf_tokenizer

    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["<s>", "a"],
        "tokenizer.ggml.token_type": [3, 1],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 0,
    }
    tokenizer = gguf_tokenizer(metadata)
    found = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [piece for piece, _ in found] == pieces
    assert tokenizer("a").input_ids == ([0, 1] if pre == "llama-bpe" else [1])
    assert gguf_tokenizer({**metadata, "tokenizer.ggml.add_bos_token": True})("a").input_ids == [0, 1]
    metadata |= {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.eos_token_id": 0}
    assert gguf_tokenizer({**metadata, "tokenizer.ggml.add_eos_token": True})("a").input_ids == [1, 0]


def test_sentencepiece_with_and_without_a_space_in_front():
    from longpress.models.gguf_tokenizer import gguf_tokenizer

    tokens = ["<unk>", "<s>", *(f"<0x{code:02X}>" for code in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 258 + [-9.0, -9.0, -9.0, -1.0, -2.0, -3.0],
        "tokenizer.ggml.token_type": [2, 3, *[6] * 256, *[1] * 6],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    tokenizer = gguf_tokenizer(metadata)
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab a").input_ids) == ["<s>", "▁ab", "▁a"]
    assert tokenizer.decode(tokenizer("ab é", add_special_tokens=False).input_ids) == "ab é"
    plain = gguf_tokenizer({**metadata, "tokenizer.ggml.add_space_prefix": False})
    assert plain.convert_ids_to_tokens(plain("ab a").input_ids) == ["<s>", "ab", "▁a"]
