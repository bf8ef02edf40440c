"""Drawn answers: the right distribution, and each the same alone, beside others, in any order, and again."""

import math
from functools import cache
from random import Random

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from longpress import CompressingPipeline, Question, Request
from longpress.pipeline.decode import Decoder
from longpress.pipeline.options import PipelineOptions, SamplingOptions
from longpress.pipeline.sampling import drawn, probabilities
from presses import KnormPress, NonePress
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.tiny_models import FAMILIES, frozen_normal, tiny_model

CONTEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 3
OPTIONS = [
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 5},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.3, "top_k": 9, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 1.0, "top_k": 1000},
]


@cache
def model_of(family: str = "llama"):
    return tiny_model(family, vocab_size=VOCABULARY)


def pipeline_of(family: str = "llama", **options) -> CompressingPipeline:
    return CompressingPipeline(model_of(family), byte_tokenizer(), options=PipelineOptions(**options))


def of_transformers(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1, min_p: float = 0):
    """The probabilities as `generate` draws from them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    return warpers(torch.zeros(len(logits), 1, dtype=torch.long), logits.double()).softmax(-1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_probabilities_are_those_of_transformers(options: dict) -> None:
    logits = 3 * frozen_normal("logits", (4, 50))
    expected = of_transformers(logits, **options)
    torch.testing.assert_close(probabilities(logits, SamplingOptions(**options)), expected)


@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
def test_tokens_are_drawn_with_these_probabilities(options: dict) -> None:
    logits, n = 2 * frozen_normal("tiny vocabulary", (1, 12)), 4000
    generators = [Random(seed) for seed in range(n)]
    counts = drawn(logits.expand(n, -1), SamplingOptions(**options), generators).bincount(minlength=12)
    expected = of_transformers(logits, **options)[0]
    possible = expected > 0
    assert not counts[~possible].any()
    assert chisquare(counts[possible], n * expected[possible]).pvalue > 0.001


def test_a_token_that_is_forbidden_is_never_drawn() -> None:
    class Highest(Random):
        def random(self) -> float:
            return 1 - 2**-53

    class Lowest(Random):
        def random(self) -> float:
            return 0.0

    logits = torch.tensor([[-math.inf, 1.0, 2.0, -math.inf]])
    assert drawn(logits, SamplingOptions(temperature=1.0), [Highest()]).tolist() == [2]
    assert drawn(logits, SamplingOptions(temperature=1.0), [Lowest()]).tolist() == [1]


@pytest.mark.parametrize("family", FAMILIES)
def test_without_temperature_the_answer_is_the_greedy_one(family: str) -> None:
    question = Question("Who jumps?", max_new_tokens=8, seed=3)
    greedy = pipeline_of(family)(CONTEXT, question=question)["answer"]
    for temperature in (1e-4, 1e-30):
        assert pipeline_of(family, temperature=temperature)(CONTEXT, question=question)["answer"] == greedy
    assert pipeline_of(family, temperature=5.0, top_k=1)(CONTEXT, question=question)["answer"] == greedy


def answers(requests: list[Request], **options) -> list[list[list[int]]]:
    """The tokens of every answer, by request."""
    pipeline = pipeline_of(temperature=1.0, top_p=0.9, **options)
    return [[result.answer.token_ids for result in results] for results in pipeline.stream(requests)]


def asked(seeds: list[int], context: str = CONTEXT, tokens: int = 12) -> Request:
    questions = [
        Question("Who jumps?" + " And why?" * (seed % 2), max_new_tokens=tokens + seed % 3, seed=seed)
        for seed in seeds
    ]
    return Request(context, questions, [(NonePress(), 0.0), (KnormPress(), 0.5)])


def test_a_drawn_answer_does_not_depend_on_its_neighbours_their_order_or_the_batch() -> None:
    seeds = [0, 1, 2, 3]
    (together,) = answers([asked(seeds)])
    full, half = together[:4], together[4:]
    assert len({tuple(tokens) for tokens in together}) == 8  # seeds and presses write different answers
    for seed in seeds:
        assert answers([asked([seed])]) == [[full[seed], half[seed]]]
    assert answers([asked(seeds[::-1])]) == [[*full[::-1], *half[::-1]]]
    # behind another context, whose rows are decoded beside these; in batches of one row; and the same again
    assert answers([asked([7, 8], "Another context. ", 30), asked(seeds)])[1] == together
    assert answers([asked(seeds)], max_batch_gb=1e-9) == [together]
    assert answers([asked(seeds)]) == [together]


def test_an_answer_that_is_written_again_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    (expected,) = answers([asked([0, 1, 2])])
    step, steps = Decoder._step, []

    def failing(self: Decoder) -> None:
        steps.append(len(self.alive))
        if len(steps) == 5:
            raise torch.OutOfMemoryError("no memory left")
        step(self)

    monkeypatch.setattr(Decoder, "_step", failing)
    assert answers([asked([0, 1, 2])]) == [expected]
    assert len(set(steps)) > 1


def test_caps_and_scales_of_logits_count() -> None:
    """Greedy answers do not see them, drawn ones do."""
    capped = tiny_model("gemma3", vocab_size=VOCABULARY, final_logit_softcapping=0.01)
    pipeline = CompressingPipeline(capped, byte_tokenizer(), options=PipelineOptions(temperature=1.0))
    results = next(pipeline.stream([asked(list(range(40)), "A context. ", 4)]))
    tokens = {token for result in results for token in result.answer.token_ids}
    assert len(tokens) > 100  # nearly uniform


def test_min_new_tokens_holds_for_drawn_answers() -> None:
    questions = [Question("Go on.", max_new_tokens=6, min_new_tokens=6, seed=seed) for seed in range(60)]
    pipeline = CompressingPipeline(
        tiny_model("gemma3", vocab_size=VOCABULARY, final_logit_softcapping=0.001),
        byte_tokenizer(),
        options=PipelineOptions(temperature=1.0),
    )
    pipeline.eos_ids = list(range(4, 200))
    results = next(pipeline.stream([Request("A context. ", questions)]))
    assert {len(result.answer.token_ids) for result in results} == {6}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("temperature", value) for value in (-0.1, math.inf, math.nan, "hot", True)),
        *(("top_p", value) for value in (0, 1.1, -1)),
        *(("top_k", value) for value in (-1, 0.5, True)),
        *(("min_p", value) for value in (-0.1, 1)),
    ],
)
def test_what_is_out_of_range_is_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{option}={value!r} must be"):
        PipelineOptions(**{option: value})
