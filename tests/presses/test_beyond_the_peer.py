"""Methods that kvpress lacks: each formula on an example computed by hand."""

from math import log

import pytest
import torch

from kvcache.budget import Budget
from presses import KnormPress, ObservedAttentionPress, VATPPress
from presses.cake import preference
from presses.rkv import redundancy
from presses.support.budgets import apportion
from presses.zigzagkv import need


@pytest.mark.parametrize(
    ("weights", "total", "least", "most", "expected"),
    [
        ([1, 1, 2], 12, 0, 10, [3, 3, 6]),
        (
            [1, 1, 2],
            12,
            2,
            10,
            [4, 3, 5],
        ),  # 2 + 6 · (1/4, 1/4, 1/2) = 3.5, 3.5, 5: the first of equals gets the odd one
        ([0, 1, 9], 20, 0, 10, [0, 10, 10]),
        ([1, 1, 8], 20, 0, 10, [5, 5, 10]),
        ([0, 0], 5, 0, 10, [3, 2]),
        ([1, 3], 2, 9, 10, [1, 1]),
        ([5, 1], 20, 1, 10, [10, 10]),
    ],
)
def test_apportion(weights, total: int, least: int, most: int, expected: list[int]) -> None:
    assert apportion(weights, total, least, most) == expected


def test_cake_prefers_attention_that_is_spread_and_moves() -> None:
    attention = torch.tensor([[0.5, 0.0], [0.0, 0.5]]).expand(1, 3, 2, 2)  # three heads, two queries
    # each row -0.5 log 0.5 = 0.5 log 2, six of them; each column deviates by 0.25: 2 · 0.0625 / (2 - 1) =
    # 0.125, six of them
    assert preference(attention, 2.0, 1.0).item() == pytest.approx((3 * log(2)) ** 0.5 * 0.75)
    assert preference(torch.full((1, 1, 2, 2), 0.25), 1.0, 1.0).item() == 0
    assert preference(torch.full((1, 1, 1, 2), 0.25), 1.0, 1.0).item() == 0


def test_zigzagkv_counts_the_entries_that_hold_the_attention() -> None:
    attention = torch.tensor([[[0.05, 0.6, 0.05, 0.3], [0.25, 0.25, 0.25, 0.25]]])  # 2 hold 0.9; 4 are needed
    assert need(attention, 0.9).item() == 3
    assert need(attention, 0.5).item() == 1.5  # 1 and 2


def test_rkv_spares_the_latest_repetition() -> None:
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[None, None]
    # rows 0 and 1 spare column 2, row 2 spares column 1: column 0 receives 1 + 1, column 1 receives 1,
    # columns 2 and 3 nothing
    expected = torch.tensor([2 / 4, 1 / 4, 0, 0]).softmax(-1)
    torch.testing.assert_close(redundancy(keys, 0.5)[0, 0], expected)


def test_vatp_weighs_attention_by_the_value() -> None:
    press = VATPPress(ObservedAttentionPress(), sinks=1, window_size=0)
    scores, norms = torch.tensor([[[0.1, 0.4, 0.3, 0.2]]]), torch.tensor([[[1.0, 1.0, 2.0, 1.0]]])
    (weighted,) = press.scores_at([(scores, norms)], Budget(ratio=0.5))
    torch.testing.assert_close(weighted[0, 0, 1:], torch.tensor([0.4, 0.6, 0.2]))
    assert press.select([(scores, norms)], Budget(ratio=0.5))[0].keep[0, 0].tolist() == [
        True,
        False,
        True,
        False,
    ]


def test_vatp_refuses_negative_scores() -> None:
    press = VATPPress(KnormPress())
    with pytest.raises(ValueError, match="knorm gives negative"):
        press.select([(torch.tensor([[[-1.0, -2.0]]]), torch.ones(1, 1, 2))], Budget(ratio=0.5))
