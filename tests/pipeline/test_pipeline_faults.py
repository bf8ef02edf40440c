"""A failure stays with its press, context or row; where memory runs out, the batch is halved."""

from dataclasses import dataclass

import pytest
import torch

from longpress import CompressingPipeline, Question, Request, Variant
from longpress.pipeline.decode import Decoder
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.results import ContextResults, Failure
from longpress.pipeline.scheduler import Scheduler
from presses import DecodingPress, KnormPress, NonePress, SnapKVPress
from presses.scorer import ScorerPress
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.tiny_models import tiny_model

CONTEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 4
QUESTIONS = [
    Question(text, "", 6) for text in ("Who jumps?", "Over what?", "Where is the dog, and why?", "When?")
]
SHRINKING = DecodingPress(SnapKVPress(window_size=4), compression_interval=2, target_size=40)
GOOD = [(NonePress(), 0.0), (KnormPress(), 0.25), (KnormPress(), 0.5), (SHRINKING, 0.0)]


@dataclass(frozen=True)
class BrokenPress(ScorerPress):
    """Raises while observing layer `layer`, or at `ratio` while selecting."""

    layer: int = -1
    ratio: float = 0.0

    def score(self, layer):
        if layer.index == self.layer:
            raise RuntimeError("broken on purpose")
        return layer.values.norm(dim=-1)

    def select(self, evidence, budget):
        if budget.ratio == self.ratio:
            raise KeyError("select is broken")
        return super().select(evidence, budget)


@pytest.fixture(scope="module")
def pipeline() -> CompressingPipeline:
    return CompressingPipeline(tiny_model("llama", vocab_size=VOCABULARY), byte_tokenizer())


def texts(results: list) -> list[tuple]:
    return [
        (result.variant.press.name, result.variant.budget.ratio, result.question, result.answer.text)
        for result in results
    ]


def sizes_of(results: list) -> list[list[int]]:
    return [result.answer.cache_bytes for result in results]


@pytest.fixture(scope="module")
def expected(pipeline: CompressingPipeline) -> list[tuple]:
    (results,) = pipeline.stream([Request(CONTEXT, QUESTIONS, GOOD)])
    return texts(results)


@pytest.mark.parametrize("query_aware", [False, True])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_press_that_fails_observing_spoils_no_other(
    pipeline: CompressingPipeline, layer: int, query_aware: bool
) -> None:
    broken = BrokenPress(layer=layer)
    variants = [*GOOD[:1], (broken, 0.25), (broken, 0.5), *GOOD[1:]]
    (alone,) = pipeline.stream([Request(CONTEXT, QUESTIONS, GOOD, query_aware)])
    (results,) = pipeline.stream([Request(CONTEXT, QUESTIONS, variants, query_aware)])
    failed = [result for result in results if result.error]
    assert [(result.variant.budget.ratio, result.question) for result in failed] == [
        (r, q) for r in (0.25, 0.5) for q in range(4)
    ]
    assert all(
        "failed observing layer" in str(result.error) and "broken on purpose" in str(result.error)
        for result in failed
    )
    assert texts([result for result in results if not result.error]) == texts(alone)
    with pytest.raises(ValueError, match="broken on purpose"):
        pipeline.sweep(CONTEXT, QUESTIONS, variants)


def test_a_ratio_that_fails_spoils_no_other(pipeline: CompressingPipeline) -> None:
    broken = BrokenPress(ratio=0.5)
    (results,) = pipeline.stream(
        [Request(CONTEXT, QUESTIONS, [(broken, 0.25), (broken, 0.5), (broken, 0.75)])]
    )
    assert [bool(result.error) for result in results] == [False] * 4 + [True] * 4 + [False] * 4


def test_a_context_that_fails_spoils_no_other(pipeline: CompressingPipeline, expected: list[tuple]) -> None:
    too_long = Request("x" * 10**5, QUESTIONS, GOOD)
    good, bad, again = pipeline.stream(
        [Request(CONTEXT, QUESTIONS, GOOD), too_long, Request(CONTEXT, QUESTIONS, GOOD)]
    )
    assert texts(good) == texts(again) == expected
    assert all(isinstance(result, Failure) and "window" in str(result.error) for result in bad)
    assert len(bad) == len(expected)


def test_a_context_that_does_not_fit_beside_others_is_read_alone(
    pipeline: CompressingPipeline, expected: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, written = Scheduler._read, []

    def crowded(self, request):
        written.append(len(self.decoder.waiting) + len(self.decoder.alive))
        if written[-1]:
            error = torch.OutOfMemoryError("out")
            return ContextResults(
                [
                    Failure(Variant(*variant), q, error)
                    for variant in request.press
                    for q in range(len(request.questions))
                ]
            )
        return read(self, request)

    monkeypatch.setattr(Scheduler, "_read", crowded)
    first, second = pipeline.stream([Request(CONTEXT, QUESTIONS, GOOD), Request(CONTEXT, QUESTIONS, GOOD)])
    assert texts(first) == texts(second) == expected
    assert written == [0, len(expected), 0]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("out"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=repr,
)
@pytest.mark.parametrize("fits", [1, 2, 5])
def test_memory_that_runs_out_halves_the_batch_and_changes_no_answer(
    pipeline: CompressingPipeline,
    expected: list[tuple],
    monkeypatch: pytest.MonkeyPatch,
    fits: int,
    error: Exception,
) -> None:
    forward, sizes, struck = Decoder._forward, [], []

    def limited(self, ids, positions, cache):
        sizes.append(len(ids))
        if len(ids) > fits:
            raise error
        if len(ids) > 1 and not struck and any(writing.answer.token_ids for writing in self.alive):
            struck.append(len(ids))  # once in the middle of an answer
            raise error
        return forward(self, ids, positions, cache)

    (undisturbed,) = pipeline.stream([Request(CONTEXT, QUESTIONS, GOOD)])
    monkeypatch.setattr(Decoder, "_forward", limited)
    (results,) = pipeline.stream([Request(CONTEXT, QUESTIONS, GOOD)])
    assert texts(results) == expected
    assert sizes_of(results) == sizes_of(undisturbed)  # what acts while answering began anew too
    assert (
        max(sizes) > fits
    )  # memory did run out: the rows read together, or those written together, were more
    assert bool(struck) == (fits > 1)
    assert all(result.answer.seconds > 0 for result in results)


def test_a_row_that_fails_alone_is_given_up(
    pipeline: CompressingPipeline, expected: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Decoder._forward

    def picky(self, ids, positions, cache):
        if any(writing.row.question is QUESTIONS[2] for writing in self.alive):
            raise RuntimeError("this question is too much")
        return forward(self, ids, positions, cache)

    monkeypatch.setattr(Decoder, "_forward", picky)
    (results,) = pipeline.stream([Request(CONTEXT, QUESTIONS, GOOD)])
    assert [result.question for result in results if result.error] == [2] * len(GOOD)
    assert all(
        result.answer.text == "" and result.answer.stop_reason == "error"
        for result in results
        if result.error
    )
    assert texts([result for result in results if not result.error]) == [
        name for name in expected if name[2] != 2
    ]


def test_a_row_of_nan_is_an_error_and_its_neighbours_answer(
    pipeline: CompressingPipeline, expected: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Decoder._read_questions

    def poisoned(self, rows, cache):
        hidden = read(self, rows, cache)
        hidden[[at for at, row in enumerate(rows) if row.question is QUESTIONS[0]]] = float("nan")
        return hidden

    monkeypatch.setattr(Decoder, "_read_questions", poisoned)
    (results,) = pipeline.stream([Request(CONTEXT, QUESTIONS, GOOD)])
    assert [result.question for result in results if result.error] == [0] * len(GOOD)
    assert all("NaN" in str(result.error) for result in results if result.error)
    assert texts([result for result in results if not result.error]) == [
        name for name in expected if name[2] != 0
    ]


@pytest.mark.parametrize("fidelity", [False, True])
def test_an_interruption_gives_what_is_decoded(fidelity: bool) -> None:
    model = tiny_model("llama", vocab_size=VOCABULARY)
    pipeline = CompressingPipeline(
        model, byte_tokenizer(), options=PipelineOptions(max_context_gb=1e-9, fidelity=fidelity)
    )
    uneven = [
        Question(one.text, "", 2 if at < 3 else 30, min_new_tokens=2 if at < 3 else 30)
        for at, one in enumerate(QUESTIONS)
    ]

    def requests():
        yield Request(CONTEXT, uneven, GOOD)
        raise KeyboardInterrupt

    stream = pipeline.stream(requests())
    results = next(stream)
    written = (
        [True, True, True, False] if not fidelity else [False] * 4
    )  # a record without fidelity would never get it
    assert [bool(result.answer.stop_reason) for result in results] == written * len(GOOD)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
