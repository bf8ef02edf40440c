"""A model on two devices (`device_map`) compresses and answers as on one, and mixes no tensors of the two."""

from functools import cache

import pytest
import torch

from longpress import CompressingPipeline, Variant
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.catalogue_presses import NAMES, has_no_ratio, press_named
from tests.support.made_up_devices import Placed, made_up_devices, place
from tests.support.prefilled_contexts import logits_after, model_of
from tests.support.tiny_models import tiny_ids, tiny_model


@cache
def divided(**shape: int) -> torch.nn.Module:
    """As `device_map` divides it: embeddings and the first layer on one device, the rest on the next."""
    model = tiny_model("llama", **shape)
    first, *others = model.model.layers
    for module in (model.model.embed_tokens, model.model.rotary_emb, first):
        place(module, "cpu:0")
    for module in (*others, model.model.norm, model.lm_head):
        place(module, "cpu:1")
    return model


def test_devices_cannot_be_mixed_here() -> None:
    with made_up_devices():
        first, second = torch.arange(3, device="cpu:0"), torch.arange(3, device="cpu:1")
        with pytest.raises(RuntimeError, match="same device"):
            first + second
        with pytest.raises(RuntimeError, match="same device"):
            first + torch.arange(3)
        assert (first.to(second.device) + second).tolist() == [0, 2, 4]
        assert (first + torch.tensor(1)).device == first.device


@pytest.mark.parametrize("name", NAMES)
def test_a_press_gives_the_logits_of_one_device(name: str) -> None:
    press = press_named(name)
    if not has_no_ratio(press) and not press.traits.has_fixed_budget:
        object.__setattr__(press, "compression_ratio", 0.5)
    continuation = tiny_ids(4, seed=1)
    whole = logits_after(model_of("llama"), press, continuation)
    with made_up_devices():
        parted = logits_after(divided(), press, continuation)
        assert parted.device == torch.device("cpu:1")
        assert isinstance(parted, Placed)
        torch.testing.assert_close(parted.held, whole, rtol=0, atol=1e-6)


def test_a_sweep_of_two_questions_gives_the_answers_of_one_device() -> None:
    tokenizer, context = byte_tokenizer(), "The quick brown fox jumps over the lazy dog. " * 6
    names = ("none", "snapkv", "adakv", "think", "key_rerotation", "kvzip", "cake", "decoding")
    variants = [
        Variant(press_named(name), ratio)
        for name in names
        for ratio in ((0.0,) if name == "none" else (0.25, 0.75))
    ]
    swept = []
    for model in (tiny_model("llama", vocab_size=VOCABULARY), divided(vocab_size=VOCABULARY)):
        with made_up_devices():
            pipeline = CompressingPipeline(model, tokenizer)
            results = pipeline(
                context, questions=["Who?", "Over whom does it jump?"], press=variants, max_new_tokens=8
            ).results
            swept.append(
                [
                    (result.answer.token_ids, result.context.entries(), result.answer.cache_bytes)
                    for result in results
                ]
            )
    assert len(swept[0]) == 2 * len(variants)
    assert swept[1] == swept[0]
