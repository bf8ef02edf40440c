"""Presses that act while answers are written: beside other rows, with several questions, over time."""

import pytest
import torch

from longpress import CompressingPipeline
from longpress.pipeline.decode import row_bytes
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.prompt import Question
from longpress.pipeline.rows import Row
from presses import (
    CAMPress,
    DecodingPress,
    DMSPress,
    KeyDiffPress,
    KnormPress,
    NonePress,
    PrefillDecodingPress,
    RatioDecodingPress,
    SnapKVPress,
    StreamingLLMPress,
)
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.tiny_models import tiny_model

CONTEXT = (
    "the quick brown fox jumps over the lazy dog while nine wizards pack my box with five dozen jugs. " * 2
)
QUESTIONS = ["who jumps?", "what does the wizard pack, and with how many of the jugs?"]
# no knorm while decoding: in layer 0 the keys of a repeated token have equal norms, and rounding would choose
# among them
VARIANTS = [
    (NonePress(), 0.0),
    (DecodingPress(KeyDiffPress(), compression_interval=5, target_size=64), 0.0),
    (KnormPress(), 0.5),
    (DecodingPress(SnapKVPress(window_size=4), compression_interval=3, target_size=50), 0.0),
    (RatioDecodingPress(StreamingLLMPress(), compression_interval=4), 0.6),
    (
        PrefillDecodingPress(
            KnormPress(), DecodingPress(SnapKVPress(), compression_interval=1, target_size=40)
        ),
        0.25,
    ),
    (CAMPress(KeyDiffPress(), compression_interval=4, target_size=60), 0.0),
    (DMSPress(KeyDiffPress(), sliding_window_size=12, decoding=True), 0.5),
]


def make_pipeline(**options) -> CompressingPipeline:
    return CompressingPipeline(
        tiny_model("llama", vocab_size=VOCABULARY), byte_tokenizer(), options=PipelineOptions(**options)
    )


def test_rows_that_shrink_answer_beside_others_as_alone() -> None:
    pipeline = make_pipeline()
    together = pipeline(CONTEXT, questions=QUESTIONS, press=VARIANTS, max_new_tokens=13)
    one_by_one = make_pipeline(max_batch_gb=1 / 2**30)
    small = one_by_one(CONTEXT, questions=QUESTIONS, press=VARIANTS, max_new_tokens=13)
    assert together["answers"] == small["answers"]
    for variant, answers in zip(VARIANTS, together["answers"], strict=True):
        alone = [
            pipeline(CONTEXT, question=question, press=[variant], max_new_tokens=13)["answer"][0]
            for question in QUESTIONS
        ]
        assert answers == alone
    assert together["answers"][1] != together["answers"][0]
    assert [r.answer.cache_bytes for r in together.results] == [r.answer.cache_bytes for r in small.results]


def test_a_press_with_its_ratio_answers_as_in_a_sweep() -> None:
    pipeline, press = make_pipeline(), VARIANTS[1][0]
    assert (
        pipeline(CONTEXT, questions=QUESTIONS, press=press, max_new_tokens=13)["answers"]
        == pipeline.sweep(CONTEXT, QUESTIONS, VARIANTS, max_new_tokens=13)[1]
    )


def test_sizes_follow_the_cache_over_time() -> None:
    pipeline = make_pipeline()
    press = DecodingPress(KnormPress(), compression_interval=5, target_size=64)
    full, shrinking = pipeline(
        CONTEXT, questions=["who?"], press=[(NonePress(), 0.0), (press, 0.0)], max_new_tokens=12
    ).results
    token = full.context.full_bytes // full.context.tokens
    question = full.context.full_bytes + full.answer.question_tokens * token
    written = len(full.answer.token_ids)
    assert full.answer.cache_bytes == [question + step * token for step in range(written)]
    # the question is the first pass, so the fifth one follows the fourth token; then one more each until the
    # next five are over
    expected = [question + step * token for step in range(4)] + [
        64 * token + step % 5 * token for step in range(8)
    ]
    assert shrinking.answer.cache_bytes == expected[: len(shrinking.answer.token_ids)]


def test_an_end_on_the_first_token_ends_a_row_that_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_pipeline()
    end = next(iter(pipeline.eos_ids))

    def head(hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full((len(hidden),), end), VOCABULARY).float()

    monkeypatch.setattr(pipeline.model, "get_output_embeddings", lambda: head)
    results = pipeline(CONTEXT, questions=QUESTIONS, press=VARIANTS).results
    assert {(result.answer.text, result.answer.stop_reason) for result in results} == {("", "eos")}
    assert all(len(result.answer.cache_bytes) == 1 for result in results)


def test_memory_of_what_acts_is_counted() -> None:
    """A batch's bound covers hidden states held for scorers, and entries that a row no longer shares."""
    pipeline = make_pipeline()
    variants = [
        (NonePress(), 0.0),
        *((DecodingPress(KeyDiffPress(), target_size=64, buffer_size=size), 0.0) for size in (1, 8)),
        VARIANTS[-2],
    ]
    results = pipeline(CONTEXT, questions=["who?"], press=variants, max_new_tokens=1).results
    question = Question("", "", 20)
    rows = [Row(one.context, [5] * 10, question, one.variant) for one in results]
    full, small, large, cam = (row_bytes(pipeline.model, row) for row in rows)
    layers, token = len(pipeline.model.model.layers), 4 * (64 + 2 * 16)
    assert small - full == results[0].context.bytes + layers * token
    assert large - small == 7 * layers * token
    assert cam - full > large - full
