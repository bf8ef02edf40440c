"""Budgets other than a ratio: tokens and thresholds, in a sweep with ratios, met exactly and told apart."""

import pytest
import torch

from kvcache.selection import Threshold, budget, ratio_for
from longpress.pipeline.prefill import Variant
from presses import AdaKVPress, CompactorPress, KnormPress, NonePress, PyramidKVPress, SnapKVPress
from presses.base import BasePress
from tests.presses.test_laws import NAMES, make, read
from tests.support.tiny_models import KV_HEADS, LAYERS, tiny_model

TOKENS = 203


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 99, 100, 101, 203, 997, 1000, 4096, 131072])
def test_the_ratio_of_a_budget_keeps_exactly_that_many(tokens: int) -> None:
    for kept in {1, 2, 3, 10, 64, 99, 100, 512, 1024, tokens - 1, tokens, tokens + 1, 10 * tokens} - {0}:
        ratio = ratio_for(tokens, kept)
        assert budget(tokens, ratio) == min(tokens, kept), (tokens, kept)
        assert 0 <= ratio < 1


@pytest.mark.parametrize("tokens", [1, 64, 100, 202, TOKENS, 1024])
def test_every_press_takes_a_budget_in_tokens(tokens: int) -> None:
    presses = [press for press in map(make, NAMES) if not press.lossless and not press.own_budget]
    prefilled = read(tiny_model("llama"), presses, TOKENS)
    kept, even = {}, LAYERS * KV_HEADS * min(tokens, TOKENS)
    for press in presses:
        limit = Variant(press, budget_tokens=tokens).limit(TOKENS)
        (context,) = prefilled.compress(press, [limit])
        context.check_budget(press, limit)
        kept[press.name] = sum(map(sum, context.entries()))
        if tokens >= TOKENS:
            assert limit == 0 and context.kept_fraction == 1
        elif press.entries(LAYERS, KV_HEADS, TOKENS, limit) == (even, even):
            assert kept[press.name] == even, press.name
    assert {
        name for name in ("snapkv", "knorm", "adakv", "expected_attention") if kept[name] != even
    } == set()
    assert even <= kept["kvzip"] <= even + 1, "it counts what it removes, of all layers together"


def test_head_wise_presses_share_out_the_same_total() -> None:
    press = AdaKVPress(KnormPress())
    (context,) = read(tiny_model("llama"), [press], TOKENS).compress(
        press, [Variant(press, budget_tokens=50).limit(TOKENS)]
    )
    assert [sum(layer) for layer in context.entries()] == [KV_HEADS * 50] * LAYERS
    assert any(len(set(layer)) > 1 for layer in context.entries())


def test_a_threshold_keeps_what_reaches_it_head_by_head() -> None:
    press = KnormPress()
    prefilled = read(tiny_model("llama"), [press], TOKENS)
    scores = prefilled.onlooker.evidence[press.identity()]
    middle = float(torch.cat(list(scores)).median())
    half, all_, one = prefilled.compress(press, [Threshold(middle), Threshold(-1e9), Threshold(1e9)])
    assert half.entries() == [(layer[0] >= middle).sum(-1).tolist() for layer in scores]
    assert len({count for layer in half.entries() for count in layer}) > 1
    assert all_.kept_fraction == 1
    assert one.entries() == [[1] * KV_HEADS] * LAYERS, "a head never loses its best entry"


def test_who_takes_a_threshold() -> None:
    takes = {name for name in NAMES if make(name).has_threshold}
    assert {"knorm", "snapkv", "tova", "keydiff", "expected_attention", "observed_attention"} <= takes
    assert not takes & {"adakv", "pyramidkv", "chunkkv", "kvzip", "key_rerotation", "none"}


@pytest.mark.parametrize(
    "press", [AdaKVPress(), CompactorPress(), PyramidKVPress(), NonePress()], ids=lambda press: press.name
)
def test_a_threshold_is_refused_where_no_single_score_decides(press: BasePress) -> None:
    with pytest.raises(ValueError, match="takes no threshold"):
        Variant(press, threshold=0.5)
    with pytest.raises(ValueError, match="has no threshold"):
        press.select_above([], Threshold(0.5))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget_tokens": 0}, "budget_tokens=0"),
        ({"budget_tokens": 1.5}, "budget_tokens=1.5"),
        ({"budget_tokens": True}, "budget_tokens=True"),
        ({"compression_ratio": 0.5, "budget_tokens": 5}, "one budget"),
        ({"threshold": 1.0, "budget_tokens": 5}, "one budget"),
    ],
)
def test_budgets_out_of_range_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Variant(SnapKVPress(), **options)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "high", True])
def test_a_threshold_is_a_finite_number(score) -> None:
    with pytest.raises(ValueError, match="threshold"):
        Threshold(score)


def test_a_variant_names_its_budget() -> None:
    assert Variant(KnormPress(), 0.5).budget == {"compression_ratio": 0.5}
    assert Variant(KnormPress(), budget_tokens=64).budget == {"budget_tokens": 64}
    assert Variant(KnormPress(), threshold=-2.5).budget == {"threshold": -2.5}
