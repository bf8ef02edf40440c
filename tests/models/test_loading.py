"""Loading models: the embedded one, and tiny random ones from a folder."""

import importlib.util
import shutil
import string

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
)

from longpress.models.loading import ModelConfig, eos_token_ids, fingerprint, load_model, rescale
from tests.support.families import new_model

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TINY = {
    "vocab_size": 49152,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
IDS = torch.arange(100, 140)[None]


@pytest.fixture(scope="module")
def llama(smollm2, tmp_path_factory):
    """Folder of a tiny random Llama in bfloat16 with two end-of-sequence tokens."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(**TINY, num_hidden_layers=2, max_position_embeddings=512, eos_token_id=[7, 8])
    ).bfloat16()
    model.save_pretrained(folder)
    smollm2.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


def loaded(folder, **options):
    return load_model(ModelConfig(path=str(folder), device="cpu", **options))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_embedded_model(smollm2):
    assert (smollm2.name, smollm2.revision, smollm2.dtype, smollm2.device.type, smollm2.window) == (
        "smollm2",
        SHA256,
        "float32",
        "cpu",
        8192,
    )
    assert (
        eos_token_ids(smollm2.model, smollm2.tokenizer)
        == [smollm2.tokenizer.convert_tokens_to_ids("<|im_end|>")]
        == [2]
    )
    assert (
        smollm2.model.generation_config.eos_token_id == 2
        and smollm2.model.generation_config.pad_token_id == 2
    )
    config = smollm2.model.config
    assert (
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    ) == (30, 9, 3, 64)
    assert config.tie_word_embeddings and not smollm2.model.training
    assert {parameter.dtype for parameter in smollm2.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embed_tokens", -243.12530808856468),
        ("layers.0.self_attn.q_proj", 68.72161001621502),
        ("layers.7.self_attn.k_proj", -49.37278469741288),
        ("layers.29.mlp.down_proj", 102.23934326954898),
    ],
)
def test_embedded_weights_are_those_that_transformers_reads(smollm2, name, value):
    weight = smollm2.model.state_dict()[f"model.{name}.weight"].double()
    rows = torch.arange(1, weight.shape[0] + 1, dtype=torch.float64).cos()
    columns = torch.arange(1, weight.shape[1] + 1, dtype=torch.float64).sin()
    assert (rows @ weight @ columns).item() == pytest.approx(
        value, abs=1e-4
    )  # golden: from_pretrained(…, gguf_file=…)


def test_embedded_model_answers(smollm2):
    messages = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    prompt = smollm2.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = smollm2.model.generate(**prompt, do_sample=False, max_new_tokens=12)[
        0, prompt["input_ids"].shape[1] :
    ]
    assert "Paris" in smollm2.tokenizer.decode(written) and written[-1] == 2


def test_folder(llama):
    tiny = loaded(llama, name="tiny")
    assert (tiny.name, tiny.dtype, tiny.window) == ("tiny", "bfloat16", 512)
    assert tiny.revision == fingerprint(llama)
    assert eos_token_ids(tiny.model, tiny.tokenizer) == [2, 7, 8]
    assert not tiny.model.training
    assert load_model(str(llama)).name == str(llama)


def test_dtype_and_window(llama):
    tiny = loaded(llama, dtype="float32", window=99)
    assert (tiny.dtype, tiny.window) == ("float32", 99)
    assert {parameter.dtype for parameter in tiny.model.parameters()} == {torch.float32}


def test_attention_implementation(llama):
    eager, default = (
        loaded(llama, dtype="float32", attention_implementation="eager"),
        loaded(llama, dtype="float32"),
    )
    assert eager.model.config._attn_implementation == "eager"
    torch.testing.assert_close(logits(eager.model), logits(default.model))
    with pytest.raises(ValueError, match=r"cannot be loaded: .*nonsense"):
        loaded(llama, attention_implementation="nonsense")


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_rope_scaling_moves_the_window(llama, kind):
    plain, scaled = (
        loaded(llama, dtype="float32"),
        loaded(llama, dtype="float32", rope_scaling={"rope_type": kind, "factor": 4.0}),
    )
    assert scaled.window == 2048
    assert scaled.model.config.rope_parameters["rope_type"] == kind
    assert scaled.revision.startswith(f"{plain.revision}+rope-")
    assert ("+rope-by-prompt" in scaled.revision) == (kind == "dynamic")
    same = torch.equal(logits(plain.model), logits(scaled.model))
    assert same == (kind == "dynamic")  # dynamic changes nothing up to the trained length


def test_rope_scaling_of_the_embedded_model():
    scaled = load_model(
        ModelConfig(
            dtype="bfloat16",
            device="cpu",
            rope_scaling={"rope_type": "yarn", "factor": 2.0},
            chat_template="off",
        )
    )
    assert (scaled.window, scaled.dtype, scaled.tokenizer.chat_template) == (16384, "bfloat16", None)
    assert scaled.revision.startswith(f"{SHA256}+rope-") and scaled.revision.endswith("+no-template")


def test_window_is_the_trained_length_times_the_factor():
    long = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    phi3 = Phi3Config(
        **{key: value for key, value in TINY.items() if key != "head_dim"},
        pad_token_id=0,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_parameters={**long, "factor": 32.0},
    )
    assert rescale(phi3, None) == 131072
    assert rescale(phi3, {"rope_type": "yarn", "factor": 4.0}) == 16384
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        **TINY, max_position_embeddings=131072, rope_parameters={**llama3, "rope_theta": 5e5}
    )
    assert (
        rescale(config, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768})
        == 131072
    )
    assert config.rope_parameters["rope_theta"] == 5e5 and "low_freq_factor" not in config.rope_parameters


def test_chat_template_choices(copy):
    assert loaded(copy).tokenizer.chat_template and loaded(copy, chat_template="on").tokenizer.chat_template
    assert loaded(copy, chat_template=False).tokenizer.chat_template is None
    (copy / "chat_template.jinja").unlink()
    assert loaded(copy).tokenizer.chat_template is None
    with pytest.raises(ValueError, match="has no chat template"):
        loaded(copy, chat_template="on")


def test_fingerprint_sees_weights_names_and_config_but_not_times(llama, copy):
    assert fingerprint(copy) == fingerprint(llama)
    (copy / "README.md").write_text("not read")
    (copy / "model.safetensors").touch()
    assert fingerprint(copy) == fingerprint(llama)
    seen = {fingerprint(llama)}
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    seen.add(fingerprint(copy))
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("512", "513"))
    seen.add(fingerprint(copy))
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    assert len(seen | {fingerprint(copy)}) == 4


@pytest.mark.parametrize("other", [None, torch.ones(5)])
def test_weights_that_lack_something_are_refused(copy, other):
    weights = load_file(copy / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(
        weights | ({} if other is None else {"model.norm.weight": other}),
        copy / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"lacks 1 weights of its architecture, e\.g\. model\.norm\.weight"):
        loaded(copy)


def test_no_weights_at_all(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded: .*model\.safetensors") as caught:
        loaded(copy)
    assert isinstance(caught.value.__cause__, OSError)


def test_no_tokenizer(copy):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (copy / name).unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer files|cannot be loaded: .*tokenizer"):
        loaded(copy)


def test_device_map(llama):
    if importlib.util.find_spec("accelerate"):
        assert loaded(llama, device_map={"": "cpu"}).device.type == "cpu"
    else:
        with pytest.raises(ValueError, match="needs the package accelerate"):
            loaded(llama, device_map="auto")


def test_gguf_file_with_an_untied_head(tmp_path):
    """Written as llama.cpp's converter writes a Llama: rotary pairs side by side, weights in two formats."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **TINY | {"vocab_size": 64}, num_hidden_layers=2, max_position_embeddings=256, rms_norm_eps=2**-17
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(2**-17)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*string.ascii_letters, *string.digits, "ab", "<|end|>"])
    writer.add_token_types([1] * 63 + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(63)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = weight.reshape(-1, 2, 4, 32).transpose(1, 2).reshape(-1, 32)
        writer.add_tensor(
            names.get_name(name, (".weight",)),
            weight.numpy().astype(np.float32 if weight.ndim == 1 else np.float16),
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for where in ({"path": str(tmp_path / "tiny.gguf")}, {"path": str(tmp_path), "gguf_file": "tiny.gguf"}):
        read = load_model(ModelConfig(**where, device="cpu"))
        assert (read.dtype, read.window, eos_token_ids(read.model, read.tokenizer)) == ("float32", 256, [63])
        ids = torch.arange(50)[None]
        with torch.no_grad():
            assert torch.equal(read.model(ids).logits, model(ids).logits)


def test_gemma3_with_vision_reads_text(smollm2, tmp_path):
    text = {**TINY, "num_hidden_layers": 6, "sliding_window": 8, "max_position_embeddings": 1024}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    ).eval()
    model.save_pretrained(tmp_path)
    smollm2.tokenizer.save_pretrained(tmp_path)
    gemma = loaded(tmp_path)
    assert gemma.window == 1024
    assert torch.equal(logits(gemma.model), logits(model))
    scaled = loaded(tmp_path, rope_scaling={"rope_type": "linear", "factor": 8.0})
    parameters = scaled.model.config.get_text_config().rope_parameters
    assert (
        scaled.window,
        parameters["full_attention"]["factor"],
        parameters["sliding_attention"]["rope_type"],
    ) == (8192, 8.0, "default")
    assert not torch.equal(logits(scaled.model), logits(model))
    written = gemma.model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False)
    assert written.shape == (1, 43)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "mistral3"])
def test_a_multimodal_checkpoint_without_a_class_for_text_reads_text(name, smollm2, tmp_path):
    model = new_model(name)
    model.save_pretrained(tmp_path)
    smollm2.tokenizer.save_pretrained(tmp_path)
    read = loaded(tmp_path)
    assert type(read.model) is type(model)
    assert read.window == 4096
    ids = IDS % 300
    with torch.no_grad():
        assert torch.equal(read.model(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [("t5", "t5 is an encoder-decoder"), ("vit", "no model of type vit that writes text")],
)
def test_what_writes_no_text_is_refused_before_weights_are_read(kind, sentence, smollm2, tmp_path):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    smollm2.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        loaded(tmp_path)
