"""Every press on a trained model: budgets met and answers finite, or a refusal that says what is missing."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from kvcache.attention import attending
from kvcache.budget import Budget
from kvcache.cache import CompressedCache, CompressedLayer
from kvcache.modules import cache_keyword
from longpress.catalogue import presses
from longpress.models.loading import LoadedModel
from longpress.pipeline.sweep_observer import PrefilledContext, SweepObserver
from presses.base import BasePress
from tests.support.catalogue_presses import has_no_ratio
from tests.support.tiny_models import smollm2_ids

RATIOS, TOKENS = (0.25, 0.5, 0.75, 0.9), 300


def learned(press: BasePress) -> bool:
    """Whether it, or a press inside, needs learned weights."""
    values = [getattr(press, field.name) for field in fields(press)]  # type: ignore[arg-type]
    return hasattr(press, "weights") or any(
        isinstance(value, BasePress) and learned(value) for value in values
    )


@pytest.fixture(scope="module")
def read_once(smollm2: LoadedModel) -> tuple[PrefilledContext, dict[str, BasePress]]:
    made = {name: entry.load()() for name, entry in presses().items()}
    made = {name: press for name, press in made.items() if not learned(press)}
    observer, keyword = SweepObserver(list(made.values())), cache_keyword(smollm2.model.model)
    with torch.no_grad(), observer(smollm2.model):
        smollm2.model.model(
            input_ids=smollm2_ids(TOKENS), **{keyword: DynamicCache(config=smollm2.model.config)}
        )
    return PrefilledContext(observer, 0.0), made


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in presses().items() if not learned(entry.load()())])
def test_budgets_are_met_and_the_next_token_is_finite(
    name: str, smollm2: LoadedModel, read_once: Any
) -> None:
    prefilled, made = read_once
    press = made[name]
    ratios = (
        [0.0]
        if has_no_ratio(press)
        else [press.compression_ratio]
        if press.traits.has_fixed_budget
        else list(RATIOS)
    )
    contexts = prefilled.compress(press, ratios)
    for ratio, context in zip(ratios, contexts, strict=True):
        context.check_budget(press, Budget.of(ratio))
        assert not press.traits.ratio_is_bytes or context.kept_fraction <= 1 - ratio + 0.02
    starts = [context.next_position for context in contexts]
    layers = [
        CompressedLayer([context.layers[at] for context in contexts], starts)
        for at in range(len(prefilled.full))
    ]
    keyword = cache_keyword(smollm2.model.model)
    with torch.no_grad(), attending(smollm2.model):
        hidden = smollm2.model.model(
            input_ids=smollm2_ids(1, seed=1).expand(len(ratios), -1),
            position_ids=torch.tensor(starts)[:, None],
            **{keyword: CompressedCache(layers)},
        ).last_hidden_state
    assert bool(hidden.isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, entry in presses().items() if hasattr(entry.load()(), "weights")]
)
def test_what_needs_weights_says_so(name: str, smollm2: LoadedModel, tmp_path: Path) -> None:
    press = replace(presses()[name].load()(), weights=str(tmp_path), compression_ratio=0.5)
    keyword = cache_keyword(smollm2.model.model)
    with (
        pytest.raises(ValueError, match=f"the folder {tmp_path} has no file"),
        torch.no_grad(),
        press(smollm2.model),
    ):
        smollm2.model.model(input_ids=smollm2_ids(20), **{keyword: DynamicCache(config=smollm2.model.config)})
