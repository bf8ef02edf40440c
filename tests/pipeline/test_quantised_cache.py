"""Quantised caches: one prefill for all sizes, questions blind to each other, errors grow as bits shrink."""

import pytest
import torch

from kvcache.attention import attending
from kvcache.budget import Budget
from kvcache.cache import CompressedCache, CompressedLayer
from kvcache.compress import Target
from kvcache.modules import cache_keyword
from longpress import CompressingPipeline
from longpress.models.loading import LoadedModel
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.sweep_observer import PrefilledContext, SweepObserver
from longpress.pipeline.variants import Variant
from presses import H2OPress, KnormPress, NonePress, SnapKVPress
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.tiny_models import tiny_model

CONTEXT = (
    "the quick brown fox jumps over the lazy dog while nine wizards pack my box with five dozen jugs. " * 2
)
QUESTIONS = ["who jumps?", "what does the wizard pack, and with how many of the jugs?"]
VARIANTS = [
    Variant(NonePress()),
    *(
        Variant(press, ratio, cache_bits=bits)
        for press, ratio in ((NonePress(), 0), (SnapKVPress(), 0.5))
        for bits in (16, 8, 4, 2)
    ),
    Variant(KnormPress(), Budget(tokens=40), cache_bits=2),
    Variant(H2OPress(), 0.5, cache_bits=4),
]


def make_pipeline(**options) -> CompressingPipeline:
    return CompressingPipeline(
        tiny_model("llama", vocab_size=VOCABULARY), byte_tokenizer(), options=PipelineOptions(**options)
    )


def test_the_second_question_does_not_see_the_first() -> None:
    pipeline = make_pipeline()
    both = pipeline(CONTEXT, questions=QUESTIONS, press=VARIANTS, max_new_tokens=8)
    for at, question in enumerate(QUESTIONS):
        alone = pipeline(CONTEXT, questions=[question], press=VARIANTS, max_new_tokens=8)
        assert [answers[at] for answers in both["answers"]] == [answers[0] for answers in alone["answers"]]
    one_by_one = make_pipeline(max_batch_gb=1 / 2**30)(
        CONTEXT, questions=QUESTIONS, press=VARIANTS, max_new_tokens=8
    )
    assert one_by_one["answers"] == both["answers"]
    assert len({tuple(answers) for answers in both["answers"]}) > 3


def test_reading_leaves_what_is_stored_unchanged() -> None:
    pipeline = make_pipeline()
    results = pipeline(CONTEXT, questions=QUESTIONS, press=VARIANTS[4:5], max_new_tokens=8).results
    layers = results[0].context.layers
    again = (
        pipeline(CONTEXT, questions=QUESTIONS[:1], press=VARIANTS[4:5], max_new_tokens=1)
        .results[0]
        .context.layers
    )
    for used, fresh in zip(layers, again, strict=True):
        assert torch.equal(used.storage.stored_keys.codes, fresh.storage.stored_keys.codes)
        assert torch.equal(used.storage.stored_values.codes, fresh.storage.stored_values.codes)


def test_one_prefill_serves_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, forwards = make_pipeline(), []
    forward = pipeline._forward
    monkeypatch.setattr(pipeline, "_forward", lambda *arguments: forwards.append(1) or forward(*arguments))
    results = pipeline(CONTEXT, questions=QUESTIONS, press=VARIANTS, max_new_tokens=4).results
    assert len(forwards) == 1
    kept = [result.context.kept_fraction for result in results[:: len(QUESTIONS)]]
    assert kept[0] == 1
    assert kept[1] == 0.5
    assert kept[1] > kept[2] > kept[3] > kept[4]
    # d = 16: a value has 8 bits and a scale and low of 16 bits for 16 of them, a key the same for 32 (or
    # fewer, in the last group)
    tokens = results[0].context.tokens
    assert kept[5] == tokens // 2 / tokens / 2
    groups = -(-tokens // 32)
    assert kept[2] == (tokens * (16 + 16 + 4) + groups * 16 * 4) / (tokens * 16 * 2 * 4)


@pytest.mark.slow
def test_errors_on_a_real_model(smollm2: LoadedModel) -> None:
    """On 512 tokens: how far the probabilities of the next 16 tokens move."""
    text = (
        "The library of the old town holds nine thousand books, and the woman who keeps it can say of each "
        "of them where it stands. On Mondays she walks along the shelves with a lamp, and writes down which "
        "of them have been lent, to whom, and for how long. "
    ) * 12
    ids = torch.tensor([smollm2.tokenizer(text)["input_ids"][:528]])
    model, observer, bits = smollm2.model, SweepObserver([NonePress()]), [None, 16, 8, 4, 2]
    keyword = cache_keyword(model.model)
    from transformers import DynamicCache

    with torch.no_grad(), observer(model):
        model.model(input_ids=ids[:, :512], **{keyword: DynamicCache(config=model.config)})
    contexts = PrefilledContext(observer, 0.0).compress(
        NonePress(), [Target(Budget(ratio=0.0), of_number) for of_number in bits]
    )
    layers = [
        CompressedLayer([context.layers[at] for context in contexts], 512)
        for at in range(len(contexts[0].layers))
    ]
    with torch.no_grad(), attending(model):
        hidden = model.model(
            input_ids=ids[:, 512:].expand(5, -1),
            position_ids=torch.arange(512, 528).expand(5, -1),
            **{keyword: CompressedCache(layers)},
        ).last_hidden_state
        chances = model.lm_head(hidden).log_softmax(-1)
    divergence = [
        float((chances[0].exp() * (chances[0] - chances[row])).sum(-1).mean()) for row in range(1, 5)
    ]
    print(
        [f"{bits[row + 1]} bits: {value:.2e}" for row, value in enumerate(divergence)],
        [one.kept_fraction for one in contexts],
    )
    assert divergence[0] < 1e-4
    assert divergence[1] < 1e-3
    assert divergence[1] < divergence[2] < divergence[3]
