"""Presses that follow kvpress's interface run unchanged in a sweep (tests/support/peer runs real ones)."""

from pathlib import Path

import pytest
import torch

from kvcache.budget import Budget
from longpress.catalogue import presses
from longpress.evaluation.choices import make_press
from presses import KnormPress
from presses.from_kvpress import FromKVPress
from tests.support.foreign_presses import (
    CALLS,
    MaskingPress,
    NormPress,
    OnlyScore,
    RatioNormPress,
    WrappedPress,
)
from tests.support.prefilled_contexts import TOKENS, logits_after, observations, read_context
from tests.support.tiny_models import KV_HEADS, LAYERS, tiny_ids, tiny_model


@pytest.mark.parametrize(
    "press",
    [NormPress(), RatioNormPress(), WrappedPress(NormPress()), OnlyScore()],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma3"])
def test_a_sweep_keeps_what_the_press_keeps(press, family: str) -> None:
    ours, adapted = KnormPress(), FromKVPress(press)
    prefilled = read_context(tiny_model(family), [ours, adapted])
    layers = prefilled.prefill.layers
    for evidence in zip(
        ours.select(prefilled.observer.evidence[ours.identity()], Budget(ratio=0.5)),
        adapted.select(
            adapted.probe(prefilled.prefill, prefilled.observer.evidence[adapted.identity()]),
            Budget(ratio=0.5),
        ),
        strict=True,
    ):
        assert torch.equal(evidence[0].keep, evidence[1].keep)
    for ratio, context in zip((0.25, 0.9), prefilled.compress(adapted, (0.25, 0.9)), strict=True):
        context.check_budget(adapted, Budget.of(ratio))
        assert [context.entries()[index] for index in layers] == [
            [Budget(ratio=ratio).entries(TOKENS)] * KV_HEADS
        ] * len(layers)
        assert all(not hasattr(layer.self_attn, "note") for layer in prefilled.prefill.model.model.layers)


def test_a_score_is_asked_once_for_all_ratios_unless_it_looks_at_the_ratio() -> None:
    for press, times in ((NormPress(), 1), (RatioNormPress(), 1 + 2), (WrappedPress(NormPress()), 2)):
        CALLS.clear()
        adapted = FromKVPress(press)
        read_context(tiny_model("llama"), [adapted]).compress(adapted, (0.25, 0.5))
        assert len(CALLS) == LAYERS * times, type(press).__name__


def test_inside_a_prefill_it_gives_the_logits_of_our_own_press() -> None:
    model, continuation = tiny_model("llama"), tiny_ids(4, seed=3)
    expected = logits_after(model, KnormPress(0.5), continuation)
    for press in (NormPress(), WrappedPress(NormPress()), OnlyScore()):
        torch.testing.assert_close(
            logits_after(model, FromKVPress(press, 0.5), continuation), expected, rtol=1e-4, atol=1e-4
        )


def test_masked_entries_leave_memory() -> None:
    adapted = FromKVPress(MaskingPress())
    (context,) = read_context(tiny_model("llama"), [adapted]).compress(adapted, [0.5])
    assert [sum(heads) for heads in context.entries()] == [
        KV_HEADS * TOKENS - int(KV_HEADS * TOKENS * 0.5)
    ] * LAYERS
    assert any(len(set(heads)) > 1 for heads in context.entries())
    assert context.kept_fraction == pytest.approx(0.5, abs=0.01)


def test_presses_that_differ_are_told_apart() -> None:
    assert FromKVPress(NormPress(0.5)).identity() == FromKVPress(NormPress(0.9)).identity()
    assert FromKVPress(NormPress(power=2.0)).identity() != FromKVPress(NormPress()).identity()
    assert (
        FromKVPress(WrappedPress(NormPress(power=2.0))).identity()
        != FromKVPress(WrappedPress(NormPress())).identity()
    )


def test_what_cannot_run_is_refused() -> None:
    class Replaying(NormPress):
        def __call__(self, model):
            return None

    for given, words in (
        (object(), "neither score nor compress"),
        (Replaying(), "a __call__ of its own"),
        (None, "give the press to run"),
    ):
        with pytest.raises(ValueError, match=words):
            FromKVPress(given)


def test_a_file_of_presses_dir_brings_a_foreign_press(tmp_path: Path) -> None:
    (tmp_path / "foreign.py").write_text(
        '"""A press written for kvpress."""\n'
        "from dataclasses import dataclass\nfrom presses.from_kvpress import FromKVPress\n"
        "from tests.support.foreign_presses import NormPress\n\n\n"
        "@dataclass(frozen=True)\nclass ForeignPress(FromKVPress):\n"
        "    def make(self):\n        return NormPress(power=2.0)\n"
    )
    press = make_press("foreign", presses(tmp_path))
    assert press.name == "foreign"
    assert press.parameters() == {"press": "NormPress", "power": 2.0}
    assert all(isinstance(press.observe(layer), torch.Tensor) for layer in observations(tiny_model("llama")))
