"""Rotary frequencies that depend on a length are those of each row's own prompt.

An answer is the same alone, beside others, in another order and after other contexts, for every type of
rotary embedding that transformers has; and the full cache answers as `model.generate` does for the prompt
alone.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kvcache.budget import Budget
from kvcache.hooks.prefill import observing
from kvcache.modules import cache_keyword
from kvcache.observation import LayerObservation
from kvcache.rope_frequencies import rope_length, turn
from longpress import CompressingPipeline, Question, Request, Variant
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.results import Result
from presses import (
    DecodingPress,
    ExpectedAttentionPress,
    KeyDiffPress,
    KeyRerotationPress,
    KnormPress,
    KVzipPress,
    NonePress,
    SnapKVPress,
)
from presses.base import BasePress
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.rope_models import LENGTH_DEPENDENT, ROPES, WINDOW, rope_model
from tests.support.tiny_models import tiny_ids

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. Then it woke and ran away. " * 4
SHORT, LONG = " Who?", " Over what does the fox jump, and where, and when, and why?"
N = 6  # tokens of an answer
MODELS = [
    *(("llama", rope) for rope in ROPES),
    ("phi3", "longrope"),
    ("phimoe", "longrope"),
    *(("gemma3", rope) for rope in LENGTH_DEPENDENT),
]
OTHER_MODELS = [
    (family, rope)
    for family in ("mistral", "qwen2", "qwen3", "gemma3")
    for rope in ROPES
    if (family, rope) not in MODELS
]
EVERY = [
    *(pytest.param(*model, id="-".join(model)) for model in MODELS),
    *(pytest.param(*model, id="-".join(model), marks=pytest.mark.slow) for model in OTHER_MODELS),
]
FEW = [("llama", "linear"), ("llama", "longrope")]
SOME = [
    pytest.param(*model, id="-".join(model), marks=() if model in FEW else pytest.mark.slow)
    for model in (*MODELS, *OTHER_MODELS)
]
"""The same, of which few are looked at where it takes seconds each."""
DEPENDENT = [model for model in MODELS if model[1] in LENGTH_DEPENDENT]

pytestmark = pytest.mark.filterwarnings("ignore:an answer took its text beyond")


@cache
def model_of(family: str, rope: str) -> PreTrainedModel:
    return rope_model(family, rope)


def pipeline_of(model: PreTrainedModel, **options: Any) -> CompressingPipeline:
    pipeline = CompressingPipeline(
        model, byte_tokenizer(), max_length=4096, options=PipelineOptions(**options)
    )
    pipeline.eos_ids = []
    return pipeline


def variants_for(family: str, rope: str) -> list[Variant]:
    """Every way of using rotary factors, where they depend on the length of the prompt."""
    variants = [Variant(NonePress()), Variant(SnapKVPress(window_size=16), Budget(ratio=0.5))]
    if rope not in LENGTH_DEPENDENT:
        return variants
    presses: list[BasePress] = [KVzipPress(), ExpectedAttentionPress()]
    if family != "gemma3":  # whose sliding layers cannot follow
        presses.append(KeyRerotationPress(SnapKVPress(window_size=16)))
    variants += [Variant(press, Budget(ratio=0.5)) for press in presses]
    decoding = DecodingPress(KeyDiffPress(), target_size=40, compression_interval=2)
    return [*variants, Variant(decoding, decoding.budget)]


def contexts() -> list[str]:
    """Below the window, straddling it with their questions, and beyond it."""
    return [TEXT[:end] for end in (50, WINDOW - 20, WINDOW + 60)]


def answers(
    pipeline: CompressingPipeline, asked: list[str], questions: list[str], variants: list[Variant]
) -> list[list[list[int]]]:
    """Per context, token ids by variant and question."""
    given = [Question(question, max_new_tokens=N) for question in questions]
    requests = [Request(context, given, variants) for context in asked]
    found = []
    for results in pipeline.stream(requests):
        for result in results:
            assert isinstance(result, Result) and result.error is None, result.error
        found.append([result.answer.token_ids for result in results])
    return found


def test_every_type_of_rotary_embedding_is_looked_at() -> None:
    assert set(ROPES) == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize(("family", "rope"), SOME)
def test_an_answer_is_the_same_alone_beside_others_in_another_order_and_after_others(
    family: str, rope: str
) -> None:
    model, asked, variants = model_of(family, rope), contexts(), variants_for(family, rope)
    together = answers(pipeline_of(model), asked, [SHORT, LONG], variants)
    turned = answers(pipeline_of(model), asked[::-1], [SHORT, LONG], variants)
    assert together == turned[::-1]
    for at in (0, 1):  # after all the others; one question a time, a row a batch
        one_by_one = pipeline_of(model, max_batch_gb=1e-9)
        alone = [answers(one_by_one, [asked[at]], [question], variants)[0] for question in (SHORT, LONG)]
        assert together[at] == [ids for pair in zip(*alone, strict=True) for ids in pair]


@pytest.mark.parametrize(("family", "rope"), EVERY)
def test_the_full_cache_answers_as_generate_does_for_the_prompt_alone(family: str, rope: str) -> None:
    model, pipeline = model_of(family, rope), pipeline_of(model_of(family, rope))
    prompt = pipeline._prompt(True)
    for context in contexts():
        given = [Question(question, max_new_tokens=N) for question in (SHORT, LONG)]
        for result in next(pipeline.stream([Request(context, given, [Variant(NonePress())])])):
            ids = prompt.context_ids(context) + prompt.question_ids((SHORT, LONG)[result.question], "")
            try:
                generated = deepcopy(model).generate(
                    torch.tensor([ids]), max_new_tokens=N, do_sample=False, pad_token_id=0, eos_token_id=None
                )
            except UnboundLocalError:
                pytest.skip("this transformers cannot turn one kind of layer by LongRoPE twice")
            expected = generated[0, len(ids) :].tolist()
            # Behind the window of its prompt's frequencies, LongRoPE stays with them.
            crosses = rope == "longrope" and len(ids) <= WINDOW < len(ids) + N - 1
            same = WINDOW - len(ids) + 1 if crosses else N
            assert result.answer.token_ids[:same] == expected[:same], len(ids)
            assert isinstance(result, Result) and result.answer.outgrew_rope == crosses
            assert result.context.rope_length == rope_length(model, len(ids))


@pytest.mark.parametrize(("family", "rope"), DEPENDENT)
def test_the_model_is_left_as_it_was(family: str, rope: str) -> None:
    model = rope_model(family, rope)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    embedding: Any = model.model.rotary_emb
    kept = {name: value for name, value in vars(embedding).items() if isinstance(value, int | float)}
    pipeline_of(model)(TEXT, LONG, max_new_tokens=2)
    assert {name: value for name, value in vars(embedding).items() if isinstance(value, int | float)} == kept
    assert "forward" not in vars(embedding)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize(("family", "rope"), DEPENDENT)
def test_contexts_are_read_once_per_set_of_frequencies_that_their_questions_need(
    family: str, rope: str
) -> None:
    pipeline = pipeline_of(model_of(family, rope))
    lengths: list[int] = []
    read = pipeline._forward
    pipeline._forward = lambda ids, press, tokens, length: (  # type: ignore[method-assign]
        lengths.append(length) or read(ids, press, tokens, length)
    )
    questions = [" A?", " B?", " C and D?", LONG, LONG.upper()]
    pipeline(TEXT[:90], questions=questions, press=[(KnormPress(), 0.5)], max_new_tokens=1)
    assert len(lengths) == 2 and lengths[0] == 0 and lengths[1] > WINDOW
    plan = pipeline.plan(Request(TEXT[:90], [Question(one) for one in questions], [(KnormPress(), 0.5)]))
    one = pipeline.plan(Request(TEXT[:90], [Question(one) for one in questions[:3]], [(KnormPress(), 0.5)]))
    assert plan.stored > one.stored


@pytest.mark.parametrize(
    ("family", "rope"), [("llama", "longrope"), ("llama", "dynamic"), ("phi3", "longrope")]
)
@pytest.mark.parametrize("end", [60, WINDOW - 20, WINDOW + 40])
def test_keys_move_by_the_frequencies_that_they_are_read_with(family: str, rope: str, end: int) -> None:
    """Also where the context alone lies within the window, and the prompt beyond it."""
    model, ids = model_of(family, rope), tiny_ids(end) % (VOCABULARY - 4) + 4
    length = rope_length(model, end + 30)
    stored: Any = DynamicCache(config=model.config)
    stored.rope_lengths = [length]
    layers: list[LayerObservation] = []
    with torch.no_grad(), observing(model, lambda layer, _: layers.append(layer)):
        model.model(input_ids=ids, **{cache_keyword(model.model): stored})
    press = KeyRerotationPress(KnormPress(), 0.5)
    selections = press.select([press.observe(layer) for layer in layers], Budget(ratio=0.5))
    for layer, selection in zip(layers, selections, strict=True):
        keys, _ = press.apply(layer.keys, layer.values, selection)
        before = layer.keys_before_rope().gather(2, selection.positions[..., None].expand(-1, -1, -1, 16))
        new = torch.arange(keys.shape[2])
        factors = turn(model.model.rotary_emb, layer.hidden[:, :1], new[None], [length])
        torch.testing.assert_close(keys, layer.rotary.turn(before, *factors), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "rope"), DEPENDENT)
def test_the_full_cache_read_in_compressed_chunks_answers_as_the_shared_one(family: str, rope: str) -> None:
    model = model_of(family, rope)
    for context in (TEXT[: WINDOW - 20], TEXT[: WINDOW + 60]):
        given = [Question(question, max_new_tokens=N) for question in (SHORT, LONG)]
        request = Request(context, given, [Variant(NonePress())])
        shared, chunked = (
            [result.answer.token_ids for result in next(pipeline_of(model, **options).stream([request]))]
            for options in ({}, {"compress_every": 32})
        )
        assert shared == chunked


@pytest.mark.parametrize(("family", "rope"), DEPENDENT)
def test_a_press_by_itself_answers_as_in_a_sweep(family: str, rope: str) -> None:
    pipeline = pipeline_of(model_of(family, rope))
    for context in (TEXT[: WINDOW - 20], TEXT[: WINDOW + 60]):
        pairs = [(KnormPress(), 0.5), (SnapKVPress(window_size=16), 0.3)]
        swept = pipeline.sweep(context, [SHORT, LONG], pairs, max_new_tokens=N)
        for (press, ratio), row in zip(pairs, swept, strict=True):
            single = type(press)(**{**vars(press), "compression_ratio": ratio})
            alone = pipeline(context, questions=[SHORT, LONG], press=single, max_new_tokens=N)["answers"]
            assert row == alone


@pytest.mark.parametrize(("family", "rope"), DEPENDENT)
def test_generate_inside_a_press_depends_on_neither_what_was_read_before_nor_neighbours(
    family: str, rope: str
) -> None:
    press, lengths = KnormPress(0.5), (60, WINDOW + 40, WINDOW + 90, 100, WINDOW + 20)
    rows = [(tiny_ids(length, seed=length) % (VOCABULARY - 4) + 4)[0] for length in lengths]

    def generated(model: PreTrainedModel, rows: Sequence[torch.Tensor]) -> list[list[int]]:
        longest = max(map(len, rows))
        ids = torch.stack([torch.cat((row.new_zeros(longest - len(row)), row)) for row in rows])
        mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
        with torch.no_grad(), press(model):
            out = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=N,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        found: list[list[int]] = out[:, longest:].tolist()
        return found

    one_by_one = [generated(model_of(family, rope), [row])[0] for row in rows]
    assert one_by_one == [generated(rope_model(family, rope), [row])[0] for row in rows]
    assert one_by_one == generated(model_of(family, rope), rows)


@pytest.mark.parametrize(("family", "rope"), DEPENDENT)
def test_generate_inside_a_press_goes_on_beyond_the_window_as_a_sweep_does(family: str, rope: str) -> None:
    """With the whole prompt as context, but for one token; the model's own way is restored afterwards."""
    model, press, n = model_of(family, rope), KnormPress(0.5), 12
    ids = tiny_ids(WINDOW - 3, seed=5)[0] % (VOCABULARY - 4) + 4
    prompts = pipeline_of(model).token_prompts(press)
    (swept,) = prompts.answers([ids.tolist()], Question("", max_new_tokens=n))
    with torch.no_grad(), press(model):
        keyword, stored = cache_keyword(model), DynamicCache(config=model.config)
        model.model(input_ids=ids[None, :-1], **{keyword: stored})
        out = model.generate(
            ids[None],
            **{keyword: stored},
            max_new_tokens=n,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    assert out[0, len(ids) :].tolist() == swept.token_ids
    assert "prepare_inputs_for_generation" not in vars(model)


def test_an_answer_that_outgrows_longrope_says_so_once() -> None:
    pipeline = pipeline_of(model_of("llama", "longrope"))
    with pytest.warns(UserWarning, match="original window of a model with LongRoPE") as told:
        given = [Question(SHORT, max_new_tokens=12), Question(" Whom?", max_new_tokens=12)]
        results = next(pipeline.stream([Request(TEXT[: WINDOW - 12], given, [Variant(NonePress())])]))
    assert [result.answer.outgrew_rope for result in results] == [True, True]
    assert len(told) == 1
