"""Presses that change entries instead of only choosing them: merging, channels, several at once."""

import pytest
import torch
from tiny_models import tiny_ids, tiny_model
from transformers import DynamicCache

from kvcache.observation import cache_keyword
from kvcache.selection import Selection
from pipeline.prefill import Onlooker, PrefilledContext
from presses import AdaKVPress, KeyRerotationPress, KnormPress, MergingPress, SnapKVPress
from presses.base import BasePress


def read(model, press: BasePress, tokens: int = 203) -> PrefilledContext:
    onlooker = Onlooker([press])
    with torch.no_grad(), onlooker(model):
        model.model(input_ids=tiny_ids(tokens), **{cache_keyword(model.model): DynamicCache(config=model.config)})
    return PrefilledContext(onlooker, 0.0)


def entries(heads: int = 2, tokens: int = 40, dtype: torch.dtype = torch.float32, batch: int = 1):
    generator = torch.Generator().manual_seed(7)
    keys, values = (torch.randn(batch, heads, tokens, 8, generator=generator).to(dtype) for _ in range(2))
    return keys, values


def random_selection(keys: torch.Tensor, counts: list[int]) -> Selection:
    scores = torch.rand(keys.shape[:3], generator=torch.Generator().manual_seed(1))
    return Selection.top(scores, torch.tensor(counts).expand(keys.shape[0], -1))


def merged_one_by_one(keys, values, keep, threshold=0.0):
    """The formula of the docstring for one head, entry by entry."""
    sums, weights = {}, {}
    for evicted in (~keep).nonzero().flatten().tolist():
        cosines = {t: float(torch.cosine_similarity(keys[evicted], keys[t], dim=0)) for t in keep.nonzero().flatten().tolist()}
        target = max(cosines, key=cosines.get)
        if cosines[target] < threshold:
            continue
        own, other = float(values[evicted].norm()), float(values[target].norm())
        weight = cosines[target] * own / (own + other + 1e-6)
        sums[target] = sums.get(target, 0) + weight * values[evicted]
        weights[target] = weights.get(target, 0) + weight
    merged = values.clone()
    for target in sums:
        merged[target] = (values[target] + sums[target]) / (1 + weights[target])
    return merged[keep]


@pytest.mark.parametrize("counts", [[10, 10], [3, 17], [1, 39], [40, 5]])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_merging_follows_its_formula_in_every_head(counts: list[int], threshold: float) -> None:
    keys, values = entries(batch=2)
    selection = random_selection(keys, counts)
    new_keys, new_values = MergingPress(KnormPress(), similarity_threshold=threshold).apply(keys, values, selection)
    for row in range(2):
        for head, count in enumerate(counts):
            keep = selection.keep[row, head]
            assert torch.equal(new_keys[row, head, :count], keys[row, head][keep])
            expected = merged_one_by_one(keys[row, head], values[row, head], keep, threshold)
            torch.testing.assert_close(new_values[row, head, :count], expected, rtol=1e-5, atol=1e-5)


def test_merging_differs_from_eviction_and_leaves_its_input_alone() -> None:
    keys, values = entries()
    before = keys.clone(), values.clone()
    selection = random_selection(keys, [10, 10])
    merged, evicted = MergingPress(KnormPress()).apply(keys, values, selection), KnormPress().apply(keys, values, selection)
    assert torch.equal(merged[0], evicted[0])
    assert not torch.equal(merged[1], evicted[1])
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])


def test_merging_a_share_takes_the_most_similar() -> None:
    keys, values = entries()
    selection = random_selection(keys, [10, 10])
    few = MergingPress(KnormPress(), merge_fraction=0.1).apply(keys, values, selection)[1]
    plain = KnormPress().apply(keys, values, selection)[1]
    changed = (few != plain).any(-1).sum(-1)
    assert bool(((changed >= 1) & (changed <= 3)).all())  # a tenth of 30 evicted entries


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merging_is_finite_at_the_edge_of_the_dtype(dtype: torch.dtype) -> None:
    keys, values = entries(dtype=dtype)
    keys, values = keys * 3000, values * 15000
    keys[:, :, ::5] = 0
    values[:, :, ::7] = 0
    _, merged = MergingPress(KnormPress()).apply(keys, values, random_selection(keys, [10, 4]))
    assert merged.dtype == dtype
    assert bool(merged.isfinite().all())


def test_merging_works_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, values = entries()
    selection = random_selection(keys, [9, 13])
    whole = MergingPress(KnormPress()).apply(keys, values, selection)[1]
    monkeypatch.setattr("presses.merging.EVICTED_BLOCK", 7)
    assert torch.equal(MergingPress(KnormPress()).apply(keys, values, selection)[1], whole)


def test_merging_over_head_wise_budgets_and_new_positions() -> None:
    model = tiny_model("llama")
    for inner in (AdaKVPress(SnapKVPress(window_size=16)), KeyRerotationPress(KnormPress())):
        merging = MergingPress(inner)
        (merged,), (plain,) = read(model, merging).compress(merging, [0.5]), read(model, inner).compress(inner, [0.5])
        assert merged.entries() == plain.entries()
        assert merged.next_position == plain.next_position
        counts = merged.entries()[1][0]
        torch.testing.assert_close(merged.layers[1].storage.keys[0, :counts].sum(0), plain.layers[1].storage.keys[0, :counts].sum(0))


@pytest.mark.parametrize(
    ("options", "message"), [({"similarity_threshold": 2}, "cosine"), ({"merge_fraction": 0}, "share"), ({"press": 3}, "press")]
)
def test_merging_refuses_what_makes_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MergingPress(**options)
