"""Every press on a quantised cache: the same entries, fewer bytes, rows independent of other variants."""

import pytest
import torch

from kvcache.budget import Budget
from kvcache.compress import Target
from presses import AdaKVPress, KnormPress, SnapKVPress, ThinKPress
from tests.support.catalogue_presses import ACTIVE, NAMES, busy_press_named, has_no_ratio, press_named
from tests.support.decoded_rows import decode_forced
from tests.support.each_family import each_family
from tests.support.prefilled_contexts import TOKENS, model_of, read_context
from tests.support.tiny_models import tiny_ids, tiny_model

PER_NUMBER = {8: 8 + 4, 4: 4 + 4, 2: 2 + 4}
"""Bits of a number with its share of scales, at most: groups are a head's 16 channels, or half filled."""


def targets(ratios: list[float], bits: list[int | None]) -> list[Target]:
    return [Target(Budget(ratio=ratio), of_number) for ratio, of_number in zip(ratios, bits, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_entries_in_fewer_bytes(name: str) -> None:
    press = press_named(name)
    prefilled_context = read_context(model_of("llama"), [press])
    ratio = 0.0 if has_no_ratio(press) else 0.5
    plain, *quantised = prefilled_context.compress(press, targets([ratio] * 5, [None, 16, 8, 4, 2]))
    for bits, context in zip((16, 8, 4, 2), quantised, strict=True):
        assert context.entries() == plain.entries()
        assert context.next_position == plain.next_position
        assert context.bytes == sum(kept.bytes() for kept in context.layers)
        assert context.bytes <= plain.bytes * PER_NUMBER.get(bits, 16) / 32 * 1.25
        assert context.full_bytes == plain.full_bytes
        for mine, theirs in zip(context.layers, plain.layers, strict=True):
            assert bool(mine.storage.keys.isfinite().all() & mine.storage.values.isfinite().all())
            assert {id(mine.storage)} & {id(theirs.storage)} == set()


@pytest.mark.parametrize(
    "press", [KnormPress(), AdaKVPress(SnapKVPress()), ThinKPress()], ids=lambda press: press.name
)
def test_what_is_read_does_not_depend_on_other_variants(press) -> None:
    context = read_context(model_of("llama"), [press])
    alone = context.compress(press, targets([0.7], [4]))[0]
    beside = context.compress(press, targets([0.25, 0.7, 0.5, 0.7], [4, 4, None, 2]))[1]
    for mine, theirs in zip(alone.layers, beside.layers, strict=True):
        assert torch.equal(mine.storage.keys, theirs.storage.keys)
        assert torch.equal(mine.storage.values, theirs.storage.values)


@each_family()
def test_fewer_bits_err_more(family: str) -> None:
    model, press = tiny_model(family), KnormPress()
    contexts = read_context(model, [press], TOKENS).compress(press, targets([0.25] * 5, [None, 16, 8, 4, 2]))
    ids = tiny_ids(5, seed=8).expand(5, -1)
    out = decode_forced(model, contexts, [lambda: None] * 5, ids)
    errors = [(out[row] - out[0]).norm() / out[0].norm() for row in range(1, 5)]
    assert errors[1] < errors[2] < errors[3]
    assert errors[0] < 0.02
    assert errors[1] < 0.02


@pytest.mark.parametrize("name", ACTIVE)
def test_entries_that_move_while_decoding_stay_quantised(name: str) -> None:
    model, press = tiny_model("llama"), busy_press_named(name)
    ratio = 0.0 if has_no_ratio(press) else 0.5
    plain, packed = read_context(model, [press], 60).compress(press, targets([ratio, ratio], [None, 4]))
    ids = tiny_ids(13, batch=3, seed=8)
    decode_hook = lambda: press.decode_hook(Budget(ratio=0.5))  # noqa: E731
    together = decode_forced(model, [packed, plain, packed], [decode_hook] * 3, ids)
    for row, context in enumerate((packed, plain, packed)):
        alone = decode_forced(model, [context], [decode_hook], ids[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-3)
    assert bool(together.isfinite().all())
