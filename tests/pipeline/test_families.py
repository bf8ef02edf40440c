"""The laws of the pipeline over families whose layers differ: one tiny model each, random weights.

The full cache answers as `generate`; only layers whose cache grows are compressed; an answer does not depend
on the rows beside it; reading in chunks is exact; a press by itself and in a sweep give the same.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from longpress import CompressingPipeline, Question, Request, Variant
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.results import Failure, Result
from presses import (
    AdaKVPress,
    ExpectedAttentionPress,
    KnormPress,
    KVzipPress,
    NonePress,
    SnapKVPress,
)
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.catalogue_presses import NAMES, busy_press_named, has_no_ratio, press_named
from tests.support.families import model_of, pipeline_of


class Family(NamedTuple):
    """A tiny configuration.

    Attributes:
        name: of its file.
        growing: layers that are compressed.
    """

    name: str
    growing: list[int]


FAMILIES = [
    Family("qwen2_5_vl", [0, 1, 2]),
    Family("qwen3_vl", [0, 1, 2]),
    Family("mistral3", [0, 1, 2]),
    Family("gemma3", [1, 2]),
    Family("gemma4_text_global_kv", [1, 3]),
    Family("gemma3n_text", [1, 3]),
    Family("gemma4_text", [1, 3]),
    Family("gemma4", [1, 3]),
    Family("deepseek_v2", [0, 1, 2]),
    Family("deepseek_v3", [0, 1, 2]),
    Family("glm4_moe_lite", [0, 1, 2]),
    Family("kimi_linear", [1]),
    Family("qwen3_next", [2, 4]),
    Family("qwen3_5_text", [2, 4]),
    Family("qwen3_5_moe_text", [2, 4]),
    Family("qwen3_5", [1, 3]),
    Family("lfm2", [1, 3]),
    Family("lfm2_moe", [1, 3]),
    Family("granitemoehybrid", [1, 3]),
    Family("granitemoehybrid_nope", [1, 3]),
    Family("olmo_hybrid", [1, 3]),
    Family("bamba", [1, 3]),
    Family("nemotron_h", [2, 5]),
    Family("falcon_h1_multiplier", [0, 1, 2]),
]
QUICK = ("qwen2_5_vl", "gemma4_text", "deepseek_v3", "qwen3_next", "falcon_h1_multiplier")
"""One of each kind; the laws on the others take minutes."""


def _marked(values: list[Any]) -> list[Any]:
    return [
        pytest.param(value, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, value in zip((family.name for family in FAMILIES), values, strict=True)
    ]


EACH = pytest.mark.parametrize("family", _marked(FAMILIES))
NAMED = pytest.mark.parametrize("name", _marked([family.name for family in FAMILIES]))

STATES = ["qwen3_next", "falcon_h1_multiplier", "nemotron_h"]
"""Some with states of fixed size: beside layers that grow, within them, among layers without a cache."""

CONTEXTS = (
    "The quick brown fox jumps over the lazy dog. " * 4,
    "Another text about a ship and its captain, who was old. " * 3,
)
QUESTIONS = [
    Question(" Who?", max_new_tokens=6),
    Question(" What was the name of it?", max_new_tokens=8),
    Question(" Where?", max_new_tokens=3),
]
PRESSES = (
    KnormPress(),
    SnapKVPress(window_size=16),
    ExpectedAttentionPress(),
    AdaKVPress(SnapKVPress(window_size=16)),
    KVzipPress(),
)
VARIANTS = [Variant(NonePress()), *(Variant(press, 0.5) for press in PRESSES)]


def results_of(
    pipeline: CompressingPipeline, contexts: Any, questions: Any, variants: Any, **options: Any
) -> list[Result]:
    requests = [Request(context, questions, variants, **options) for context in contexts]
    results: list[Result] = []
    for of_context in pipeline.stream(requests):
        for result in of_context:
            if result.error is not None:
                raise result.error
            assert not isinstance(result, Failure)
            results.append(result)
    return results


def tokens_of(results: list[Result]) -> list[list[int]]:
    return [result.answer.token_ids for result in results]


@EACH
def test_rows_answer_together_as_alone_and_the_full_cache_as_generate(family: Family) -> None:
    pipeline, prompt = pipeline_of(family.name), pipeline_of(family.name)._prompt(True)
    results = results_of(pipeline, CONTEXTS, QUESTIONS, VARIANTS)
    full = [result for result in results if result.variant.is_full]
    asked = [(context, question) for context in CONTEXTS for question in QUESTIONS]
    for (context, question), result in zip(asked, full, strict=True):
        ids = torch.tensor([prompt.context_ids(context) + prompt.question_ids(question.text, "")])
        with torch.no_grad():
            generated = pipeline.model.generate(
                ids,
                max_new_tokens=question.max_new_tokens,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        assert result.answer.token_ids == generated[0, ids.shape[1] :].tolist()

    # Only layers that grow are compressed, to half their bytes.
    for result in results:
        if result.variant.removes:
            assert result.context.observed == family.growing
            entries = result.context.entries()
            assert sum(map(sum, (entries[at] for at in family.growing))) == pytest.approx(
                0.5 * sum(len(entries[at]) for at in family.growing) * result.context.tokens, rel=0.02
            )

    # One row at a time, of the second context.
    alone = []
    for variant in VARIANTS:
        for question in QUESTIONS:
            alone += results_of(pipeline, CONTEXTS[1:], [question], [variant])
    assert tokens_of(alone) == tokens_of(results[len(results) // 2 :])


@NAMED
def test_a_context_read_in_chunks_is_the_same(name: str) -> None:
    whole = results_of(pipeline_of(name), CONTEXTS[:1], QUESTIONS[:1], VARIANTS, keep_caches=True)
    chunks = CompressingPipeline(model_of(name), byte_tokenizer(), options=PipelineOptions(prefill_chunk=64))
    for one, other in zip(
        whole, results_of(chunks, CONTEXTS[:1], QUESTIONS[:1], VARIANTS, keep_caches=True), strict=True
    ):
        assert one.context.entries() == other.context.entries()
        for kept, again in zip(one.context.layers, other.context.layers, strict=True):
            if kept is not None and one.variant.is_full:
                torch.testing.assert_close(kept.storage.keys, again.storage.keys, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(kept.storage.values, again.storage.values, rtol=1e-4, atol=1e-4)


@NAMED
def test_compressing_while_reading_keeps_the_budget_and_at_ratio_0_everything(name: str) -> None:
    chunks = CompressingPipeline(model_of(name), byte_tokenizer(), options=PipelineOptions(compress_every=64))
    chunks.eos_ids = []
    variants = [Variant(NonePress()), Variant(KnormPress(), 0.5), Variant(SnapKVPress(window_size=16), 0.5)]
    full, *_, knorm, snapkv = results_of(chunks, CONTEXTS[:1], QUESTIONS[:1], variants)
    shared = results_of(pipeline_of(name), CONTEXTS[:1], QUESTIONS[:1], variants)
    assert full.answer.token_ids == shared[0].answer.token_ids
    assert [knorm.context.full_bytes, snapkv.context.bytes] == [
        shared[1].context.full_bytes,
        pytest.approx(shared[2].context.bytes, rel=0.03),
    ]


@pytest.mark.parametrize("name", STATES)
def test_states_count_in_records_and_plans_and_are_only_read(name: str) -> None:
    pipeline = pipeline_of(name)
    read = next(pipeline.stream([Request(CONTEXTS[0], QUESTIONS[:1], VARIANTS, keep_caches=True)]))
    first, *_, last = (result.context for result in read)
    assert first.state_bytes == pipeline.shape.state > 0
    for context in (first, last):
        everything = context.full_bytes + context.state_bytes
        assert context.kept_fraction_with_state == (context.bytes + context.state_bytes) / everything
        assert context.kept_fraction <= context.kept_fraction_with_state <= 1

    # The states that variants share are those of the prefill, whatever was written since.
    again = results_of(pipeline, CONTEXTS[:1], QUESTIONS[:1], VARIANTS[:1], keep_caches=True)[0].context
    for before, after in zip(first.states, again.states, strict=True):
        assert (before is None) == (after is None)
        if before is not None:
            assert all(torch.equal(before.tensors[key], after.tensors[key]) for key in before.tensors)

    shape, request = pipeline.shape, Request(CONTEXTS[0], QUESTIONS[:1], VARIANTS)
    counted = pipeline.plan(request)
    pipeline.shape = replace(shape, state=0)
    without = pipeline.plan(request)
    pipeline.shape = shape
    assert counted.full_cache - without.full_cache == shape.state
    assert counted.decoding - without.decoding >= 2 * shape.state * len(VARIANTS)


@pytest.mark.parametrize("name", STATES)
def test_fidelity_and_offloading(name: str) -> None:
    options = PipelineOptions(fidelity=True, offload="always")
    other = CompressingPipeline(model_of(name), byte_tokenizer(), options=options)
    other.eos_ids = []
    questions = [replace(question, reference="the fox") for question in QUESTIONS[:2]]
    measured = results_of(other, CONTEXTS[:1], questions, VARIANTS[:3])
    plain = results_of(pipeline_of(name), CONTEXTS[:1], questions, VARIANTS[:3])
    assert tokens_of(measured) == tokens_of(plain)
    for at, result in enumerate(measured):
        fidelity = result.answer.fidelity
        if result.variant.is_full:
            assert (fidelity["answer_kl"], fidelity["answer_agreement"]) == (0, 1)
        alone = results_of(other, CONTEXTS[:1], [questions[at % 2]], [result.variant])[0].answer.fidelity
        assert fidelity["reference_nll"] == pytest.approx(alone["reference_nll"], rel=1e-4)


@NAMED
def test_generate_inside_a_press_goes_on_from_the_compressed_cache(name: str) -> None:
    pipeline = pipeline_of(name)
    model, ids = pipeline.model, torch.arange(240).view(2, 120) % 200 + 10
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        plain = model.generate(ids, **options)
        with NonePress()(model):
            assert torch.equal(model.generate(ids, **options), plain)
        with SnapKVPress(0.5, window_size=16)(model):
            together = model.generate(ids, **options)
            each = [model.generate(ids[row : row + 1], **options) for row in range(2)]
            mask = torch.ones_like(ids)
            mask[1, :17] = 0
            padded = model.generate(ids, attention_mask=mask, **options)
            shorter = model.generate(ids[1:, 17:], **options)
    assert torch.equal(together, torch.cat(each))
    assert torch.equal(padded[0], each[0][0])
    assert torch.equal(padded[1, 17:], shorter[0])


@NAMED
def test_a_press_alone_and_in_a_sweep_give_the_same(name: str) -> None:
    pipeline = pipeline_of(name)
    swept = results_of(pipeline, CONTEXTS[:1], QUESTIONS[:2], VARIANTS)
    for at, press in enumerate(PRESSES, 1):
        single = replace(press, compression_ratio=0.5)
        alone = results_of(pipeline, CONTEXTS[:1], QUESTIONS[:2], single)
        assert tokens_of(alone) == tokens_of(swept[2 * at : 2 * at + 2]), press.name
        assert alone[0].context.bytes == swept[2 * at].context.bytes
        assert alone[0].context.full_bytes == swept[2 * at].context.full_bytes


@pytest.mark.slow
@NAMED
def test_every_press_works_or_refuses_with_a_sentence(name: str) -> None:
    variants = []
    for press in map(press_named, NAMES):
        fixed = press.compression_ratio if press.traits.has_fixed_budget else 0.5
        variants.append(Variant(press, 0.0 if has_no_ratio(press) else fixed))
    results = next(pipeline_of(name).stream([Request(CONTEXTS[0], QUESTIONS[:1], variants)]))
    assert len(results) == len(NAMES)
    works = [result for result in results if result.error is None]
    assert len(works) > len(NAMES) / 2
    for error in (result.error for result in results if result.error is not None):
        assert isinstance(error, ValueError), error
        assert 30 < len(str(error)) < 600
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["gemma3n_text", "deepseek_v3", "falcon_h1_multiplier"])
def test_presses_that_act_while_answers_are_written_and_quantised_caches(name: str) -> None:
    pipeline = pipeline_of(name)
    acting = [busy_press_named(press) for press in ("decoding", "h2o_decoding") if press in NAMES]
    variants = [
        *(Variant(press, press.budget) for press in acting),
        Variant(KnormPress(), 0.5, cache_bits=8),
        Variant(NonePress(), 0.0, cache_bits=4),
    ]
    questions = [replace(question, max_new_tokens=12) for question in QUESTIONS[:2]]
    together = results_of(pipeline, CONTEXTS[:1], questions, variants)
    alone = [
        result
        for variant in variants
        for question in questions
        for result in results_of(pipeline, CONTEXTS[:1], [question], [variant])
    ]
    assert tokens_of(together) == tokens_of(alone)
    (first, *_), full = together, results_of(pipeline, CONTEXTS[:1], questions[:1], VARIANTS[:1])[0]
    assert first.answer.cache_bytes[-1] < full.answer.cache_bytes[-1]
    assert together[-1].context.bytes < 0.5 * full.context.bytes
