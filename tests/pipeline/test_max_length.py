"""At the model's window: the longest prompt that fits is answered, a longer one refused, none cut unasked."""

import pytest

from longpress import CompressingPipeline, Question, Request
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.results import Failure
from presses import KnormPress, NonePress
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.tiny_models import tiny_model

CONTEXT = "The quick brown fox jumps over the lazy dog. " * 4
QUESTIONS = [Question("Who?", max_new_tokens=6), Question("Over what, and why?", max_new_tokens=3)]
VARIANTS = [(NonePress(), 0.0), (KnormPress(), 0.5)]


def pipeline_with(window: int | None) -> CompressingPipeline:
    return CompressingPipeline(
        tiny_model("llama", vocab_size=VOCABULARY), byte_tokenizer(), max_length=window
    )


def needed() -> int:
    prompt = pipeline_with(None)._prompt(True)
    return len(prompt.context_ids(CONTEXT)) + max(
        len(prompt.question_ids(one.text, one.answer_prefix)) + one.max_new_tokens for one in QUESTIONS
    )


def test_a_prompt_that_fills_the_window_with_its_answer_is_answered_as_by_a_model_without_a_window() -> None:
    exact, free = (pipeline_with(window).sweep(CONTEXT, QUESTIONS, VARIANTS) for window in (needed(), 10**6))
    assert exact == free


@pytest.mark.parametrize("mode", [{}, {"compress_every": 64}])
def test_one_token_more_is_a_failed_cell_and_the_sweep_goes_on(mode: dict[str, object]) -> None:
    pipeline = CompressingPipeline(
        tiny_model("llama", vocab_size=VOCABULARY),
        byte_tokenizer(),
        max_length=needed() - 1,
        options=PipelineOptions(**mode),
    )
    requests = [Request(text, QUESTIONS, VARIANTS) for text in (CONTEXT, CONTEXT[:-8])]
    long, short = pipeline.stream(requests)
    assert all(isinstance(result, Failure) for result in long)
    assert str(long[0].error).startswith(f"context, question and answer need {needed()} tokens")
    assert [result.error for result in short] == [None] * 4


def test_a_context_is_cut_only_where_that_is_asked_for_and_the_results_say_so() -> None:
    request = Request(CONTEXT, QUESTIONS, VARIANTS, max_context_tokens=100)
    (cut,) = pipeline_with(needed() - 1).stream([request])
    assert all(result.truncated and result.context.tokens == 100 for result in cut)
