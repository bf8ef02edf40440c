"""Models of many kinds: each gives what transformers gives, or is refused in one sentence before any work."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from kvcache import architecture
from kvcache.architecture import TESTED, TRIED, check_model
from kvcache.attention import attending
from kvcache.budget import Budget
from kvcache.hooks.prefill import observing
from kvcache.modules import cache_keyword
from kvcache.observation import LayerObservation
from kvcache.rope_frequencies import cache_of
from kvcache.rotary import NONE
from longpress import CompressingPipeline
from presses import (
    AdaKVPress,
    CriticalKVPress,
    ExpectedAttentionPress,
    KeyRerotationPress,
    KnormPress,
    KVzipPress,
    NonePress,
    SnapKVPress,
)
from presses.base import BasePress
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.padded_batches import contexts, forced_logits, logits_one_by_one, padded
from tests.support.rope_models import ROPES, rope_model
from tests.support.tiny_models import FAMILIES, fill, tiny_ids, tiny_model

KNOWN = sorted(kind for kind in TESTED if kind in CONFIG_MAPPING)
REST = [kind for kind in KNOWN if kind.removesuffix("_text") not in FAMILIES]
"""Those that the laws of presses and pipeline do not look at."""
CONTEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 2
QUESTIONS = ["Who jumps?", "Over what does the fox jump?"]
PRESSES: list[BasePress] = [
    KnormPress(),
    SnapKVPress(window_size=16),
    AdaKVPress(SnapKVPress(window_size=16)),
    ExpectedAttentionPress(),
    CriticalKVPress(KnormPress()),
    KVzipPress(),
    KeyRerotationPress(KnormPress()),
]
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "sliding_window": 48,
    "query_pre_attn_scalar": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
EVERY_LAYER_SLIDES = ("ministral", "mistral", "mixtral", "phi3", "starcoder2")
OWN: dict[str, dict[str, Any]] = {
    **{kind: {"sliding_window": 4096} for kind in EVERY_LAYER_SLIDES},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
}
"""What a type needs beside `SIZES`."""


def model_of(kind: str, **overrides: Any) -> PreTrainedModel:
    """A small model of a type of transformers; some layers may have a window shorter than the context."""
    wanted = SIZES | OWN.get(kind, {}) | overrides
    names = CONFIG_MAPPING[kind]().to_dict().keys()
    config = CONFIG_MAPPING[kind](
        **{name: value for name, value in wanted.items() if name in names or name in overrides}
    )
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="eager"
        )  # older sdpa forgets the caps of Gemma 2
    fill(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter += 3  # so that they matter
    return model.float().eval()


@cache
def pipeline_of(kind: str) -> CompressingPipeline:
    made = CompressingPipeline(model_of(kind), byte_tokenizer())
    made.eos_ids = []
    return made


def observed(model: PreTrainedModel, ids: torch.Tensor) -> tuple[list[LayerObservation], torch.Tensor]:
    layers: list[LayerObservation] = []
    config: Any = model.config
    with torch.no_grad(), attending(model), observing(model, lambda layer, _: layers.append(layer)):
        stored = DynamicCache(config=config.get_text_config())
        hidden = model.model(input_ids=ids, **{cache_keyword(model.model): stored}).last_hidden_state
    return layers, hidden


@pytest.mark.parametrize("kind", KNOWN)
def test_attention_queries_and_keys_are_those_of_transformers(kind: str) -> None:
    model = model_of(kind)
    ids = tiny_ids(90) % (VOCABULARY - 4) + 4
    layers, hidden = observed(model, ids)
    with torch.no_grad():
        torch.testing.assert_close(hidden, model.model(input_ids=ids).last_hidden_state, rtol=1e-4, atol=1e-4)
    assert layers
    for layer in layers:
        assert layer.attention_probe is not None and layer.attention_probe.queries is not None
        torch.testing.assert_close(layer.queries(2), layer.attention_probe.queries, rtol=1e-4, atol=1e-4)
        assert layer.scale == pytest.approx(layer.attention_probe.scaling)
        positions = torch.arange(90)
        torch.testing.assert_close(
            layer.rotary.turn(layer.keys_before_rope(), *layer.rotary.at(positions)),
            layer.keys,
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize("kind", REST)
def test_the_full_cache_answers_as_generate_and_a_second_question_as_a_first(kind: str) -> None:
    pipeline = pipeline_of(kind)
    prompt = pipeline._prompt(True)
    full = pipeline.sweep(CONTEXT, QUESTIONS, [(NonePress(), 0.0)], max_new_tokens=5)[0]
    for question, answer in zip(QUESTIONS, full, strict=True):
        ids = torch.tensor([prompt.context_ids(CONTEXT) + prompt.question_ids(question, "")])
        generated = pipeline.model.generate(
            ids, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        assert answer == prompt.decode(generated[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("kind", REST)
def test_a_sweep_answers_as_each_press_alone_or_says_why_not(kind: str) -> None:
    pipeline = pipeline_of(kind)
    variants = [(press, 0.5) for press in PRESSES]
    slides = any(
        layer_type == "sliding_attention"
        for layer_type in getattr(pipeline.model.config, "layer_types", None) or ()
    )
    if slides and kind not in EVERY_LAYER_SLIDES:
        rerotation = variants.pop()
        with pytest.raises(ValueError, match="sliding-window layers"):
            pipeline.sweep(CONTEXT, QUESTIONS, [rerotation])
    answers = pipeline.sweep(CONTEXT, QUESTIONS, variants, max_new_tokens=4)
    for (press, ratio), row in zip(variants, answers, strict=True):
        single = replace(press, compression_ratio=ratio)
        alone = pipeline(CONTEXT, questions=QUESTIONS, press=single, max_new_tokens=4)["answers"]
        assert row == alone, press.name


@pytest.mark.parametrize("kind", KNOWN)
def test_a_padded_batch_is_read_and_continued_as_its_rows_alone(kind: str) -> None:
    model = pipeline_of(kind).model
    rows, forced = contexts(most=VOCABULARY), tiny_ids(3, batch=3, seed=5) % (VOCABULARY - 4) + 4
    ids, mask = padded(rows)
    for press in (AdaKVPress(SnapKVPress(window_size=16), 0.5), NonePress()):
        together = forced_logits(model, press, ids, mask, forced)
        expected = logits_one_by_one(model, press, rows, forced)
        torch.testing.assert_close(together, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["cohere", "glm4", "smollm3", "gpt_oss", "llama"])
def test_keys_move_to_where_the_model_would_have_put_them(kind: str) -> None:
    model, ids = model_of(kind), tiny_ids(60) % (VOCABULARY - 4) + 4
    layers, _ = observed(model, ids)
    press = KeyRerotationPress(KnormPress(), 0.5)
    found = press.select([press.observe(layer) for layer in layers], Budget(ratio=0.5))
    layouts = set()
    for layer, selection in zip(layers, found, strict=True):
        keys, _ = press.apply(layer.keys, layer.values, selection)
        before = layer.keys_before_rope().gather(2, selection.positions[..., None].expand(-1, -1, -1, 16))
        expected = layer.rotary.turn(before, *layer.rotary.at(torch.arange(30)))
        torch.testing.assert_close(keys, expected, rtol=1e-4, atol=1e-4)
        layouts.add(layer.layout())
    assert (NONE in layouts) == (kind == "smollm3")


@pytest.mark.parametrize("kind", ["gpt_oss", "gemma2"])
def test_sinks_and_caps_count_for_scores_as_for_the_model(kind: str) -> None:
    model, ids = model_of(kind), tiny_ids(40) % (VOCABULARY - 4) + 4
    layers, _ = observed(model, ids)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model.model(input_ids=ids, output_attentions=True).attentions
    for layer in layers:
        torch.testing.assert_close(layer.window_attention(40), weights[layer.index], rtol=1e-3, atol=1e-5)
        assert (float(layer.window_attention(1).detach().sum(-1).max()) < 0.999) == (kind == "gpt_oss")


@pytest.mark.parametrize(
    ("kind", "overrides", "sentence"),
    [
        ("falcon", {}, "no decoder with `layers`"),
        ("gpt_neox", {}, "no layer with `self_attn`"),
        ("llama4_text", {}, "no decoder with `layers`|within chunks|chunked_attention"),
    ],
)
def test_others_are_refused_before_work(kind: str, overrides: dict[str, Any], sentence: str) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    model = model_of(kind, **overrides)
    for attempt in (
        lambda: CompressingPipeline(model, byte_tokenizer()),
        lambda: KnormPress(0.5)(model).__enter__(),
    ):
        with pytest.raises(ValueError, match=sentence) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def unknown(monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """A model of a type that our tests do not know."""
    monkeypatch.setattr(architecture, "TESTED", frozenset())
    return tiny_model("qwen3")


def test_a_model_of_an_unknown_type_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = unknown(monkeypatch)
    read: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    check_model(model)
    check_model(model)
    hook.remove()
    assert read[0] == TRIED
    assert len(read) == 8  # once by itself, then in our cache: two texts apart, and both together


def test_a_known_type_with_code_of_its_own_is_tried() -> None:
    model, read = tiny_model("llama"), []
    inner: Any = model.model
    own = {"__module__": "transformers_modules.somewhere"}
    inner.__class__ = type("OwnModel", (type(inner),), own)
    inner.register_forward_pre_hook(lambda module, args: read.append(args))
    check_model(model)
    assert read


@pytest.mark.parametrize("what", ["largest", "smallest", "first", "largest so far", "length of the cache"])
def test_a_model_in_which_a_row_depends_on_its_neighbours_is_refused(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    model, met = unknown(monkeypatch), [0]

    def scaled(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Queries and keys as of Llama 4, by one position for the whole batch."""
        positions, held = kwargs["position_ids"], cache_of(kwargs)
        met[0] = max(met[0], int(positions.max()))
        position = {
            "largest": int(positions.max()),
            "smallest": int(positions.min()),
            "first": int(positions[0, 0]),
            "largest so far": met[0],
            "length of the cache": 0 if held is None else int(held.get_seq_length(module.layer_idx)),
        }[what]
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] * (1 + math.log1p(position // 1000))}

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(scaled, with_kwargs=True)
    with pytest.raises(ValueError, match="answers would depend on their neighbours") as caught:
        check_model(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rope", ROPES)
def test_an_unknown_model_with_any_rotary_embedding_is_not_refused(
    monkeypatch: pytest.MonkeyPatch, rope: str
) -> None:
    monkeypatch.setattr(architecture, "TESTED", frozenset())
    check_model(rope_model("llama", rope))


def test_an_attention_that_is_more_than_we_compute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = unknown(monkeypatch)
    module = model.model.layers[1].self_attn
    before = module.forward

    def twice(*args: Any, **kwargs: Any) -> Any:
        output, weights = before(*args, **kwargs)
        return (output * 2 if model.config._attn_implementation != "longpress" else output), weights

    module.forward = twice
    with pytest.raises(
        ValueError, match=r"computes \d+\.\d% else with longpress's attention than with its own"
    ):
        check_model(model)


def test_an_attention_that_passes_an_unknown_tensor_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="passes bias of shape"), torch.no_grad(), KnormPress(0.5)(model):
        model.model(input_ids=tiny_ids(10), bias=torch.zeros(4))


def test_queries_that_are_not_those_of_the_model_are_refused() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(
            lambda module, args, output: (
                output * 2
                if model.config._attn_implementation == "longpress" and args[0].shape[1] > 2
                else output
            )
        )
    with pytest.raises(ValueError, match="cannot be recomputed"), torch.no_grad(), SnapKVPress(0.5)(model):
        model(tiny_ids(100))
