"""What a run asks fits the model's window with template and special tokens, or is refused before work."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.base import Benchmark, Sample
from benchmarks.longbench import LongbenchBenchmark
from benchmarks.loogle import LoogleBenchmark
from benchmarks.math500 import Math500Benchmark
from benchmarks.niah import NiahBenchmark
from benchmarks.ruler import RulerBenchmark
from benchmarks.zero_scrolls import ZeroScrollsBenchmark
from longpress.evaluation.prompt_measure import PromptMeasure
from longpress.evaluation.runner import check_window
from longpress.pipeline.options import PipelineOptions
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.made_up_tokenizers import INSTRUCTION, TOKENIZERS, prose

WINDOW = 1200
LONG_TEMPLATE = INSTRUCTION + " please answer as well as you can, in a few words," * 9
"""A template of far more tokens than most have."""
FIELDS = {
    "document_start_index": 0,
    "document_end_index": 6000,
    "query_start_index": 6000,
    "query_end_index": 6020,
    "truncation_seperator": "... [cut]\n\n",
}


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path.parent)


def longbench(folder: Path) -> Benchmark:
    row = {
        "context": text(9000),
        "input": "Who?",
        "answers": ["x"],
        "length": 9,
        "all_classes": None,
        "_id": 1,
    }
    path = written(folder / "qasper.jsonl", [row])
    return LongbenchBenchmark(path=path, tasks=("qasper",), max_length=5000)


def loogle(folder: Path) -> Benchmark:
    row = {"context": text(9000), "question": "Who lives at the pond?", "answer": "He.", "title": "Walden"}
    return LoogleBenchmark(
        path=written(folder / "shortdep_qa.jsonl", [row]), tasks=("shortdep_qa",), chat_template=True
    )


def zero_scrolls(folder: Path) -> Benchmark:
    row = {"id": "1", "input": text(6000) + "Question? Who is it?", "output": "He.", **FIELDS}
    written(folder / "qasper" / "validation.jsonl", [row])
    return ZeroScrollsBenchmark(path=str(folder), tasks=("qasper",))


def math500(folder: Path) -> Benchmark:
    return Math500Benchmark(path=written(folder / "test.jsonl", [{"problem": text(100), "answer": "1"}]))


SUITES: dict[str, Callable[[Path], Benchmark]] = {
    "longbench": longbench,
    "loogle": loogle,
    "zero_scrolls": zero_scrolls,
    "math500": math500,
    "niah": lambda folder: NiahBenchmark(tasks=("1000",), depths=2, draws=1),
    "niah in chat": lambda folder: NiahBenchmark(tasks=("1000",), depths=2, draws=1, chat_template=True),
    "ruler as long as the window": lambda folder: RulerBenchmark(
        tasks=("niah_single_1", "fwe"), length=WINDOW, samples_per_task=1
    ),
    "ruler without its template": lambda folder: RulerBenchmark(
        tasks=("niah_single_2",), length=1000, samples_per_task=1, template_tokens=None
    ),
}
FILLED = {"niah": 1000, "niah in chat": 1000, "ruler without its template": 1000}
"""The suites that promise a length of their own, which prompt, template and answer stay within."""


def text(characters: int) -> str:
    return " ".join(" ".join(prose()).split())[:characters]


def measures() -> Iterator[tuple[str, PromptMeasure]]:
    for name, made in TOKENIZERS.items():
        if name == "words":
            continue  # loses white space, so that nothing can be cut as it was
        tokenizer = made()
        if name.startswith("SentencePiece"):
            tokenizer.chat_template = LONG_TEMPLATE
        yield name, PromptMeasure(tokenizer, PipelineOptions())


def shortest_of(folder: Path, window: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a suite that neither cuts nor refuses, in a window."""
    samples = [Sample(f"t/{n}", "t", "word " * (10 + 90 * n), "Who?", ("x",)) for n in range(3)]
    check_window(RulerBenchmark(), samples, PromptMeasure(byte_tokenizer(), PipelineOptions()), window)
    return capsys.readouterr().err


def test_a_suite_of_ones_own_is_told_before_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ValueError,
        match=r"even the shortest prompt, t/0, takes 120 tokens .* choose another benchmark\.length",
    ):
        shortest_of(tmp_path, 119, capsys)
    assert "some answers will fail: the prompt t/2 takes 1020 tokens" in shortest_of(tmp_path, 120, capsys)
    assert shortest_of(tmp_path, 1020, capsys) == ""


@pytest.mark.parametrize("suite", SUITES)
def test_every_sample_fits_the_window_and_fills_it_where_it_is_cut(suite: str, tmp_path: Path) -> None:
    benchmark = SUITES[suite](tmp_path)
    for name, measure in measures():
        window = FILLED.get(suite, WINDOW) if name != "slow bytes" or suite == "math500" else WINDOW
        samples: list[Sample] = list(benchmark.samples(measure, WINDOW))
        assert samples
        for sample in samples:
            needed = measure.needed(sample)
            assert needed <= window, (name, sample.id)
            if suite == "math500" or sample.truncated:
                assert needed >= window - 40, (name, sample.id)


def test_the_special_tokens_of_a_bare_prompt_are_counted() -> None:
    measure = PromptMeasure(TOKENIZERS["SentencePiece BPE, legacy"](), PipelineOptions())
    benchmark = NiahBenchmark(tasks=("512",), depths=3, draws=2)
    for sample in benchmark.samples(measure, 4096):
        ids = measure.prompt(False).ids(sample.context, [(sample.question, sample.answer_prefix)])
        assert len(ids.context) + len(ids.questions[0]) + sample.max_new_tokens <= 512
        assert ids.context[0] == 1


def test_a_tokenizer_alone_is_measured_too() -> None:
    """Without a run, with a template far longer than most."""
    tokenizer = TOKENIZERS["SentencePiece BPE"]()
    tokenizer.chat_template = LONG_TEMPLATE
    measure = PromptMeasure(tokenizer, PipelineOptions())
    for benchmark in (
        NiahBenchmark(tasks=("1000",), depths=1, draws=1, chat_template=True),
        RulerBenchmark(tasks=("fwe",), length=1000, samples_per_task=1),
    ):
        [sample] = benchmark.samples(tokenizer, 1000)
        assert 900 < measure.needed(sample) <= 1000 + 4  # tokens at the joints, which a run counts
