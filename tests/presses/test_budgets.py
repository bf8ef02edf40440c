"""Budgets other than a ratio: tokens and thresholds, in a sweep with ratios, met exactly and told apart."""

import pytest
import torch

from kvcache.budget import Budget
from longpress.pipeline.variants import Variant
from presses import AdaKVPress, CompactorPress, KnormPress, NonePress, PyramidKVPress
from presses.base import BasePress
from tests.support.catalogue_presses import NAMES, has_no_ratio, press_named
from tests.support.prefilled_contexts import TOKENS, read_context
from tests.support.tiny_models import KV_HEADS, LAYERS, tiny_model


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 99, 100, 101, 203, 997, 1000, 4096, 131072])
def test_a_budget_in_tokens_keeps_exactly_that_many(tokens: int) -> None:
    for kept in {1, 2, 3, 10, 64, 99, 100, 512, 1024, tokens - 1, tokens, tokens + 1, 10 * tokens} - {0}:
        budget = Budget(tokens=kept)
        assert budget.entries(tokens) == min(tokens, kept), (tokens, kept)
        assert budget.entries_together(6, tokens) == 6 * min(tokens, kept)
        assert budget.kept_share(tokens) + budget.removed_share(tokens) == 1
        for size in (1, 7, 64, tokens) if tokens < 2000 else (64,):
            chunks = [min(size, tokens - start) for start in range(0, tokens, size)]
            dealt = [
                of_chunk.entries(n)
                for of_chunk, n in zip(budget.for_chunks(tokens, size), chunks, strict=True)
            ]
            assert sum(dealt) == max(min(tokens, kept), len(chunks)), "every chunk keeps an entry"


@pytest.mark.parametrize("tokens", [1, 64, 100, 202, TOKENS, 1024])
def test_every_press_takes_a_budget_in_tokens(tokens: int) -> None:
    presses = [
        press
        for press in map(press_named, NAMES)
        if not has_no_ratio(press) and not press.traits.has_fixed_budget
    ]
    prefilled = read_context(tiny_model("llama"), presses, TOKENS)
    kept, even = {}, LAYERS * KV_HEADS * min(tokens, TOKENS)
    for press in presses:
        budget = Variant(press, Budget(tokens=tokens)).budget
        (context,) = prefilled.compress(press, [budget])
        context.check_budget(press, budget)
        kept[press.name] = sum(map(sum, context.entries()))
        if tokens >= TOKENS:
            assert context.kept_fraction == 1
        elif press.entry_bounds(LAYERS, KV_HEADS, TOKENS, budget) == (even, even):
            assert kept[press.name] == even, press.name
    exact = ("snapkv", "knorm", "adakv", "expected_attention", "kvzip", "kvcompose", "restorekv")
    assert {name for name in exact if kept[name] != even} <= {"kvcompose"}


def test_head_wise_presses_share_out_the_same_total() -> None:
    press = AdaKVPress(KnormPress())
    (context,) = read_context(tiny_model("llama"), [press], TOKENS).compress(press, [Budget(tokens=50)])
    assert [sum(layer) for layer in context.entries()] == [KV_HEADS * 50] * LAYERS
    assert any(len(set(layer)) > 1 for layer in context.entries())


def test_a_threshold_keeps_what_reaches_it_head_by_head() -> None:
    press = KnormPress()
    prefilled = read_context(tiny_model("llama"), [press], TOKENS)
    scores = prefilled.observer.evidence[press.identity()]
    middle = float(torch.cat(list(scores)).median())
    half, all_, one = prefilled.compress(
        press, [Budget(threshold=middle), Budget(threshold=-1e9), Budget(threshold=1e9)]
    )
    assert half.entries() == [(layer[0] >= middle).sum(-1).tolist() for layer in scores]
    assert len({count for layer in half.entries() for count in layer}) > 1
    assert all_.kept_fraction == 1
    assert one.entries() == [[1] * KV_HEADS] * LAYERS, "a head never loses its best entry"


def test_who_takes_a_threshold() -> None:
    takes = {name for name in NAMES if press_named(name).traits.takes_threshold}
    assert {"knorm", "snapkv", "tova", "keydiff", "expected_attention", "observed_attention"} <= takes
    assert not takes & {"adakv", "pyramidkv", "chunkkv", "kvzip", "key_rerotation", "none"}


@pytest.mark.parametrize(
    "press", [AdaKVPress(), CompactorPress(), PyramidKVPress(), NonePress()], ids=lambda press: press.name
)
def test_a_threshold_is_refused_where_no_single_score_decides(press: BasePress) -> None:
    with pytest.raises(ValueError, match="takes no threshold"):
        Variant(press, Budget(threshold=0.5))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": 0}, "budget_tokens=0"),
        ({"tokens": 1.5}, "budget_tokens=1.5"),
        ({"tokens": True}, "budget_tokens=True"),
        ({"ratio": 0.5, "tokens": 5}, "more than one budget"),
        ({"threshold": 1.0, "tokens": 5}, "more than one budget"),
    ],
)
def test_budgets_out_of_range_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Budget(**options)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "high", True])
def test_a_threshold_is_a_finite_number(score) -> None:
    with pytest.raises(ValueError, match="threshold"):
        Budget(threshold=score)


def test_a_variant_names_its_budget() -> None:
    assert Variant(KnormPress(), 0.5).budget.named() == {"compression_ratio": 0.5}
    assert Variant(KnormPress(), Budget(tokens=64)).budget.named() == {"budget_tokens": 64}
    assert Variant(KnormPress(), Budget(threshold=-2.5)).budget.named() == {"threshold": -2.5}
