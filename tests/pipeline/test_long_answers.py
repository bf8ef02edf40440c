"""Answers of 32k tokens: a press that acts while decoding holds its budget to the end."""

import pytest

from longpress import CompressingPipeline, Question, Request
from longpress.pipeline.decode import Decoder
from longpress.pipeline.options import PipelineOptions
from presses import DecodingPress, KnormPress
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.tiny_models import HEAD_DIM, KV_HEADS, LAYERS, tiny_model

CONTEXT = "The quick brown fox jumps over the lazy dog. "
TOKEN = 2 * LAYERS * KV_HEADS * HEAD_DIM * 4
"""Bytes of a token in the cache of the tiny model."""


@pytest.mark.parametrize("tokens", [300, pytest.param(32768, marks=pytest.mark.slow)])
def test_a_press_holds_its_budget_while_a_long_answer_is_written(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, interval = 128, 64
    capacities: list[int] = []
    step = Decoder._step

    def watched(self: Decoder) -> None:
        step(self)
        assert self.cache is not None
        capacities.append(max(layer.tail_keys.shape[2] for layer in self.cache.growing))

    monkeypatch.setattr(Decoder, "_step", watched)
    model = tiny_model("llama", vocab_size=VOCABULARY, max_position_embeddings=40000)
    pipeline = CompressingPipeline(
        model, byte_tokenizer(), options=PipelineOptions(temperature=1.0, top_p=0.95)
    )
    press = DecodingPress(KnormPress(), compression_interval=interval, target_size=target)
    question = Question("Go on.", max_new_tokens=tokens, min_new_tokens=tokens, seed=1)
    (result,) = next(pipeline.stream([Request(CONTEXT, [question], [(press, 0.5)])]))
    assert result.error is None, result.error
    assert (len(result.answer.token_ids), result.answer.stop_reason) == (tokens, "length")

    # measured after every token: never more than the target and what is written until the next compression
    sizes = result.answer.cache_bytes
    assert len(sizes) == tokens
    assert max(sizes) <= (target + interval) * TOKEN
    assert min(sizes[2 * interval :]) >= target * TOKEN
    # nor does the memory behind it grow with the answer
    assert max(capacities) <= 4 * interval
    # the plan bounds it
    assert pipeline.plan(Request(CONTEXT, [question], [(press, 0.5)])).decoding > max(sizes)
