"""The compressed cache against attention written out by hand."""

import pytest
import torch
from transformers import DynamicCache

from kvcache.attention import attending, attention_forward
from kvcache.budget import Budget, check_ratio
from kvcache.cache import CompressedLayer
from kvcache.compress import FullLayer, Target, compress
from kvcache.modules import cache_keyword
from kvcache.selection import Selection, gather
from kvcache.storage import KVStorage, KVView
from kvcache.traits import Traits
from longpress.pipeline.sweep_observer import SweepObserver
from presses import AdaKVPress, KnormPress, SnapKVPress
from tests.support.tiny_models import tiny_ids, tiny_model

H, G, D = 2, 3, 8


def storage(length: int, seed: int) -> KVStorage:
    generator = torch.Generator().manual_seed(seed)
    return KVStorage(
        torch.randn(H, length, D, generator=generator), torch.randn(H, length, D, generator=generator)
    )


def by_hand(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """One row, one KV head, one query (D,) over (n, D)."""
    return torch.softmax(keys @ query / D**0.5, 0) @ values


@pytest.mark.parametrize("n", [1, 4])
def test_ragged_attention_equals_attention_over_what_each_row_and_head_keeps(n: int) -> None:
    shared, other = storage(11, 0), storage(7, 1)
    rows = [
        KVView(shared, torch.tensor([11, 3])),
        KVView(shared, torch.tensor([5, 0])),
        KVView(other),
        KVView(shared),
    ]
    check_rows(rows, n)


@pytest.mark.parametrize("n", [1, 4])
def test_rows_that_read_the_full_cache_in_place_see_what_they_keep_and_nothing_else(n: int) -> None:
    full = storage(11, 0)
    masks = [
        Selection.top(torch.rand(1, H, 11), counts)
        for counts in (5, torch.tensor([[2, 9]]), torch.tensor([[0, 3]]))
    ]
    check_rows([KVView(full), *(KVView(full, mask.counts[0], mask.keep[0]) for mask in masks)], n)


def check_rows(rows: list[KVView], n: int) -> None:
    layer = CompressedLayer(rows, 20)
    torch.manual_seed(2)
    first, second = torch.randn(4, H, 3, D), torch.randn(4, H, n, D)
    layer.armed = True
    layer.update(first, first + 1)
    layer.set_lengths([3, 1, 2, 3])
    layer.armed = True
    layer.update(second, second + 1)
    query = torch.randn(4, H * G, n, D)
    out, _ = attention_forward(torch.nn.Module(), query, second, second, None, scaling=D**-0.5, ragged=layer)
    for row, (kept, tail) in enumerate(zip(rows, [3, 1, 2, 3], strict=True)):
        for head in range(H):
            mine = (
                torch.arange(kept.entries()[head]) if kept.keep is None else kept.keep[head].nonzero()[:, 0]
            )
            for i in range(n):
                keys = torch.cat(
                    (kept.storage.keys[head, mine], first[row, head, :tail], second[row, head, : i + 1])
                )
                values = torch.cat(
                    (
                        kept.storage.values[head, mine],
                        first[row, head, :tail] + 1,
                        second[row, head, : i + 1] + 1,
                    )
                )
                for group in range(G):
                    at = head * G + group
                    torch.testing.assert_close(out[row, i, at], by_hand(query[row, at, i], keys, values))


def test_rows_leave_without_changing_the_others() -> None:
    shared = storage(11, 0)
    rows = [KVView(shared, torch.tensor([11 - row, row + 1])) for row in range(4)]
    layer = CompressedLayer(rows, 11)
    tail = torch.randn(4, H, 5, D)
    layer.armed = True
    layer.update(tail, tail)
    keys, valid = layer.keys, layer.valid
    layer.keep_rows([1, 3])
    assert torch.equal(layer.valid[..., -5:], valid[[1, 3]][..., -5:])
    for new, old in enumerate([1, 3]):
        for head in range(H):
            assert torch.equal(
                layer.keys[new, head][layer.valid[new, head]], keys[old, head][valid[old, head]]
            )


class GivenMasks:
    """A press that keeps what it is told: per budget a mask (H, T)."""

    name, traits = "given", Traits()

    def __init__(self, masks: list[torch.Tensor]) -> None:
        self.masks = {Budget(tokens=1 + at): mask for at, mask in enumerate(masks)}

    def select(self, evidence, budget):
        return [Selection(self.masks[budget][None])]

    def apply(self, keys, values, selection):
        return gather(keys, selection.positions), gather(values, selection.positions)

    def next_position(self, selections):
        return selections[0].keep.shape[-1]

    def acts_while_decoding(self, budget):
        return False

    def entry_metadata(self, evidence):
        return None


def kept_by(full: KVStorage, masks: list[torch.Tensor]) -> list[KVView]:
    press = GivenMasks(masks)
    layer = FullLayer(0, full.keys[None], full.values[None], None)
    ((_, views),) = compress(
        press, [None], [layer], [Target(budget) for budget in press.masks], all_layers=True
    )
    return [view for (view,) in views]


def test_nested_variants_share_memory_and_others_do_not() -> None:
    full = storage(20, 0)
    scores = torch.rand(1, H, 20)
    nested = [Selection.top(scores, n).keep[0] for n in (15, 10, 2)]
    odd = Selection.top(torch.rand(1, H, 20), 9).keep[0]
    kept = kept_by(full, nested)
    assert len({id(one.storage) for one in kept}) == 1
    assert kept[0].storage.keys.shape[1] == 15
    mixed = kept_by(full, [*nested, odd])
    for one, mask in zip([*kept, *mixed], [*nested, *nested, odd], strict=True):
        for head, count in enumerate(one.entries()):
            expected = {tuple(row.tolist()) for row in full.keys[head, mask[head]]}
            assert {tuple(row.tolist()) for row in one.storage.keys[head, :count]} == expected


def test_memory_shrinks_for_head_wise_budgets() -> None:
    full = storage(100, 0)
    keep = Selection.top(torch.rand(1, H, 100), torch.tensor([[40, 10]])).keep[0]
    (kept,) = kept_by(full, [keep])
    assert kept.entries() == [40, 10]
    assert kept.bytes() == 50 * 2 * D * 4


def test_a_uniform_compressed_cache_is_read_by_any_attention() -> None:
    model = tiny_model("llama")
    keyword = cache_keyword(model)
    cache = DynamicCache()
    ids, question = tiny_ids(60), tiny_ids(5, seed=1)
    with torch.no_grad(), KnormPress(0.5)(model):
        model(ids, **{keyword: cache})
        kept = [(layer.keys, layer.values) for layer in cache.layers]
        inside = model(question, **{keyword: cache}).logits
    cache.crop(-5)
    assert all(torch.equal(layer.keys, keys) for layer, (keys, _) in zip(cache.layers, kept, strict=True))
    with torch.no_grad():
        outside = model(question, **{keyword: cache}).logits
    torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == 65


def test_a_ragged_cache_outside_says_what_to_do() -> None:
    model = tiny_model("llama")
    keyword, cache = cache_keyword(model), DynamicCache()
    with torch.no_grad(), AdaKVPress(KnormPress(0.5))(model):
        model(tiny_ids(90), **{keyword: cache})
    with pytest.raises(ValueError, match="inside `with press"):
        model(tiny_ids(5), **{keyword: cache})
    with torch.no_grad(), attending(model):
        assert model(tiny_ids(5), **{keyword: cache}).logits.isfinite().all()


def test_generate_works_inside() -> None:
    model = tiny_model("llama")
    with AdaKVPress(SnapKVPress(0.5))(model):
        generated = model.generate(
            tiny_ids(90), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    assert generated.shape == (1, 96)


def test_a_sweep_reads_no_padded_batch() -> None:
    model = tiny_model("llama")
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[0, :4] = 0
    with pytest.raises(ValueError, match="a padded batch can be read inside"), SweepObserver([])(model):
        model(tiny_ids(30, batch=2), attention_mask=mask)


def test_budget_truncates_as_published_numbers_do() -> None:
    assert (
        Budget(ratio=0.9).entries(1000),
        Budget(ratio=0.5).entries(1000),
        Budget(ratio=0.9).entries(3),
        Budget(ratio=0.25).entries(701),
    ) == (99, 500, 1, 525)
    assert check_ratio(0.1 + 0.2) == 0.3


def test_selection_breaks_ties_by_position_and_orders_positions() -> None:
    selection = Selection.top(torch.tensor([[[1.0, 2.0, 2.0, 2.0, 0.0]]]), 2)
    assert selection.positions.tolist() == [[[1, 2]]]
    assert selection.counts.tolist() == [[2]]
