"""The needle test: grid, insertion, scores."""

import random
import string
from pathlib import Path
from typing import Any

import pytest

from benchmarks.base import Sample
from benchmarks.niah import ANSWER, NEEDLE, NiahBenchmark, insert, rouge1_f
from tests.support.end_to_end import check_end_to_end
from tests.support.word_tokenizer import WordTokenizer

WIDE = 10**6


def make(limit: int | None = None, **options: Any) -> list[Sample]:
    return list(
        NiahBenchmark(**{"tasks": ("512", "1000"), "haystack": "walden", **options}).samples(
            WordTokenizer(), WIDE, limit
        )
    )


def test_grid() -> None:
    samples = make(depths=5, draws=2)
    assert [sample.id for sample in samples] == [
        f"{task}/{row}" for task in ("512", "1000") for row in range(10)
    ]
    assert [sample.metadata["depth"] for sample in samples] == [0, 25, 50, 75, 100] * 4
    assert [sample.metadata["draw"] for sample in samples[:10]] == [0] * 5 + [1] * 5
    assert len({sample.context_id for sample in samples}) == 20


@pytest.mark.parametrize("length", ["512", "1024", "2048", "4096", "16384"])
def test_laws(length: str) -> None:
    benchmark, count = NiahBenchmark(tasks=(length,), depths=4, draws=1, haystack="walden"), WordTokenizer()
    samples = list(benchmark.samples(WordTokenizer(), WIDE))
    rng = random.Random(0)
    for sample in samples:
        prompt = sample.context + sample.question + sample.answer_prefix
        parts = sum(
            len(count.encode(part)) for part in (sample.context, sample.question, sample.answer_prefix)
        )
        assert (
            max(len(count.encode(prompt)), parts) + sample.max_new_tokens
            == sample.metadata["length"]
            <= int(length)
        )
        assert sample.metadata["length"] >= int(length) * 0.99 - 2
        assert prompt.startswith("<|im_start|> This is a very long story book: <book> ")
        assert prompt.endswith(
            " </book>.\n Based on the content of the book, "
            "Question: The best thing to do in San Francisco is: \nAnswer:"
        )
        [(start, end)] = sample.evidence
        assert sample.context[start:end] == NEEDLE and sample.context.count(NEEDLE) == 1
        assert (
            sample.context[:start].endswith((". ", "? ", "! ", '" ', "<book> "))
            or sample.metadata["depth"] == 100
        )
        assert sample.stop == ("\n",) and sample.max_new_tokens == 30 and not sample.chat_template
        assert next(iter(benchmark.score(sample, sample.references[0]).items())) == ("word_overlap", 1.0)
        assert benchmark.score(sample, sample.references[0])["substring"] == 1
        assert set(benchmark.score(sample, "").values()) == {0.0}
        for score in benchmark.score(sample, "".join(rng.choices(string.printable, k=300))).values():
            assert 0 <= score <= 1
    assert [sample.metadata["depth"] for sample in samples] == [0, 33, 67, 100]


def test_deterministic_prefix_and_seed() -> None:
    assert make(3) == [sample for sample in make() if int(sample.id.split("/")[1]) < 3]
    other = make(seed=1)
    for left, right in zip(make(), other, strict=True):
        assert (left.context == right.context) == (
            left.metadata["draw"] == 0
        )  # the first draw begins where the essays begin


def test_chat_template_replaces_the_mark() -> None:
    sample = make(1, chat_template=True)[0]
    assert sample.chat_template and sample.context.startswith("This is a very long story book: <book> ")


def test_insertion_moves_back_to_a_sentence() -> None:
    sentences = ["One two.", "Three four five.", "Six."]
    assert insert(sentences, 0) == (NEEDLE + "One two. Three four five. Six.", 0)
    assert insert(sentences, 60)[0] == "One two. " + NEEDLE + "Three four five. Six."
    assert insert(sentences, 100)[0] == "One two. Three four five. Six." + NEEDLE


def test_scores() -> None:
    benchmark, sample = NiahBenchmark(), make(1)[0]
    half = benchmark.score(sample, "Eat a SANDWICH")
    assert half["word_overlap"] == pytest.approx(3 / 11) and half["substring"] == 0
    assert benchmark.score(sample, "sunny day")["word_overlap"] == pytest.approx(
        1 / 11
    )  # "day." has its full stop
    full = benchmark.score(sample, "You should eat a sandwich and sit in Dolores Park on a sunny  day")
    assert full["substring"] == 1 and full["word_overlap"] == pytest.approx(10 / 11)
    assert rouge1_f(NEEDLE, NEEDLE.upper()) == 1
    assert rouge1_f(NEEDLE, "a a a") == pytest.approx(2 * 2 / (21 + 3))
    assert rouge1_f(NEEDLE, ANSWER) == pytest.approx(2 * 12 / (21 + 12))


def test_predictions() -> None:
    benchmark = NiahBenchmark()
    row = {
        "context_length": 1000,
        "depth_percent": 11.0,
        "needle": NEEDLE,
        "model_response": ANSWER,
        "score": 7.5,
    }
    [(sample, prediction)] = benchmark.read_predictions([(1, row)], None)
    assert sample.task == "1000" and benchmark.score(sample, prediction)["word_overlap"] == 1
    [(sample, prediction)] = benchmark.read_predictions([(1, {"pred": "sit"})], "2048")
    assert sample.task == "2048" and benchmark.score(sample, prediction)["word_overlap"] == pytest.approx(
        1 / 11
    )
    with pytest.raises(ValueError, match="line 4: no field 'model_response'"):
        list(benchmark.read_predictions([(4, {})], "2048"))
    with pytest.raises(ValueError, match="line 4: the length 'x'"):
        list(benchmark.read_predictions([(4, {"pred": ""})], "x"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("12",)}, "niah has no task '12'"),
        ({"draws": 0}, "draws=0"),
        ({"depths": 0}, "depths=0"),
        ({"haystack": "x"}, "choose one of auto"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NiahBenchmark(**options)


def test_lengths_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="length 4096 exceeds the model's window of 2048"):
        next(NiahBenchmark().samples(WordTokenizer(), 2048))
    with pytest.raises(ValueError, match="too short with this tokenizer"):
        next(NiahBenchmark(tasks=("512",), template_tokens=450).samples(WordTokenizer(), WIDE))


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    check_end_to_end("niah", tmp_path / "results", "benchmark.tasks=['1024']", "benchmark.haystack=walden")
