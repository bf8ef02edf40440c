"""Presses whose cache keeps its size while answers are written: sums and windows of attention by hand."""

import pytest
import torch
from transformers import DynamicCache

from kvcache.budget import Budget
from kvcache.hooks.decode_hooks import DecodingObservation
from kvcache.hooks.prefill import observing
from kvcache.modules import cache_keyword
from presses import AdaKVPress, H2OPress, MorphKVPress, PrefillDecodingPress, SnapKVPress
from presses.h2o import HeavyHitters
from presses.morphkv import MovingWindow, fuse
from tests.support.tiny_models import tiny_ids, tiny_model

PREFILL, STEPS = 12, 5


class Forced(DecodingObservation):
    """An observation whose attention is given."""

    def window_attention(self, last: int) -> torch.Tensor:
        return self.rope[:, :, -last:]


def step(decode_hook, attention: list[list[float]], entry_metadata: list[float] | None = None) -> list[bool]:
    """One pass of len(attention) tokens over one head with len(attention[0]) entries: which stay."""
    rows = torch.tensor(attention)[None, None]
    n, entries = rows.shape[2:]
    keys = torch.ones(1, 1, entries, 2)
    module = torch.nn.Module()
    module.config = type("Config", (), {"num_attention_heads": 1, "num_key_value_heads": 1})()
    told = None if entry_metadata is None else torch.tensor(entry_metadata)[None, None, :, None]
    seen = torch.ones(1, 1, entries, dtype=torch.bool)
    layer = Forced(
        0,
        module,
        torch.zeros(1, n, 1),
        keys,
        keys,
        keys,
        keys,
        rows,
        (0,),
        valid=seen,
        next_position=9,
        entry_metadata=told,
    )
    return decode_hook.after_pass(layer).keep[0, 0].tolist()


def test_heavy_hitters_keep_what_they_received() -> None:
    decode_hook = HeavyHitters(0.5)
    # sums of four entries (2 stay for their sums, 2 as the latest): 0.9, 0.2, 0.5, 0.3, then + the new
    # token's attention
    assert step(decode_hook, [[0.0, 0.6, 0.1, 0.1, 0.2]], [0.9, 0.2, 0.5, 0.3]) == [
        True,
        True,
        False,
        True,
        True,
    ]  # 0.9 0.8 0.6 | 0.4 0.2
    # known: 0.9 0.8 0.4 0.2
    assert step(decode_hook, [[0.0, 0.0, 0.5, 0.3, 0.2]]) == [
        True,
        False,
        True,
        True,
        True,
    ]  # 0.9 0.8 0.9 | 0.5 0.2
    assert decode_hook.known[0, 0, :, 0].tolist() == pytest.approx([0.9, 0.9, 0.5, 0.2])


def test_heavy_hitters_without_notes_begin_at_zero() -> None:
    decode_hook = HeavyHitters(0.0)
    assert step(decode_hook, [[0.1, 0.7, 0.2]]) == [False, True, True]
    assert step(decode_hook, [[0.5, 0.3, 0.2]]) == [True, True, False]  # 1.2, 0.5, 0.2


def test_the_window_forgets() -> None:
    decode_hook = MovingWindow(2, "sum")
    assert step(decode_hook, [[0.6, 0.1, 0.1, 0.2]]) == [True, False, True, True]
    # two rows vote: (0.6, 0.1, 0.2, 0) + (0.1, 0.4, 0.1, 0.4); entries 2 and 3 are the window
    assert step(decode_hook, [[0.1, 0.4, 0.1, 0.4]]) == [True, False, True, True]
    # the first row is gone: (0.1, 0.1, 0.4, 0) + (0.1, 0.3, 0.3, 0.3)
    assert step(decode_hook, [[0.1, 0.3, 0.3, 0.3]]) == [False, True, True, True]


def test_votes_of_a_window_are_joined_by_sum_or_maximum() -> None:
    votes = torch.tensor([[[[0.1, 0.5], [0.4, 0.2]]]])
    torch.testing.assert_close(fuse(votes, "sum"), torch.tensor([[[0.5, 0.7]]]))
    torch.testing.assert_close(fuse(votes, "max"), torch.tensor([[[0.4, 0.5]]]))


def sizes(press, family: str = "llama") -> list[list[int]]:
    """Entries per head in the last layer after the prefill, and after each of `STEPS` tokens."""
    model = tiny_model(family)
    stored = DynamicCache(config=model.config)
    found = []
    with torch.no_grad(), press(model):
        for part in tiny_ids(PREFILL + STEPS).split([PREFILL, 2, *[1] * (STEPS - 2)], dim=1):
            model(part, **{cache_keyword(model): stored})
            found.append(stored.layers[-1].valid[0].sum(-1).tolist())
    return found


@pytest.mark.parametrize(
    "press",
    [
        H2OPress(0.5),
        MorphKVPress(0.5, window_size=2),
        MorphKVPress(0.5, window_size=64, fusion="max"),
        AdaKVPress(H2OPress(0.5)),
        PrefillDecodingPress(SnapKVPress(0.5), H2OPress()),
        PrefillDecodingPress(H2OPress(0.5), MorphKVPress()),
    ],
    ids=repr,
)
def test_every_head_keeps_its_size(press) -> None:
    before, *after = sizes(press)
    assert sum(before) == PREFILL
    assert after == [before] * (STEPS - 1)


def test_sums_equal_attention_that_was_paid_while_nothing_is_dropped() -> None:
    """The decode_hook's sums are those of one long context's columns, as long as no entry has left."""
    model, press = tiny_model("llama"), H2OPress(0.5, recent_share=0.0)
    ids = tiny_ids(30)
    stored, sums = DynamicCache(config=model.config), []
    update = HeavyHitters.update
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(
            HeavyHitters,
            "update",
            lambda self, layer, known: sums.append(update(self, layer, known)) or sums[-1],
        )
        patch.setattr(Budget, "entries", lambda budget, tokens: tokens)
        with press(model):
            model(ids[:, :28], **{cache_keyword(model): stored})
            model(ids[:, 28:], **{cache_keyword(model): stored})
    seen = []
    with torch.no_grad(), observing(model, lambda layer, cache: seen.append(press.score(layer))):
        model(ids, **{cache_keyword(model): DynamicCache(config=model.config)})
    torch.testing.assert_close(sums[0][..., 0], seen[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: H2OPress(recent_share=1.5),
        lambda: MorphKVPress(window_size=0),
        lambda: MorphKVPress(fusion="mean"),
    ],
)
def test_what_makes_no_sense_is_refused(make) -> None:
    with pytest.raises(ValueError, match="must"):
        make()
