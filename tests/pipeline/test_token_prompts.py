"""Prompts in token ids: the answers of text prompts, and likelihoods that depend on nothing beside them."""

import pytest
import torch
from transformers import DynamicCache

from kvcache.modules import cache_keyword
from longpress import CompressingPipeline, DecodingPress, KnormPress, NonePress, SnapKVPress
from longpress.pipeline.prompt import Question
from presses.base import BasePress
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.families import pipeline_of
from tests.support.padded_batches import contexts
from tests.support.rope_models import LENGTH_DEPENDENT, WINDOW, rope_model
from tests.support.tiny_models import tiny_model

CONTEXTS = ["The quick brown fox jumps over the lazy dog.", "Who jumps? " * 5, "A dog sleeps on, and on."]
PRESSES = [NonePress(), KnormPress(0.5), SnapKVPress(0.5, window_size=8)]


@pytest.fixture(scope="module")
def pipeline() -> CompressingPipeline:
    return CompressingPipeline(
        tiny_model("gemma3", vocab_size=VOCABULARY, sliding_window=20), byte_tokenizer()
    )


@pytest.mark.parametrize("press", PRESSES, ids=lambda press: press.name)
def test_answers_are_those_of_texts(pipeline: CompressingPipeline, press: BasePress) -> None:
    question = Question("", max_new_tokens=8)
    for last in (1, 5):
        prompts = [pipeline.tokenizer(text, add_special_tokens=False).input_ids for text in CONTEXTS]
        written = pipeline.token_prompts(press, last_tokens=last).answers(prompts, question)
        for text, answer in zip(CONTEXTS, written, strict=True):
            given = {"question": text[-last:], "max_new_tokens": 8, "chat_template": False}
            assert answer.text == pipeline(text[:-last], press=press, **given)["answer"]


@pytest.mark.parametrize("family", ["gemma3", "qwen3_next"])
@pytest.mark.parametrize("press", PRESSES, ids=lambda press: press.name)
def test_likelihoods_are_those_of_the_model_over_what_is_kept(
    pipeline: CompressingPipeline, family: str, press: BasePress
) -> None:
    pipe = pipeline if family == "gemma3" else pipeline_of(family)
    prompts = [ids[0].tolist() for ids in contexts((50, 31, 44), most=VOCABULARY)]
    continuations = [[5, 6, 7], [9], [11, 12]]
    found = pipe.token_prompts(press, last_tokens=3).likelihoods(prompts, continuations)
    order = [2, 0, 1]
    again = pipe.token_prompts(press, last_tokens=3).likelihoods(
        [prompts[at] for at in order], [continuations[at] for at in order]
    )
    for at, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        stored = DynamicCache(config=pipe.model.config)
        with torch.no_grad(), press(pipe.model):
            pipe.model(torch.tensor([prompt[:-3]]), **{cache_keyword(pipe.model): stored})
            read = torch.tensor([[*prompt[-3:], *continuation[:-1]]])
            logits = pipe.model(read, **{cache_keyword(pipe.model): stored}).logits[0, 2:].log_softmax(-1)
        expected = logits.gather(-1, torch.tensor(continuation)[:, None]).sum().item()
        assert found[at].log_probability == pytest.approx(expected, abs=1e-4)
        assert found[at].is_greedy == (logits.argmax(-1).tolist() == continuation)
        assert again[order.index(at)].log_probability == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("rope", LENGTH_DEPENDENT)
def test_frequencies_are_those_of_the_prompt_whatever_stands_beside_it(rope: str) -> None:
    pipe = CompressingPipeline(rope_model("llama", rope), byte_tokenizer())
    prompts = [ids[0].tolist() for ids in contexts((WINDOW + 40, WINDOW - 30, WINDOW), most=VOCABULARY)]
    continuations = [[5, 6, 7], [9], [11, 12]]
    together = pipe.token_prompts(KnormPress(0.5)).likelihoods(prompts, continuations)
    for prompt, continuation, found in zip(prompts, continuations, together, strict=True):
        fresh = CompressingPipeline(rope_model("llama", rope), byte_tokenizer())
        (alone,) = fresh.token_prompts(KnormPress(0.5)).likelihoods([prompt], [continuation])
        assert found.log_probability == pytest.approx(alone.log_probability, abs=1e-4)


def test_what_the_model_writes_itself_is_greedy(pipeline: CompressingPipeline) -> None:
    prompts, press = [contexts((50,), most=VOCABULARY)[0][0].tolist()], KnormPress(0.5)
    (answer,) = pipeline.token_prompts(press).answers(prompts, Question("", max_new_tokens=6))
    assert answer.token_ids
    (found,) = pipeline.token_prompts(press).likelihoods(prompts, [answer.token_ids])
    assert found.is_greedy and found.log_probability < 0


def test_equal_prompts_are_read_once(pipeline: CompressingPipeline) -> None:
    prompts = pipeline.token_prompts(KnormPress(0.5))
    ids = contexts((50,), most=VOCABULARY)[0][0].tolist()
    assert len(prompts.likelihoods([ids] * 3, [[5], [6], [7, 8]])) == 3
    assert prompts.kept_fractions == [pytest.approx(0.6, abs=0.15)]  # one layer has a window and stays whole


def test_what_cannot_be_done_is_a_sentence(pipeline: CompressingPipeline) -> None:
    with pytest.raises(ValueError, match="last_tokens=0 must be at least 1"):
        pipeline.token_prompts(KnormPress(0.5), last_tokens=0)
    with pytest.raises(ValueError, match="nothing to compress"):
        pipeline.token_prompts(KnormPress(0.5)).likelihoods([[5]], [[6]])
    with pytest.raises(ValueError, match="continuation is empty"):
        pipeline.token_prompts(KnormPress(0.5)).likelihoods([[5, 6]], [[]])
    with pytest.raises(ValueError, match="acts while answers are written"):
        pipeline.token_prompts(DecodingPress()).likelihoods([[5, 6]], [[6]])
