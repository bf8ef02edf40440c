"""Laws of the pipeline: one prefill; answers equal the model's own and do not depend on their neighbours."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import DynamicCache

from kvcache.attention import attending
from kvcache.budget import Budget
from kvcache.hooks.prefill import chunking
from kvcache.modules import cache_keyword
from longpress import CompressingPipeline, Question, Request, Variant
from longpress.catalogue import presses
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.prompt import Prompt
from presses import AdaKVPress, KeyRerotationPress, KnormPress, NonePress, PyramidKVPress, SnapKVPress
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.each_family import each_family
from tests.support.tiny_models import tiny_ids, tiny_model

CONTEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 4
QUESTIONS = ["Who jumps?", "Over what does the fox jump, and why does it do so?"]
PRESSES = [
    KnormPress(),
    SnapKVPress(),
    AdaKVPress(SnapKVPress()),
    PyramidKVPress(SnapKVPress()),
    KeyRerotationPress(KnormPress()),
]
VARIANTS = [(NonePress(), 0.0)] + [(press, ratio) for press in PRESSES for ratio in (0.25, 0.5, 0.75, 0.9)]


@cache
def model_of(family: str = "llama"):
    return tiny_model(family, vocab_size=VOCABULARY)


def make_pipeline(family: str = "llama", **options) -> CompressingPipeline:
    max_length = options.pop("max_length", None)
    return CompressingPipeline(
        model_of(family), byte_tokenizer(), max_length=max_length, options=PipelineOptions(**options)
    )


def count_prefills(pipeline: CompressingPipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counted: list[int] = []
    forward = pipeline._forward

    def counting(context_ids, *others):
        counted.append(context_ids.shape[1])
        return forward(context_ids, *others)

    monkeypatch.setattr(pipeline, "_forward", counting)
    return counted


def test_a_sweep_reads_the_context_once_and_answers_as_separate_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_pipeline()
    counted = count_prefills(pipeline, monkeypatch)
    answers = pipeline.sweep(CONTEXT, QUESTIONS, VARIANTS, max_new_tokens=8)
    assert len(counted) == 1
    assert len(answers) == len(VARIANTS)
    for (press, ratio), row in zip(VARIANTS, answers, strict=True):
        alone = [
            pipeline(CONTEXT, question=q, press=replace(press, compression_ratio=ratio), max_new_tokens=8)[
                "answer"
            ]
            for q in QUESTIONS
        ]
        assert row == alone, (press.name, ratio)


def test_eight_presses_at_four_ratios_read_the_context_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "knorm",
        "keydiff",
        "streaming_llm",
        "snapkv",
        "tova",
        "expected_attention",
        "observed_attention",
        "adakv",
    ]
    chosen = [presses()[name].load()() for name in names]
    variants = [(NonePress(), 0.0)] + [(press, ratio) for press in chosen for ratio in (0.25, 0.5, 0.75, 0.9)]
    pipeline = make_pipeline()
    counted = count_prefills(pipeline, monkeypatch)
    answers = pipeline.sweep(CONTEXT, QUESTIONS[:1], variants, max_new_tokens=6)
    assert counted == [len(pipeline._prompt(True).context_ids(CONTEXT))]
    for (press, ratio), row in zip(variants, answers, strict=True):
        assert row == [
            pipeline(
                CONTEXT,
                question=QUESTIONS[0],
                press=replace(press, compression_ratio=ratio),
                max_new_tokens=6,
            )["answer"]
        ]


@each_family()
def test_the_full_cache_answers_as_generate(family: str) -> None:
    pipeline = make_pipeline(family)
    prompt = pipeline._prompt(True)
    ids = prompt.context_ids(CONTEXT) + prompt.question_ids(QUESTIONS[0], "")
    generated = model_of(family).generate(
        torch.tensor([ids]), max_new_tokens=10, do_sample=False, pad_token_id=0
    )
    expected = prompt.decode(generated[0, len(ids) :].tolist())
    assert pipeline(CONTEXT, question=QUESTIONS[0], max_new_tokens=10)["answer"] == expected
    assert pipeline.sweep(CONTEXT, QUESTIONS, [(NonePress(), 0.0)], max_new_tokens=10)[0][0] == expected


def test_question_two_after_question_one_equals_question_two_alone() -> None:
    pipeline = make_pipeline()
    together = pipeline(CONTEXT, questions=QUESTIONS, press=AdaKVPress(SnapKVPress(0.5)), max_new_tokens=8)[
        "answers"
    ]
    alone = [
        pipeline(CONTEXT, question=question, press=AdaKVPress(SnapKVPress(0.5)), max_new_tokens=8)["answer"]
        for question in QUESTIONS
    ]
    assert together == alone


@pytest.mark.parametrize(
    "options",
    [
        {"prefill_chunk": 37},
        {"prefill_chunk": 100},
        {"max_batch_gb": 1 / 2**30},
        {"max_batch_gb": 300_000 / 2**30},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_chunks_and_batch_sizes_change_no_answer(options: dict, family: str) -> None:
    asked = (CONTEXT, QUESTIONS, of_family(family))
    assert make_pipeline(family, **options).sweep(*asked, max_new_tokens=6) == read_whole(family)


def of_family(family: str) -> list:
    """The full cache and every press that the family takes, at two ratios."""
    return [
        (press, ratio)
        for press, ratio in VARIANTS
        if ratio in (0.0, 0.5, 0.9) and (family == "llama" or press.name != "key_rerotation")
    ]


@cache
def read_whole(family: str) -> list[list[str]]:
    """Answers after a prefill in one piece, decoded together."""
    return make_pipeline(family).sweep(CONTEXT, QUESTIONS, of_family(family), max_new_tokens=6)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
@each_family()
def test_a_prefill_in_chunks_fills_the_same_cache(family: str, size: int) -> None:
    model, ids = tiny_model(family, **({"sliding_window": 50} if family == "gemma3" else {})), tiny_ids(150)
    whole, parts = DynamicCache(config=model.config), DynamicCache(config=model.config)
    keyword = cache_keyword(model.model)
    with torch.no_grad(), attending(model):
        expected = model.model(input_ids=ids, **{keyword: whole}).last_hidden_state
        with chunking(model, size):
            hidden = model.model(input_ids=ids, **{keyword: parts}).last_hidden_state
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(whole.layers, parts.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, rtol=1e-4, atol=1e-4)
    plain = model.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(expected, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "phi3"])
def test_a_window_that_covers_the_context_still_moves_while_decoding(family: str) -> None:
    model = tiny_model(family, vocab_size=VOCABULARY, sliding_window=300)
    pipeline = CompressingPipeline(model, byte_tokenizer())
    prompt = pipeline._prompt(True)
    ids = prompt.context_ids(CONTEXT) + prompt.question_ids(QUESTIONS[1], "")
    assert len(ids) > 300 > len(prompt.context_ids(CONTEXT))
    generated = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, pad_token_id=0)
    answers = pipeline.sweep(
        CONTEXT, QUESTIONS[1:], [(NonePress(), 0.0), (KnormPress(), 0.5)], max_new_tokens=20
    )
    assert answers[0][0] == prompt.decode(generated[0, len(ids) :].tolist())
    assert (
        answers[1][0]
        == pipeline(CONTEXT, question=QUESTIONS[1], press=KnormPress(0.5), max_new_tokens=20)["answer"]
    )


def test_a_window_shorter_than_the_context_is_refused_with_a_sentence() -> None:
    pipeline = CompressingPipeline(
        tiny_model("mistral", vocab_size=VOCABULARY, sliding_window=64), byte_tokenizer()
    )
    with pytest.raises(ValueError, match="sliding window of 64 tokens"):
        pipeline(CONTEXT, question="?", press=KnormPress(0.5))


def test_sliding_layers_of_a_hybrid_are_left_whole_and_counted() -> None:
    model = tiny_model("gemma3", vocab_size=VOCABULARY, sliding_window=64)
    pipeline = CompressingPipeline(model, byte_tokenizer())
    (result,) = pipeline(CONTEXT, question="?", press=[(KnormPress(), 0.5)], max_new_tokens=3).results
    tokens = result.context.tokens
    kept = tokens // 2
    assert result.context.entries() == [[63, 63], [kept, kept], [kept, kept]]
    assert result.context.kept_fraction == pytest.approx((63 + 2 * kept) / (63 + 2 * tokens))
    prompt = pipeline._prompt(True)
    ids = prompt.context_ids(CONTEXT) + prompt.question_ids("?", "")
    generated = model.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False, pad_token_id=0)
    assert pipeline(CONTEXT, question="?", max_new_tokens=10)["answer"] == prompt.decode(
        generated[0, len(ids) :].tolist()
    )


def forced(pipeline: CompressingPipeline, monkeypatch: pytest.MonkeyPatch, tokens: list[int]) -> None:
    """Make the model say these tokens."""
    left = iter(tokens)

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(hidden.shape[0], VOCABULARY)
        logits[:, next(left)] = 1
        return logits

    monkeypatch.setattr(pipeline.model, "get_output_embeddings", lambda: head)


A, B, C = (byte_tokenizer()("abc").input_ids[i] for i in range(3))


def test_an_end_token_counts_from_the_first_token_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_pipeline()
    forced(pipeline, monkeypatch, [1])
    (result,) = pipeline(CONTEXT, question="?", press=[(NonePress(), 0.0)]).results
    assert (result.answer.text, result.answer.token_ids, result.answer.stop_reason) == ("", [], "eos")


def test_every_end_token_of_the_generation_config_ends_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_of("llama").generation_config, "eos_token_id", [1, B])
    pipeline = make_pipeline()
    forced(pipeline, monkeypatch, [A, B, A])
    assert pipeline(CONTEXT, question="?")["answer"] == "a"


def test_stop_strings_and_token_limits_end_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_pipeline()
    forced(pipeline, monkeypatch, [A, B, C, A, B, C])
    (result,) = pipeline(CONTEXT, question=Question("?", stop=("ca",)), press=[(NonePress(), 0.0)]).results
    assert (result.answer.text, result.answer.stop_reason) == ("ab", "stop_string")
    forced(pipeline, monkeypatch, [A, B, C, A])
    (result,) = pipeline(CONTEXT, question="?", press=[(NonePress(), 0.0)], max_new_tokens=3).results
    assert (result.answer.text, result.answer.stop_reason) == ("abc", "length")


def test_a_minimum_of_tokens_holds_back_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_pipeline()

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(hidden.shape[0], VOCABULARY)
        logits[:, 1], logits[:, A] = 2, 1
        return logits

    monkeypatch.setattr(pipeline.model, "get_output_embeddings", lambda: head)
    assert pipeline(CONTEXT, question=Question("?", min_new_tokens=2))["answer"] == "aa"


def test_rows_with_limits_of_their_own_share_a_batch() -> None:
    pipeline = make_pipeline()
    questions = [
        Question("One?", max_new_tokens=2),
        Question("And what about the second?", max_new_tokens=9, answer_prefix=" It is"),
    ]
    variants = of_family("llama")
    answers = pipeline(CONTEXT, questions=questions, press=variants)
    for v, variant in enumerate(variants):
        for q, question in enumerate(questions):
            assert (
                answers["answers"][v][q] == pipeline(CONTEXT, question=question, press=[variant])["answer"][0]
            )
    assert max(len(result.answer.token_ids) for result in answers.results if result.question == 0) <= 2


def test_query_aware_compression_sees_the_question() -> None:
    pipeline = make_pipeline()
    output = pipeline(
        CONTEXT,
        questions=QUESTIONS,
        press=[(SnapKVPress(window_size=8), 0.5), (NonePress(), 0)],
        query_aware=True,
        max_new_tokens=5,
    )
    plain = pipeline(CONTEXT, questions=QUESTIONS, press=[(NonePress(), 0)], max_new_tokens=5)
    assert output["answers"][1] == plain["answers"][0]
    prompt = pipeline._prompt(True)
    assert [result.context.tokens for result in output.results[:2]] == [
        len(prompt.context_ids(CONTEXT + question)) for question in QUESTIONS
    ]


def test_truncation_is_explicit_recorded_and_spares_the_question() -> None:
    pipeline = make_pipeline(max_length=120)
    with pytest.raises(ValueError, match="the model's window is 120"):
        pipeline(CONTEXT, question="?")
    for query_aware in (False, True):
        (result,) = pipeline(
            CONTEXT,
            question="Who?",
            press=[(KnormPress(), 0.5)],
            max_context_tokens=40,
            max_new_tokens=5,
            query_aware=query_aware,
        ).results
        assert result.truncated
        assert result.context.tokens == 40
    whole = pipeline(
        "short", question="Who?", press=[(KnormPress(), 0.5)], max_context_tokens=40, max_new_tokens=5
    ).results[0]
    assert not whole.truncated


def test_evidence_survival_is_measured() -> None:
    pipeline = make_pipeline()
    question = Question("?", max_new_tokens=2, evidence=((0, 9),))
    full, half = pipeline(CONTEXT, question=question, press=[(NonePress(), 0.0), (KnormPress(), 0.9)]).results
    assert full.context.evidence_kept == [1.0]
    assert 0 <= half.context.evidence_kept[0] < 0.6


def test_evidence_survival_is_told_by_question_where_each_is_read_with_the_context() -> None:
    questions = [Question("?", max_new_tokens=2), Question("Who?", max_new_tokens=2, evidence=((0, 9),))]
    answers = make_pipeline()(CONTEXT, questions=questions, press=[(KnormPress(), 0.5)], query_aware=True)
    for result in answers.results:
        assert len(result.context.evidence_kept) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "either question= or questions="),
        ({"question": "?", "questions": ["?"]}, "either question= or questions="),
        ({"questions": []}, "at least one question"),
        ({"question": "?", "press": []}, "names no variant"),
        ({"question": "?", "press": [("snapkv", 0.5)]}, "is not a press"),
        ({"question": "?", "press": [(KnormPress(), 1.0)]}, "must be a number in"),
        ({"question": "?", "max_new_tokens": 0}, "must be at least 1"),
    ],
)
def test_bad_calls_get_a_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_pipeline()(CONTEXT, **options)


def test_a_press_that_misses_its_budget_stops_the_run() -> None:
    class Greedy(KnormPress):
        def select(self, evidence, budget):
            return super().select(evidence, Budget(ratio=budget.ratio / 2))

    with pytest.raises(ValueError, match="does not meet its budget"):
        make_pipeline()(CONTEXT, question="?", press=[Variant(Greedy(), 0.5)])


def test_a_prompt_is_the_chat_template_around_context_and_question() -> None:
    prompt = Prompt(byte_tokenizer())
    ids = prompt.context_ids("abc") + prompt.question_ids("?", " It")
    assert byte_tokenizer().decode(ids) == "<user>abc?<assistant> It"
    bare = Prompt(byte_tokenizer(), chat_template=False)
    assert byte_tokenizer().decode(bare.context_ids("abc") + bare.question_ids("?", "")) == "abc?"
    with pytest.raises(ValueError, match="context is empty"):
        bare.context_ids("")


THREE = [
    Request(CONTEXT, [Question("Who?", max_new_tokens=12)], VARIANTS),
    Request(
        CONTEXT[::-1],
        [Question("What?", max_new_tokens=3), Question("Why so?", max_new_tokens=7)],
        VARIANTS,
    ),
    Request(CONTEXT.upper() * 2, [Question("?", max_new_tokens=20)], VARIANTS),
]


@cache
def answered_alone(at: int) -> list[str]:
    """The answers to one of the three, in the order of its results."""
    request = THREE[at]
    alone = make_pipeline()(request.context, questions=request.questions, press=VARIANTS)
    return [text for row in alone["answers"] for text in row]


@pytest.mark.parametrize("budget", [pytest.param(1, marks=pytest.mark.slow), 400_000, 2**30])
def test_contexts_decoded_together_answer_as_alone(budget: int) -> None:
    together = list(make_pipeline(max_batch_gb=budget / 2**30).stream(THREE))
    assert len(together) == 3
    for at, results in enumerate(together):
        assert [result.answer.text for result in results] == answered_alone(at)
        assert all(result.answer.stop_reason and result.answer.seconds > 0 for result in results)
