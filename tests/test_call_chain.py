"""The call chain of the design, name by name: runner, pipeline, press, hook, scorer."""

import pytest
import torch
from transformers import DynamicCache

from kvcache.modules import cache_keyword
from longpress import CompressingPipeline
from presses import SnapKVPress
from presses.base import BasePress
from presses.scorer import ScorerPress
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.tiny_models import LAYERS, tiny_ids, tiny_model

CONTEXT = "The quick brown fox jumps over the lazy dog. " * 6


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was called, in order, with the layer's index where there is one."""
    seen: list[tuple[str, int]] = []

    def spy(owner, name, index) -> None:
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            seen.append((f"{owner.__name__}.{name}", index(args)))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    spy(CompressingPipeline, "_forward", lambda args: -1)
    spy(BasePress, "__call__", lambda args: -1)
    spy(BasePress, "forward_hook", lambda args: args[1].index)
    spy(ScorerPress, "compress", lambda args: args[1].index)
    spy(SnapKVPress, "score", lambda args: args[1].index)
    return seen


def test_a_press_in_the_pipeline_goes_down_the_chain(calls: list[tuple[str, int]]) -> None:
    pipeline = CompressingPipeline(tiny_model("llama", vocab_size=VOCABULARY), byte_tokenizer())
    pipeline(CONTEXT, questions=["Who?", "What?"], press=SnapKVPress(0.5), max_new_tokens=6)
    per_layer = [
        (name, layer)
        for layer in range(LAYERS)
        for name in ("BasePress.forward_hook", "ScorerPress.compress", "SnapKVPress.score")
    ]
    assert calls == [("CompressingPipeline._forward", -1), ("BasePress.__call__", -1), *per_layer]


def test_a_sweep_scores_once_per_layer_whatever_the_ratios(calls: list[tuple[str, int]]) -> None:
    pipeline = CompressingPipeline(tiny_model("llama", vocab_size=VOCABULARY), byte_tokenizer())
    pipeline.sweep(
        CONTEXT,
        ["Who?", "What?"],
        [(SnapKVPress(), ratio) for ratio in (0.1, 0.25, 0.5, 0.75)],
        max_new_tokens=6,
    )
    assert [call for call in calls if call[0] == "SnapKVPress.score"] == [
        ("SnapKVPress.score", layer) for layer in range(LAYERS)
    ]
    assert calls.count(("CompressingPipeline._forward", -1)) == 1


def test_score_has_all_kv_heads_at_once_and_never_runs_while_decoding(
    calls: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shapes = tiny_model("llama"), []
    score = SnapKVPress.score
    monkeypatch.setattr(
        SnapKVPress,
        "score",
        lambda self, layer: shapes.append(tuple(score(self, layer).shape)) or score(self, layer),
    )
    cache = DynamicCache()
    with torch.no_grad(), SnapKVPress(0.5)(model):
        model(tiny_ids(100), **{cache_keyword(model): cache})
        assert shapes == [(1, 2, 100)] * LAYERS
        for _ in range(3):
            model(tiny_ids(1), **{cache_keyword(model): cache})
    assert shapes == [(1, 2, 100)] * LAYERS


def test_only_the_cache_shrinks_and_in_every_layer_alike() -> None:
    model = tiny_model("llama")
    cache, plain = DynamicCache(), DynamicCache()
    keyword = cache_keyword(model)
    with torch.no_grad(), SnapKVPress(0.5)(model):
        pressed = model(tiny_ids(100), output_hidden_states=True, **{keyword: cache})
    with torch.no_grad():
        full = model(tiny_ids(100), output_hidden_states=True, **{keyword: plain})
    for ours, theirs in zip(pressed.hidden_states, full.hidden_states, strict=True):
        assert ours.shape == theirs.shape == (1, 100, 64)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [(1, 2, 50, 16)] * LAYERS
    kept = {tuple(key.tolist()) for key in cache.layers[0].keys[0, 0]}
    assert kept <= {tuple(key.tolist()) for key in plain.layers[0].keys[0, 0]}
