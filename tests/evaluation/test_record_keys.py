"""Keys of records stay: a run into a folder that an earlier version filled finds there what is done.

The keys were recorded when records first had them. Where one changes, every folder of results is answered
again: add to a key only what older records cannot have. Only four were recorded anew, when the ratio that
stood beside a budget of the press's own and meant nothing was left out: per_layer with ratios, duo_attention
with a head ratio, simlayerkv and dms with a threshold.
"""

import datetime
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers.utils.chat_template_utils as clock
from omegaconf import OmegaConf

from benchmarks.base import Draw, Sample
from longpress.evaluation.choices import make_benchmark
from longpress.evaluation.config import composed, register, settings
from longpress.evaluation.options import RunOptions
from longpress.evaluation.record_builder import RecordBuilder
from longpress.models.configs import ModelConfig
from longpress.models.loading import find_model
from longpress.pipeline.prompt import Prompt
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.made_up_tokenizers import sentencepiece_bpe, several_in_front
from tests.support.running import save_tiny_model
from tests.support.thinking_templates import thinking_tokenizer

MODEL = SimpleNamespace(
    name="tiny", revision="abc", dtype="float32", tokenizer=byte_tokenizer(), named_ends=(1,)
)
SAMPLE = Sample(
    id="vt/0",
    task="vt",
    context="A text of some words. ",
    question="Which words?",
    references=("some", "words"),
    answer_prefix="They are",
    max_new_tokens=30,
    evidence=((2, 6),),
    stop=("\n",),
    min_new_tokens=1,
)
RECORDED = {
    "ratios": (
        [
            "press=[knorm,adakv,random]",
            "compression_ratio=[0.25,0.5]",
        ],
        [
            ("none", "compression_ratio", 0.0, "d04e2aa9da3a39e921bd2e8f6be498ab"),
            ("knorm", "compression_ratio", 0.25, "062cb88cfc6c8847ca3538b94446f234"),
            ("knorm", "compression_ratio", 0.5, "22c61714c2940ade89df321eb3ae1bf2"),
            ("adakv", "compression_ratio", 0.25, "ba7bf4beb9dc9bf816cd13b69eadce9c"),
            ("adakv", "compression_ratio", 0.5, "b180b0f9392dc4c8dfa528898c4722ba"),
            ("random", "compression_ratio", 0.25, "143699183e2034845d87dd3385821365"),
            ("random", "compression_ratio", 0.5, "5d21dddf8340f46bb50196f906701ffe"),
        ],
    ),
    "other budgets": (
        [
            "press=[snapkv,dms]",
            "budget_tokens=[64,100]",
            "compression_ratio=0.3",
        ],
        [
            ("none", "compression_ratio", 0.0, "d04e2aa9da3a39e921bd2e8f6be498ab"),
            ("snapkv", "compression_ratio", 0.3, "0697a916c2c8c5e7b3996924fd0f6a24"),
            ("snapkv", "budget_tokens", 64, "f8836d31b497435c0ae885af4b5aa3b5"),
            ("snapkv", "budget_tokens", 100, "fdd6436a089f3262eb8985cbf62a0f45"),
            ("dms", "compression_ratio", 0.3, "3699afcfe1591323cc0bebc5012670ad"),
            ("dms", "budget_tokens", 64, "9de165361d4fa7a82d74f53a43c13aec"),
            ("dms", "budget_tokens", 100, "89de83cb0c9cabc94a1fe4e1b823da42"),
        ],
    ),
    "thresholds": (
        [
            "press=knorm",
            "threshold=[-3,0.5]",
        ],
        [
            ("none", "compression_ratio", 0.0, "d04e2aa9da3a39e921bd2e8f6be498ab"),
            ("knorm", "threshold", -3, "9e279f281d81327f2678e8b5ae5968c8"),
            ("knorm", "threshold", 0.5, "fca919503c172bb8c7538cf78a3069da"),
        ],
    ),
    "bits": (
        [
            "press=knorm",
            "cache_bits=[null,4]",
        ],
        [
            ("none", "compression_ratio", 0.0, "d04e2aa9da3a39e921bd2e8f6be498ab"),
            ("none@4bit", "compression_ratio", 0.0, "8910678a1f275dc0523d8fb4659280cd"),
            ("knorm", "compression_ratio", 0.5, "22c61714c2940ade89df321eb3ae1bf2"),
            ("knorm@4bit", "compression_ratio", 0.5, "f6da632d1a8121bfde563ef759fb4d3a"),
        ],
    ),
    "query aware": (
        [
            "press=[streaming_llm,think]",
            "query_aware=true",
            "presses.streaming_llm.n_sink=2",
        ],
        [
            ("none", "compression_ratio", 0.0, "a339663da9913a366b2910a80b5f8591"),
            ("streaming_llm", "compression_ratio", 0.5, "835c921f3c5a69f68c48288e251cd421"),
            ("think", "compression_ratio", 0.5, "5d6bafcfe1717ddd08c44b19df45efec"),
        ],
    ),
    "compressed while reading": (
        [
            "press=[knorm,pyramidkv]",
            "compress_every=500",
            "presses.pyramidkv.beta=10",
        ],
        [
            ("none", "compression_ratio", 0.0, "97a3293a544db40e020af4725016ad91"),
            ("knorm", "compression_ratio", 0.5, "6c86ad4f692a21548f71086ce8c35986"),
            ("pyramidkv", "compression_ratio", 0.5, "38039e25c0f508208ab575ad84f6de03"),
        ],
    ),
    "nested": (
        [
            "press=[adakv,per_layer,composed]",
            "presses.adakv.press={name:snapkv,window_size:16}",
            "presses.per_layer.compression_ratios=[0,0.5,0.25]",
        ],
        [
            ("none", "compression_ratio", 0.0, "d04e2aa9da3a39e921bd2e8f6be498ab"),
            ("adakv", "compression_ratio", 0.5, "d085b4f0e14addc2bbfbeaade95b9d72"),
            ("per_layer", None, None, "a9c7d45791af0287b215a9e8ac2b60b1"),
            ("composed", "compression_ratio", 0.5, "3c2f8e3a2acc4f1f606380acd6588d1b"),
        ],
    ),
    "fixed budget": (
        [
            "press=[duo_attention,decoding,simlayerkv,dms,think,prefill_decoding,ratio_decoding,per_layer]",
            "presses.duo_attention.head_compression_ratio=0.4",
            "presses.simlayerkv.lazy_threshold=0.9",
            "presses.dms.threshold=-4",
            "presses.think.key_channel_compression_ratio=0.3",
            "presses.per_layer.compression_ratios=[0,0.5,0.3]",
            "seed=7",
            "compression_ratio=0.25",
        ],
        [
            ("none", "compression_ratio", 0.0, "d04e2aa9da3a39e921bd2e8f6be498ab"),
            ("duo_attention", None, None, "9ba59568def48ba96dfc84d54ef476cd"),
            ("decoding", None, None, "255dda0dc0c9d877d7cb6c36be4439c3"),
            ("simlayerkv", None, None, "1ed6716bdbb2e819c9a3e29e90c35a74"),
            ("dms", None, None, "4e8fb5807e7192dc4a57aabd30a5df0a"),
            ("think", "compression_ratio", 0.25, "92092751426355655c065a6262e71941"),
            ("prefill_decoding", "compression_ratio", 0.25, "2eee80abf6d942eb787283205e6cecaa"),
            ("ratio_decoding", "compression_ratio", 0.25, "b2ba4ec5479c4d42e0751e0db2ead0be"),
            ("per_layer", None, None, "5eb61113543fa78511d5b4541f3433a1"),
        ],
    ),
    "other benchmark": (
        [
            "press=kvzip_plus",
            "benchmark=niah",
            "limit=3",
            "prefill_chunk=100",
            "max_batch_gb=1",
            "offload=never",
            "kept_maps=0",
        ],
        [
            ("none", "compression_ratio", 0.0, "d7eade9f63ee2910141af9d31193cea9"),
            ("kvzip_plus", "compression_ratio", 0.5, "8923ef7016af646c8e9d8c8e197f2c4a"),
        ],
    ),
}
"""Per sweep its overrides, and for each line of its table the label, the budget and the key."""


@pytest.mark.parametrize("name", RECORDED)
def test_keys_are_those_of_earlier_versions(name: str) -> None:
    overrides, lines = RECORDED[name]
    register()
    run = settings(composed(overrides))
    keys = RecordBuilder(run, MODEL).keys(SAMPLE)
    budgets = [next(iter(line.variant.budget.named().items()), (None, None)) for line in run.variants]
    found = [
        (line.label, *budget, key) for line, budget, key in zip(run.variants, budgets, keys, strict=True)
    ]
    assert found == lines


THINKS = SimpleNamespace(**{**vars(MODEL), "tokenizer": thinking_tokenizer("qwen")})


def keys_of(*overrides: str, sample: Sample = SAMPLE) -> list[str]:
    """Of the full cache and one press, on a model that can think."""
    register()
    run = settings(composed(["press=knorm", *overrides]))
    return RecordBuilder(run, THINKS).keys(sample)


GENERATION = {
    "greedy": [],
    "temperature": ["temperature=0.6"],
    "another temperature": ["temperature=1"],
    "top_p": ["temperature=0.6", "top_p=0.95"],
    "top_k": ["temperature=0.6", "top_k=20"],
    "min_p": ["temperature=0.6", "min_p=0.05"],
    "thinking": ["thinking=on"],
    "thinking, drawn": ["thinking=on", "temperature=0.6"],
    "limit of the thought": ["thinking=on", "max_thinking_tokens=100"],
    "another limit": ["thinking=on", "max_thinking_tokens=200"],
    "limit of the answer": ["max_new_tokens=16"],
    "system prompt": ["system_prompt='Be brief.'"],
}
"""Runs whose answers differ."""


def test_what_changes_how_an_answer_is_generated_changes_its_key() -> None:
    keys = [key for overrides in GENERATION.values() for key in keys_of(*overrides)]
    assert len(set(keys)) == len(keys)


def test_every_drawn_answer_has_a_key_of_its_own() -> None:
    drawn = [replace(SAMPLE, draw=Draw(seed, number)) for seed in (0, 1) for number in (0, 1)]
    keys = [key for sample in drawn for key in keys_of("temperature=0.6", sample=sample)]
    assert len(set(keys)) == len(keys)


def test_what_changes_no_answer_changes_no_key() -> None:
    assert keys_of("temperature=0", "top_p=0.9", "top_k=5", "min_p=0.1") == keys_of()
    drawn = replace(SAMPLE, draw=Draw(3, 0))
    assert keys_of("temperature=1", "samples_per_question=8", sample=drawn) == keys_of(
        "temperature=1.0", "sampling_seed=[3,4]", "top_p=1", sample=drawn
    )


def test_keys_tell_everything_apart_that_changes_an_answer() -> None:
    keys = [key for _, lines in RECORDED.values() for *_, key in lines]
    baselines = RECORDED["ratios"][1][0][-1]
    again = [key for key in keys if keys.count(key) > 1]
    # the full cache, and knorm at half, stand in more than one of these sweeps
    assert set(again) == {baselines, RECORDED["ratios"][1][2][-1]}


# Each field in turn.

DATED = (
    "{{ strftime_now('%d %b %Y') }}{% set system = messages[0].role == 'system' %}"
    "{{ messages[0].content if system else '' }}<user>{{ messages[1 if system else 0].content }}<assistant>"
    "{% if enable_thinking %}{# </think> #}+{% endif %}"
)
ALTERED: dict[str, dict[str, Any]] = {
    "compression_ratio": {"compression_ratio": 0.3},
    "budget_tokens": {"budget_tokens": 50},
    "threshold": {"threshold": 0.5},
    "cache_bits": {"cache_bits": 4},
    "query_aware": {"query_aware": True},
    "compress_every": {"compress_every": 100},
    "date": {"date": "2025-01-09"},
    "end_tokens": {"end_tokens": ["<assistant>"]},
    "seed": {"seed": 7},
    "temperature": {"temperature": 0.7},
    "top_p": {"temperature": 0.7, "top_p": 0.9},
    "top_k": {"temperature": 0.7, "top_k": 9},
    "min_p": {"temperature": 0.7, "min_p": 0.1},
    "thinking": {"thinking": "on"},
    "max_thinking_tokens": {"thinking": "on", "max_thinking_tokens": 9},
    "max_new_tokens": {"max_new_tokens": 9},
    "system_prompt": {"system_prompt": "Hello"},
}
"""Options of a run that change answers, with values that change them."""
DRAWN = {"samples_per_question", "sampling_seed"}
"""Options of a run that say how many answers are drawn; which of them a sample is, is in its `draw`."""
NEUTRAL: dict[str, Any] = {
    "baseline": False,
    "limit": 3,
    "results": "elsewhere",
    "kept_maps": 0,
    "plots": False,
    "plan": True,
    "workers": 2,
    "shard": {"count": 2, "index": 1},
    "presses_dir": None,
    "prefill_chunk": 100,
    "max_batch_gb": 1,
    "max_context_gb": 1,
    "offload": "never",
    "fidelity": True,
}
"""Options of a run that change no answer, and another value of each."""
SAMPLE_FIELDS = {
    "id": "vt/1",
    "task": "cwe",
    "context": "Another text. ",
    "question": "Who?",
    "references": ("others",),
    "answer_prefix": "It is",
    "max_new_tokens": 31,
    "chat_template": False,
    "stop": ("\n\n",),
    "min_new_tokens": 2,
    "draw": Draw(1, 2),
}
"""Fields of a sample that change answers or their scores, and another value of each."""


def model(template: str = DATED, **others: Any) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return SimpleNamespace(**{**vars(MODEL), "tokenizer": tokenizer, **others})


@cache
def composed_once() -> Any:
    register()
    return OmegaConf.to_container(composed(["press=random"]), resolve=False)


def key(values: Mapping[str, Any] | None = None, of_model: Any = None, sample: Sample = SAMPLE) -> str:
    """The key of the last line of the table, under other values of options."""
    run = settings(OmegaConf.create({**composed_once(), **(values or {})}))
    return RecordBuilder(run, of_model or model()).keys(sample)[-1]


def test_every_option_of_a_run_either_changes_keys_or_no_answer() -> None:
    assert {field.name for field in fields(RunOptions)} == {*ALTERED, *DRAWN, *NEUTRAL}
    usual = key()
    assert [name for name, value in NEUTRAL.items() if key({name: value}) != usual] == []
    altered = [key(values) for values in ALTERED.values()]
    assert len({usual, *altered}) == 1 + len(ALTERED)


def test_every_field_of_a_sample_that_changes_an_answer_or_a_score_is_in_the_key() -> None:
    altered = [key(sample=replace(SAMPLE, **{name: value})) for name, value in SAMPLE_FIELDS.items()]
    assert len({key(), *altered}) == 1 + len(SAMPLE_FIELDS)
    untold = {field.name for field in fields(Sample)} - set(SAMPLE_FIELDS)
    assert untold == {"evidence", "truncated", "weight", "metadata"}


def test_every_option_of_a_model_that_changes_an_answer_is_in_the_key(tmp_path: Path) -> None:
    """The window changes samples alone, which are in the key themselves; devices and kernels only round."""
    where = {"path", "gguf_file", "revision", "quantization"}  # the checkpoint, whose hash and form are in
    neutral = {"device", "device_map", "attention_implementation", "window", "trust_remote_code"}
    altered: dict[str, Any] = {
        "name": "another",
        "dtype": "bfloat16",
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
        "chat_template": "off",
    }
    assert {field.name for field in fields(ModelConfig)} <= {*where, *neutral, *altered}

    folder = save_tiny_model(tmp_path / "model")
    usual = key(of_model=find_model(ModelConfig(path=str(folder))))
    keys = [
        key(of_model=find_model(ModelConfig(path=str(folder), **{name: altered[name]}))) for name in altered
    ]
    generation = folder / "generation_config.json"
    generation.write_text(generation.read_text().replace('"eos_token_id": 1', '"eos_token_id": [1, 3]'))
    keys.append(key(of_model=find_model(ModelConfig(path=str(folder)))))
    assert len({usual, *keys}) == 1 + len(keys)


def test_every_option_of_a_generated_benchmark_that_changes_a_prompt_changes_the_key() -> None:
    def of_benchmark(name: str, **options: Any) -> str:
        benchmark = make_benchmark({"name": name, **options})
        return key(sample=next(benchmark.samples(byte_tokenizer(), 10**5, 1)))

    ruler = [{}, {"length": 1500}, {"seed": 7}, {"haystack": "walden", "tasks": ["niah_single_2"]}]
    ruler += [{"template_tokens": 200}, {"tasks": ["vt"]}]
    found = [of_benchmark("ruler", **{"tasks": ["niah_single_1"], "length": 1200, **one}) for one in ruler]
    assert len(set(found)) == len(ruler)
    niah = [{}, {"tasks": ["2000"]}, {"depths": 1}, {"chat_template": True}, {"template_tokens": 100}]
    found = [of_benchmark("niah", **{"tasks": ["1000"], "haystack": "walden", **one}) for one in niah]
    assert len(set(found)) == len(niah)


def test_what_stands_around_a_prompt_is_in_the_key_where_it_is_not_what_it_was() -> None:
    """A template without a date gives the first keys; on two days a date gives the same."""
    plain = DATED.replace("{{ strftime_now('%d %b %Y') }}", "")
    usual = key(of_model=model(plain))
    assert usual == key(of_model=MODEL) == key({"date": "2025-01-09"}, of_model=model(plain))
    stripped = model(plain.replace("content", "content | trim"))
    assert key(of_model=stripped) == usual  # there is nothing to strip
    spaced = replace(SAMPLE, context=" A text.")
    assert key(of_model=stripped, sample=spaced) != key(of_model=model(plain), sample=spaced)
    several, marked = several_in_front(), sentencepiece_bpe()
    of_models = [
        model(),
        model(DATED.replace("%b", "%m")),
        model(f"A system prompt, on day {DATED}"),
        model(plain.replace("content", "content[0].text")),
        *(model(tokenizer=tokenizer) for tokenizer in (several, marked)),
        model(
            plain.replace(
                "<assistant>",
                "{{ messages[1].content ~ '<pad>' if messages | length == 2 else '<assistant>' }}",
            )
        ),
        *(model(plain, **{name: "other"}) for name in ("name", "revision", "dtype")),
    ]
    bare = replace(SAMPLE, chat_template=False)
    keys = [key(of_model=one) for one in of_models]
    keys += [key(of_model=model(tokenizer=one), sample=bare) for one in (several, marked)]
    assert len({usual, *keys}) == 1 + len(keys)


def test_a_template_with_a_date_gives_the_same_prompts_on_two_days(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(day: int) -> tuple[str, str]:
        class Fixed(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> "Fixed":
                return cls(2026, 1, day)

        monkeypatch.setattr(clock, "datetime", Fixed)
        return key(), Prompt(model().tokenizer).before

    assert on(1) == on(2)
    described = RecordBuilder(settings(OmegaConf.create(composed_once())), model()).described([SAMPLE])
    assert described["chat"]["before"] == "26 Jul 2024<user>" and described["date"] == "2024-07-26"
    assert described["end_tokens"] == ["<eos>"]
