"""The laws of every press in the catalogue. A new file in presses/ is under them without an edit here."""

import inspect
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache

from kvcache.budget import Budget
from kvcache.modules import cache_keyword
from longpress.catalogue import presses
from presses.scorer import ScorerPress
from tests.support.catalogue_presses import NAMES, has_no_ratio, press_named
from tests.support.each_family import each_family
from tests.support.prefilled_contexts import (
    RATIOS,
    TOKENS,
    logits_after,
    model_of,
    observations,
    read_context,
)
from tests.support.tiny_models import tiny_ids, tiny_model

SCORERS = [
    name
    for name in NAMES
    if isinstance(press_named(name), ScorerPress)
    and type(press_named(name)).scores_at is ScorerPress.scores_at
]


@pytest.mark.parametrize("name", NAMES)
@each_family()
def test_budget_is_met_or_refused_with_a_sentence(name: str, family: str) -> None:
    press = press_named(name)
    prefilled = read_context(model_of(family), [press])
    try:
        contexts = prefilled.compress(press, RATIOS)
    except ValueError as error:
        assert len(str(error)) > 30
        return
    for ratio, context in zip(RATIOS, contexts, strict=True):
        context.check_budget(press, Budget.of(ratio))
        assert 0 < context.kept_fraction <= 1
        assert all(entries >= 1 for layer in context.entries() for entries in layer) or not isinstance(
            press, ScorerPress
        )


@pytest.mark.parametrize("name", NAMES)
def test_nothing_given_to_a_press_is_changed(name: str) -> None:
    press = press_named(name)
    for layer in observations(model_of("llama")):
        before = [tensor.clone() for tensor in (layer.hidden, layer.keys, layer.values, layer.cos, layer.sin)]
        evidence = press.observe(layer)
        copies = [part.clone() for part in _tensors(evidence)]
        after = (layer.hidden, layer.keys, layer.values, layer.cos, layer.sin)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(copies, _tensors(evidence), strict=True))
    prefilled = read_context(model_of("llama"), [press])
    stored = prefilled.prefill.cache.layers
    before = [tensor.clone() for layer in stored for tensor in (layer.keys, layer.values)]
    seen = [part.clone() for part in _tensors(list(prefilled.observer.evidence.values()))]
    prefilled.compress(press, RATIOS)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, [t for layer in stored for t in (layer.keys, layer.values)], strict=True)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(seen, _tensors(list(prefilled.observer.evidence.values())), strict=True)
    )


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for part in value.values() for tensor in _tensors(part)]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize("name", NAMES)
def test_observation_does_not_depend_on_the_ratio_and_repeats(name: str) -> None:
    press = press_named(name)
    if has_no_ratio(press):
        return
    loose, tight = replace(press, compression_ratio=0.1), replace(press, compression_ratio=0.8)
    assert loose.identity() == tight.identity() == press.identity()
    for first, second in zip(observations(model_of("llama")), observations(model_of("llama")), strict=True):
        pairs = zip(_tensors(loose.observe(first)), _tensors(tight.observe(second)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_ratio_zero_keeps_everything(name: str) -> None:
    model, press = model_of("llama"), press_named(name)
    (context,) = read_context(model, [press]).compress(press, [0.0])
    assert context.kept_fraction == 1
    assert context.next_position == TOKENS
    continuation = tiny_ids(5, seed=1)
    plain = model(torch.cat((tiny_ids(TOKENS), continuation), dim=1)).logits[:, -5:]
    torch.testing.assert_close(logits_after(model, press, continuation), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SCORERS)
def test_a_higher_ratio_keeps_a_subset(name: str) -> None:
    press = press_named(name)
    evidence = read_context(model_of("llama"), [press]).observer.evidence[press.identity()]
    ratios = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
    levels = [
        torch.stack([selection.keep for selection in press.select(evidence, Budget.of(ratio))])
        for ratio in ratios
    ]
    assert all(bool((small <= large).all()) for large, small in pairwise(levels))


@pytest.mark.parametrize("name", SCORERS)
def test_a_uniform_budget_is_the_same_in_every_layer_and_head(name: str) -> None:
    press = press_named(name)
    if has_no_ratio(press):
        return
    contexts = read_context(model_of("llama"), [press]).compress(press, RATIOS)
    for ratio, context in zip(RATIOS, contexts, strict=True):
        assert {entries for layer in context.entries() for entries in layer} == {
            Budget(ratio=ratio).entries(TOKENS)
        }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 21, 65])
def test_short_contexts_and_every_dtype_stay_finite(name: str, dtype: torch.dtype, tokens: int) -> None:
    model, press = model_of("llama", dtype), press_named(name)
    prefilled = read_context(model, [press], tokens)
    for ratio, context in zip(RATIOS, prefilled.compress(press, RATIOS), strict=True):
        context.check_budget(press, Budget.of(ratio))
        assert all(
            bool(tensor.isfinite().all())
            for kept in context.layers
            for tensor in (kept.storage.keys, kept.storage.values)
        )


@pytest.mark.parametrize("name", NAMES)
@each_family()
def test_sweep_and_standalone_give_equal_logits(name: str, family: str) -> None:
    from kvcache.attention import attending
    from kvcache.cache import CompressedCache, CompressedLayer

    model, press = model_of(family), press_named(name)
    continuation = tiny_ids(6, seed=3)
    prefilled = read_context(model, [press])
    ratios = [0.0] if has_no_ratio(press) else list(RATIOS)
    try:
        contexts = prefilled.compress(press, ratios)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)[:20]):
            logits_after(model, replace(press, compression_ratio=0.5), continuation)
        return
    starts = [context.next_position for context in contexts]
    layers = [
        CompressedLayer([context.layers[at] for context in contexts], starts)
        for at in range(len(prefilled.full))
    ]
    positions = torch.tensor(starts)[:, None] + torch.arange(6)
    with torch.no_grad(), attending(model):
        hidden = model.model(
            input_ids=continuation.expand(len(ratios), -1),
            position_ids=positions,
            **{cache_keyword(model.model): CompressedCache(layers)},
        ).last_hidden_state
        together = model.lm_head(hidden)
    for row, ratio in enumerate(ratios):
        alone = logits_after(model, replace(press, compression_ratio=ratio), continuation)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_batch_rows_are_independent(name: str) -> None:
    model, press = model_of("llama"), press_named(name)
    if has_no_ratio(press):
        return
    press = replace(press, compression_ratio=0.5)
    ids, keyword = tiny_ids(101, batch=2), cache_keyword(model)
    continuation = tiny_ids(3, batch=2, seed=5)

    def run(rows: slice) -> torch.Tensor:
        stored = DynamicCache(config=model.config)
        with torch.no_grad(), press(model):
            model(ids[rows], **{keyword: stored})
            return model(continuation[rows], **{keyword: stored}).logits

    both = run(slice(0, 2))
    torch.testing.assert_close(both, torch.cat((run(slice(0, 1)), run(slice(1, 2)))), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_as_before(name: str) -> None:
    model = tiny_model("qwen3")
    implementation = model.config._attn_implementation
    names = [key for key, _ in model.named_modules()]
    press = press_named(name)
    with pytest.raises(RuntimeError, match="stop"), press(model):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == implementation
    assert [key for key, _ in model.named_modules()] == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_docstring_says_source_differences_and_cost(name: str) -> None:
    entry = presses()[name]
    assert entry.source, "add the line `Source: paper` to the file's docstring"
    assert entry.cost, "add the line `Cost: …` to the file's docstring"
    assert "Differs:" in (inspect.getdoc(inspect.getmodule(entry.load())) or "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan"), "half", True])
def test_a_ratio_outside_its_range_is_refused(name: str, ratio) -> None:
    with pytest.raises(ValueError, match="compression_ratio"):
        presses()[name].load()(compression_ratio=ratio)
