"""On a real model and RULER sample: 33 variants from one prefill answer as 33 separate runs."""

from dataclasses import replace

import pytest

from benchmarks.ruler import RulerBenchmark
from longpress import CompressingPipeline, Question
from longpress.catalogue import presses
from longpress.models.loading import LoadedModel
from longpress.pipeline.options import PipelineOptions

NAMES = (
    "knorm",
    "keydiff",
    "streaming_llm",
    "snapkv",
    "tova",
    "expected_attention",
    "observed_attention",
    "adakv",
)


@pytest.mark.slow
def test_33_variants_from_one_prefill_answer_as_33_runs(
    smollm2: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sample,) = RulerBenchmark(tasks=("niah_single_2",), length=1024, haystack="walden").samples(
        smollm2.tokenizer, smollm2.window, 1
    )
    pipeline = CompressingPipeline(smollm2.model, smollm2.tokenizer)
    question = Question(sample.question, sample.answer_prefix, 16)
    variants = [(presses()["none"].load()(), 0.0)]
    variants += [(presses()[name].load()(), ratio) for name in NAMES for ratio in (0.25, 0.5, 0.75, 0.9)]
    forwards: list[int] = []
    forward = pipeline._forward
    monkeypatch.setattr(pipeline, "_forward", lambda *arguments: forwards.append(1) or forward(*arguments))
    together = pipeline.sweep(sample.context, [question], variants)
    assert len(forwards) == 1
    for (press, ratio), (answer,) in zip(variants, together, strict=True):
        alone = pipeline(sample.context, question=question, press=replace(press, compression_ratio=ratio))
        assert alone["answer"] == answer, (press.name, ratio)
    assert len(forwards) == 1 + 33
    assert sample.references[0] in together[0][0]


@pytest.mark.slow
def test_compressing_while_reading_needs_less_cache_and_still_finds_the_needle(smollm2: LoadedModel) -> None:
    (sample,) = RulerBenchmark(tasks=("niah_single_1",), length=2048).samples(
        smollm2.tokenizer, smollm2.window, 1
    )
    question = Question(sample.question, sample.answer_prefix, 16)
    variants = [(presses()[name].load()(), 0.5) for name in ("snapkv", "keydiff")]
    shared = CompressingPipeline(smollm2.model, smollm2.tokenizer, options=PipelineOptions(prefill_chunk=256))
    chunked = CompressingPipeline(
        smollm2.model, smollm2.tokenizer, options=PipelineOptions(compress_every=256)
    )
    whole, pieces = (
        pipeline(sample.context, question=question, press=variants).results for pipeline in (shared, chunked)
    )
    for one, other in zip(whole, pieces, strict=True):
        assert one.context.peak_entries is None
        assert other.context.bytes <= one.context.bytes
        assert other.context.peak_entries < 0.65 * one.context.full_entries
        assert max(other.answer.cache_bytes) <= max(one.answer.cache_bytes)
    assert sample.references[0] in pieces[1].answer.text
