"""Fidelity equals reading known answers row by row, the model's logits on a full cache, values by hand."""

import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from kvcache.attention import attending
from kvcache.cache import CompressedCache, CompressedLayer
from kvcache.modules import cache_keyword
from longpress import CompressingPipeline, Question, Request, Variant
from longpress.pipeline import fidelity
from longpress.pipeline.options import PipelineOptions
from presses import (
    AdaKVPress,
    DecodingPress,
    KeyRerotationPress,
    KnormPress,
    NonePress,
    SnapKVPress,
    ThinKPress,
)
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.tiny_models import tiny_model

CONTEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 4
QUESTIONS = [
    Question("Who jumps?", max_new_tokens=9, reference="the fox"),
    Question("Over what does it jump, and why?", " It", max_new_tokens=6, reference="x"),
]
PRESSES = [KnormPress(), AdaKVPress(SnapKVPress()), KeyRerotationPress(KnormPress()), ThinKPress()]
VARIANTS = [
    (KnormPress(), 0.0),
    (NonePress(), 0.0),
    *((press, ratio) for press in PRESSES for ratio in (0.5, 0.9)),
]
NAMES = {f"{text}_{what}" for text in ("reference", "answer") for what in ("nll", "kl", "agreement")} | {
    "fidelity_seconds"
}


@cache
def pipeline_of(family: str = "llama", **options) -> CompressingPipeline:
    sliding = {"sliding_window": 64} if family == "gemma3" else {}
    return CompressingPipeline(
        tiny_model(family, vocab_size=VOCABULARY, **sliding),
        byte_tokenizer(),
        options=PipelineOptions(fidelity=True, **options),
    )


def variants_of(family: str) -> list:
    return [
        variant
        for variant in VARIANTS
        if family == "llama" or variant[0].name not in ("key_rerotation", "think")
    ]


def measured(
    pipeline: CompressingPipeline, questions=QUESTIONS, variants=VARIANTS, context=CONTEXT, **options
) -> list[dict[str, float]]:
    results = pipeline(context, questions=questions, press=variants, **options).results
    return [
        {name: value for name, value in result.answer.fidelity.items() if name != "fidelity_seconds"}
        for result in results
    ]


def by_hand(logits: torch.Tensor, full: torch.Tensor, ids: list[int]) -> dict[str, float]:
    """From the (n, V) logits at which n tokens are predicted."""
    return {
        "nll": float(functional.cross_entropy(logits, torch.tensor(ids))),
        "kl": float(
            functional.kl_div(
                logits.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="batchmean"
            )
        ),
        "agreement": float((logits.argmax(-1) == full.argmax(-1)).float().mean()),
    }


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_equals_reading_the_answers_row_by_row(family: str) -> None:
    pipeline, variants = pipeline_of(family), variants_of(family)
    model, prompt = pipeline.model, pipeline._prompt(True)
    results = pipeline(CONTEXT, questions=QUESTIONS, press=variants).results

    def read(result, ids: list[int]) -> torch.Tensor:
        kept, asked = result.context, QUESTIONS[result.question]
        tail = prompt.question_ids(asked.text, asked.answer_prefix)
        compressed = CompressedCache([CompressedLayer([layer], kept.next_position) for layer in kept.layers])
        positions = torch.arange(kept.next_position, kept.next_position + len(tail) + len(ids))[None]
        with torch.no_grad(), attending(model):
            logits = model(
                torch.tensor([tail + ids]), position_ids=positions, **{cache_keyword(model): compressed}
            ).logits[0]
        return logits[len(tail) - 1 : -1]

    for result in results:
        asked = QUESTIONS[result.question]
        full = next(other for other in results if other.variant.is_full and other.question == result.question)
        texts = {
            "reference": byte_tokenizer()(f" {asked.reference}").input_ids,
            "answer": full.answer.token_ids,
        }
        expected = {}
        for text, ids in texts.items():
            ids = ids[: asked.max_new_tokens]
            expected |= {
                f"{text}_{what}": value
                for what, value in by_hand(read(result, ids), read(full, ids), ids).items()
            }
        assert result.answer.fidelity.keys() == NAMES
        found = {name: result.answer.fidelity[name] for name in expected}
        assert found == pytest.approx(expected, rel=2e-4, abs=2e-5), (
            result.variant.press.name,
            result.variant.budget.ratio,
        )
    assert max(result.answer.fidelity["answer_kl"] for result in results) > 0.01


def test_the_full_cache_is_the_model_itself() -> None:
    pipeline = pipeline_of()
    prompt, asked = pipeline._prompt(True), QUESTIONS[0]
    at_ratio_0, full = (
        pipeline(CONTEXT, question=asked, press=[variant]).results[0].answer for variant in VARIANTS[:2]
    )
    assert (full.fidelity["answer_kl"], full.fidelity["answer_agreement"], full.fidelity["reference_kl"]) == (
        0,
        1,
        0,
    )
    before = prompt.context_ids(CONTEXT) + prompt.question_ids(asked.text, "")
    with torch.no_grad():
        logits = pipeline.model(torch.tensor([before + full.token_ids])).logits[0, len(before) - 1 : -1]
    nll = float(functional.cross_entropy(logits, torch.tensor(full.token_ids)))
    for answer in (full, at_ratio_0):
        assert answer.fidelity["answer_nll"] == pytest.approx(nll, rel=1e-4)
        assert answer.fidelity["answer_kl"] == pytest.approx(0, abs=1e-5)
        assert answer.fidelity["answer_agreement"] == 1


def test_a_question_does_not_depend_on_others_nor_on_the_other_variants() -> None:
    pipeline = pipeline_of()
    together = measured(pipeline)
    alone = [
        one
        for variant in VARIANTS
        for question in QUESTIONS
        for one in measured(pipeline, [question], [variant])
    ]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_neither_batches_nor_blocks_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = measured(pipeline_of())
    monkeypatch.setattr(fidelity, "LOGIT_BYTES", 16 * VOCABULARY * 23)  # two of 10 rows' positions at a time
    for size in (2 * 2**30, 1, 400_000):
        pipeline = pipeline_of(max_batch_gb=size / 2**30)
        for one, other in zip(measured(pipeline), expected, strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_answers_are_what_they_are_without() -> None:
    plain = CompressingPipeline(pipeline_of().model, byte_tokenizer())
    with_it = pipeline_of()(CONTEXT, questions=QUESTIONS, press=VARIANTS)
    without = plain(CONTEXT, questions=QUESTIONS, press=VARIANTS)
    assert with_it["answers"] == without["answers"]
    assert all(result.answer.fidelity == {} and result.answer.after is None for result in without.results)
    assert all(result.answer.after is None for result in with_it.results)


def test_what_cannot_be_measured_is_left_out() -> None:
    silent = replace(QUESTIONS[0], reference="")
    variants = [
        (NonePress(), 0.0),
        (KnormPress(), 0.5),
        (DecodingPress(KnormPress(), compression_interval=5, target_size=64), 0.0),
    ]
    full, pressed, acting = measured(pipeline_of(), [silent], variants)
    assert full.keys() == pressed.keys() == {"answer_nll", "answer_kl", "answer_agreement"}
    assert acting == {}
    assert measured(pipeline_of(), [silent], KnormPress(0.5)) == [{}]


def test_a_context_is_released_once_it_is_measured() -> None:
    contexts = [CONTEXT, CONTEXT[40:], CONTEXT[90:]]
    expected = [
        one for text in contexts for one in measured(pipeline_of(), variants=VARIANTS[2:], context=text)
    ]
    for pipeline in (pipeline_of(), pipeline_of(max_context_gb=1 / 2**30)):
        requests = [Request(text, QUESTIONS, VARIANTS[2:]) for text in contexts]
        results = [result for of_context in pipeline.stream(requests) for result in of_context]
        assert all(not result.context.layers and result.answer.after is None for result in results)
        for result, other in zip(results, expected, strict=True):
            found = {
                name: value for name, value in result.answer.fidelity.items() if name != "fidelity_seconds"
            }
            assert found == pytest.approx(other, rel=1e-4, abs=1e-5) and len(found) == 6


def test_a_full_cache_of_few_bits_is_not_what_others_are_compared_with() -> None:
    few, pressed = measured(
        pipeline_of(), QUESTIONS[:1], [Variant(NonePress(), cache_bits=2), Variant(KnormPress(), 0.5)]
    )
    assert few["answer_kl"] > 0
    assert pressed == pytest.approx(
        measured(pipeline_of(), QUESTIONS[:1], [(KnormPress(), 0.5)])[0], rel=1e-4, abs=1e-5
    )


def test_query_aware_questions_are_compared_in_their_own_context() -> None:
    first, second = measured(pipeline_of(), QUESTIONS, [(SnapKVPress(), 0.5)], query_aware=True)
    assert second == pytest.approx(
        measured(pipeline_of(), QUESTIONS[1:], [(SnapKVPress(), 0.5)], query_aware=True)[0],
        rel=1e-4,
        abs=1e-5,
    )
    assert first["answer_kl"] != pytest.approx(second["answer_kl"])


def test_values_by_hand() -> None:
    probabilities = torch.tensor(
        [[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], [[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]]
    )
    full, other = fidelity.compare(lambda hidden: hidden, probabilities.log(), 0, [0, 1])
    assert full == pytest.approx({"nll": 1.5 * math.log(2), "kl": 0.0, "agreement": 1.0})
    # the first token: 2 bits instead of 1; sum of p log(p / q) = (1/2 - 1/4) log 2; most likely the second
    # instead of the first
    assert other == pytest.approx({"nll": 2 * math.log(2), "kl": 0.125 * math.log(2), "agreement": 0.5})


def test_what_scales_or_caps_logits_is_respected() -> None:
    def logits(**options) -> float:
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**options))
        model = SimpleNamespace(config=config, get_output_embeddings=lambda: lambda hidden: hidden)
        return float(fidelity.logits_of(model)(torch.tensor(3.0)))

    assert logits() == 3
    assert logits(logit_scale=0.5) == logits(logits_scaling=2) == 1.5
    assert logits(final_logit_softcapping=2.0) == pytest.approx(2 * math.tanh(1.5))


def test_a_failure_leaves_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longpress.pipeline.fidelity.LOGIT_BYTES", None)
    with pytest.warns(UserWarning, match="fidelity is missing"):
        results = pipeline_of()(CONTEXT, questions=QUESTIONS, press=VARIANTS[:3]).results
    assert all(result.answer.text and not result.answer.error for result in results)
