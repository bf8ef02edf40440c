"""Compression while reading: one chunk is the shared prefill, budgets add up, the cache's peak shrinks."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from kvcache.attention import attending
from kvcache.budget import Budget
from kvcache.cache import CompressedCache, CompressedLayer
from kvcache.hooks.prefill import PromptTokens
from kvcache.modules import cache_keyword
from longpress import CompressingPipeline, Variant
from longpress.catalogue import presses
from longpress.pipeline.compress_while_reading import read_and_compress
from longpress.pipeline.compressed_context import CompressedContext
from longpress.pipeline.options import PipelineOptions
from presses import (
    AdaKVPress,
    ExpectedAttentionPress,
    FinchPress,
    KeyRerotationPress,
    KnormPress,
    NonePress,
    SnapKVPress,
)
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.catalogue_presses import has_no_ratio
from tests.support.each_family import each_family
from tests.support.learned_weights import with_weights
from tests.support.tiny_models import KV_HEADS, LAYERS, tiny_ids, tiny_model

TOKENS, SIZE = 203, 64
CHUNKS = [64, 64, 64, 11]
CONTEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 4


@cache
def pipeline_of(family: str = "llama", size: int = SIZE, **options) -> CompressingPipeline:
    return CompressingPipeline(
        tiny_model(family, vocab_size=VOCABULARY, **options),
        byte_tokenizer(),
        options=PipelineOptions(compress_every=size),
    )


def read(family: str, press, ratio: float, size: int = SIZE, watched=(), **options) -> CompressedContext:
    pipeline = pipeline_of(family, size, **options)
    prompt_tokens = PromptTokens(0, (), lambda text: ())
    ids = tiny_ids(TOKENS) % VOCABULARY
    kept, _ = read_and_compress(
        pipeline.model, ids, Variant(press, ratio), size, pipeline._forward, prompt_tokens, watched
    )
    return kept


def logits_on(model, kept: CompressedContext, ids: torch.Tensor) -> torch.Tensor:
    stored = CompressedCache([CompressedLayer([layer], kept.next_position) for layer in kept.layers])
    positions = kept.next_position + torch.arange(ids.shape[1])[None]
    with torch.no_grad(), attending(model):
        return model(ids, position_ids=positions, **{cache_keyword(model): stored}).logits


@pytest.mark.parametrize("name", sorted(presses()))
def test_every_press_meets_its_budget_chunk_by_chunk_or_is_refused_with_a_sentence(name: str) -> None:
    press = with_weights(presses()[name].load()())
    ratio = 0.0 if has_no_ratio(press) else press.compression_ratio if press.traits.has_fixed_budget else 0.5
    if press.traits.needs_whole_context or press.acts_while_decoding(Budget.of(ratio)):
        with pytest.raises(ValueError, match="compress_every"):
            read("llama", press, ratio)
        return
    kept = read("llama", press, ratio)
    assert [tokens for tokens, _ in kept.chunks] == CHUNKS
    kept.check_budget(press, Budget.of(ratio))
    assert kept.next_position == TOKENS
    assert bool(logits_on(pipeline_of().model, kept, torch.tensor([[7, 8, 9]])).isfinite().all())


@each_family()
def test_at_ratio_0_chunks_change_nothing(family: str) -> None:
    options = {"sliding_window": 48} if family == "gemma3" else {}
    model = pipeline_of(family, SIZE, **options).model
    ids = tiny_ids(TOKENS) % VOCABULARY
    after = torch.tensor([[17, 18, 19]])
    with torch.no_grad():
        whole = model(torch.cat((ids, after), dim=1)).logits[:, -3:]
    kept = read(family, KnormPress(), 0.0, **options)
    assert kept.bytes == kept.full_bytes
    torch.testing.assert_close(logits_on(model, kept, after), whole, atol=1e-4, rtol=1e-4)


@each_family()
def test_the_first_chunk_is_kept_as_a_context_of_its_own_and_later_ones_are_read_on_what_is_left(
    family: str,
) -> None:
    model = pipeline_of(family).model
    press = replace(KnormPress(), compression_ratio=0.5)
    ids = tiny_ids(TOKENS) % VOCABULARY
    kept = read(family, press, 0.5)
    first = read(family, press, 0.5, size=TOKENS)
    short = pipeline_of(family)._forward(ids[:, :SIZE], press, PromptTokens(0, (), lambda text: ()), 0)
    for index in kept.observed:
        ours, theirs = kept.layers[index].storage, short.layers[index].blocks[0].storage
        assert torch.equal(ours.keys[:, : SIZE // 2], theirs.keys)
        assert torch.equal(ours.values[:, : SIZE // 2], theirs.values)
    assert kept.entries()[-1] == [sum(Budget(ratio=0.5).entries(n) for n in CHUNKS)] * KV_HEADS
    assert first.entries()[-1] == [Budget(ratio=0.5).entries(TOKENS)] * KV_HEADS
    after = torch.tensor([[17, 18, 19]])
    assert not torch.allclose(logits_on(model, kept, after), logits_on(model, first, after), atol=1e-3)


@pytest.mark.parametrize(("asked", "met"), [(100, 100), (57, 57), (4, 4), (2, 4), (500, TOKENS)])
def test_a_budget_in_tokens_is_met_whatever_the_chunks_as_long_as_each_keeps_an_entry(
    asked: int, met: int
) -> None:
    pipeline = pipeline_of()
    variant = Variant(KnormPress(), Budget(tokens=asked))
    prompt_tokens = PromptTokens(0, (), lambda text: ())
    kept, _ = read_and_compress(
        pipeline.model, tiny_ids(TOKENS) % VOCABULARY, variant, SIZE, pipeline._forward, prompt_tokens
    )
    assert kept.entries() == [[met] * KV_HEADS] * LAYERS
    kept.check_budget(variant.press, variant.budget)


def test_the_peak_is_what_earlier_chunks_keep_and_one_chunk() -> None:
    kept = read("llama", KnormPress(), 0.75)
    held = sum(Budget(ratio=0.75).entries(n) for n in CHUNKS[:2]) + SIZE
    assert kept.peak_entries == LAYERS * KV_HEADS * max(SIZE, held)
    assert kept.full_entries == LAYERS * KV_HEADS * TOKENS
    assert kept.kept_fraction == sum(Budget(ratio=0.75).entries(n) for n in CHUNKS) / TOKENS
    assert read("llama", NonePress(), 0.0).peak_entries == kept.full_entries


def test_survival_of_watched_positions_is_weighed_over_chunks() -> None:
    recent = presses()["streaming_llm"].load()()  # of 64 keeps the first 4 and the last 12, of 11 the first 2
    kept = read("llama", recent, 0.75, watched=[[0, 5, 64, 65, 70, 127, 192], []])
    assert kept.evidence_kept == [pytest.approx(5 / 7), 1.0]


def test_one_chunk_is_the_shared_prefill_bit_by_bit_and_nothing_is_shared_below() -> None:
    variants = [
        (NonePress(), 0.0),
        (SnapKVPress(), 0.5),
        (AdaKVPress(ExpectedAttentionPress()), 0.75),
        (KnormPress(), 0.9),
    ]
    shared = CompressingPipeline(pipeline_of().model, byte_tokenizer())(
        CONTEXT, questions=["Who?", "Why?"], press=variants
    ).results
    longest = pipeline_of(size=100000)(CONTEXT, questions=["Who?", "Why?"], press=variants).results
    for one, other in zip(shared, longest, strict=True):
        assert one.answer.token_ids == other.answer.token_ids
        assert one.context.entries() == other.context.entries()
        assert other.context.peak_entries == one.context.full_entries
        for ours, theirs in zip(one.context.layers, other.context.layers, strict=True):
            for at, entries in enumerate(ours.entries()):
                one_head, other_head = (
                    kept.read()[0][at, :entries].sort(0).values for kept in (ours, theirs)
                )
                assert one_head.equal(other_head)
    pipeline = pipeline_of()
    alone = [
        pipeline(CONTEXT, question="Who?", press=replace(p, compression_ratio=r))["answer"]
        for p, r in variants[1:]
    ]
    assert [row[0] for row in pipeline.sweep(CONTEXT, ["Who?", "Why?"], variants[1:])] == alone


@pytest.mark.parametrize(
    "press", [KeyRerotationPress(KnormPress()), FinchPress(), KeyRerotationPress(FinchPress())]
)
def test_presses_that_move_positions_are_refused(press) -> None:
    with pytest.raises(ValueError, match="compress_every"):
        read("llama", press, 0.5)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "64"])
@pytest.mark.parametrize("option", ["compress_every", "prefill_chunk"])
def test_a_size_that_cannot_be_is_refused_with_its_options(option: str, size: object) -> None:
    with pytest.raises(ValueError, match=f"{option}={size!r} must be a positive number of tokens, or null"):
        PipelineOptions(**{option: size})


def test_a_context_that_outgrows_the_window_of_every_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="sliding window"):
        read("mistral", KnormPress(), 0.5, sliding_window=96)
