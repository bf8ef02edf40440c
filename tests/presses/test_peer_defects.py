"""What kvpress 0.5.5 gets wrong, done right: a test for each of its known defects.

Beside these: chunks with rotations of their own (test_budget_presses.py), an end token that comes first
(test_pipeline.py, test_while_answering.py), entries of a replay that stay behind (test_probes.py), padding
that takes part in attention (test_score_presses.py).
"""

from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache

from kvcache.budget import Budget
from kvcache.modules import cache_keyword
from longpress.catalogue import presses
from presses import (
    AdaKVPress,
    ChunkKVPress,
    CriticalAdaKVPress,
    CriticalKVPress,
    DuoAttentionPress,
    EntropyGatedChunkKVPress,
    ExpectedAttentionStatsPress,
    KnormPress,
    KVzipPress,
    NonePress,
    PyramidKVPress,
    RandomPress,
    SnapKVPress,
    ThinKPress,
)
from presses.base import BasePress
from tests.support.learned_weights import with_weights
from tests.support.prefilled_contexts import read_context
from tests.support.tiny_models import tiny_ids, tiny_model

TOKENS = 150


def selected(model, press: BasePress, ids: torch.Tensor, ratio: float = 0.5) -> torch.Tensor:
    """(L, B, H, T) bool: what is kept."""
    prefilled = read_context(model, [press], ids=ids)
    evidence = press.probe(prefilled.prefill, prefilled.observer.evidence[press.identity()])
    return torch.stack([selection.keep for selection in press.select(evidence, Budget.of(ratio))])


def answer(model, press: BasePress, question: torch.Tensor, pieces: int) -> torch.Tensor:
    """Logits of a question read in pieces after a compressed context."""
    stored, keyword = DynamicCache(config=model.config), cache_keyword(model)
    with torch.no_grad(), press(model):
        model(tiny_ids(TOKENS), **{keyword: stored})
        parts, seen = [], TOKENS
        for part in question.split(-(-question.shape[1] // pieces), dim=1):
            positions = torch.arange(seen, seen + part.shape[1])[None]
            parts.append(model(part, position_ids=positions, **{keyword: stored}).logits)
            seen += part.shape[1]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "press",
    [
        PyramidKVPress(SnapKVPress(0.5, window_size=8)),
        AdaKVPress(SnapKVPress(0.5, window_size=8)),
        KVzipPress(0.5),
    ],
    ids=str,
)
def test_layers_and_heads_of_different_sizes_answer_questions_of_many_tokens(
    press: BasePress, attention: str
) -> None:
    """kvpress: a size error without FlashAttention, or "Could not find fake keys"."""
    model, question = tiny_model("llama", attention), tiny_ids(40, seed=1)
    whole = answer(model, press, question, pieces=1)
    torch.testing.assert_close(whole, answer(model, press, question, pieces=4), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole, answer(model, NonePress(), question, pieces=1), atol=1e-2)


def test_a_second_cache_of_the_model_and_the_keys_are_left_alone() -> None:
    """kvpress: the mask belongs to the attention module, and masked keys are overwritten."""
    model, keyword, question = tiny_model("llama"), cache_keyword(tiny_model("llama")), tiny_ids(3, seed=1)
    plain, stored = DynamicCache(config=model.config), DynamicCache(config=model.config)
    with torch.no_grad():
        model(tiny_ids(TOKENS), **{keyword: plain})
        full = [layer.keys.clone() for layer in plain.layers]
        expected = model(question, **{keyword: plain}).logits
        with AdaKVPress(KnormPress(0.5))(model):
            model(tiny_ids(TOKENS), **{keyword: stored})
            model(question, **{keyword: stored})
        again = DynamicCache(config=model.config)
        model(tiny_ids(TOKENS), **{keyword: again})
        torch.testing.assert_close(model(question, **{keyword: again}).logits, expected)
    for layer, keys in zip(stored.layers, full, strict=True):
        for head in range(2):
            kept = layer.keys[0, head][layer.valid[0, head]][:-3]
            assert bool((kept[:, None] == keys[0, head][None]).all(-1).any(-1).all())


@pytest.mark.parametrize("ratio", [0.75, 0.9, 0.99])
def test_a_budget_below_the_window_keeps_the_most_recent_tokens(ratio: float) -> None:
    """kvpress: an arbitrary part of the window, not even the last token for sure."""
    kept = Budget(ratio=ratio).entries(TOKENS)
    expected = torch.arange(TOKENS) >= TOKENS - kept
    assert bool(
        (
            selected(tiny_model("llama"), SnapKVPress(window_size=64), tiny_ids(TOKENS), ratio) == expected
        ).all()
    )


@pytest.mark.parametrize(
    "press",
    [
        ChunkKVPress(SnapKVPress(window_size=8)),
        EntropyGatedChunkKVPress(KnormPress()),
        CriticalAdaKVPress(KnormPress()),
        KVzipPress(),
    ],
    ids=lambda press: press.name,
)
def test_rows_of_a_batch_decide_for_themselves(press: BasePress) -> None:
    """kvpress: row 0 decides for all, or budgets of rows mix, or only one row is allowed."""
    model, ids = tiny_model("llama"), tiny_ids(TOKENS, batch=2)
    both = selected(model, press, ids)
    alone = torch.cat([selected(model, press, ids[row : row + 1]) for row in range(2)], dim=1)
    assert torch.equal(both, alone)
    assert not torch.equal(both[:, 0], both[:, 1])


@pytest.mark.parametrize("tokens", [1, 5, 40, 300])
def test_no_press_removes_less_than_nothing(tokens: int) -> None:
    """kvpress: DuoAttention reports a ratio of -0.14 at 300 tokens."""
    press = DuoAttentionPress(head_compression_ratio=0.5, on_the_fly_scoring=True)  # windows of 384 tokens
    (context,) = read_context(tiny_model("llama"), [press], ids=tiny_ids(tokens)).compress(press, [0.5])
    assert context.kept_fraction == 1
    for name in ("duo_attention", "simlayerkv", "streaming_llm", "dms"):
        of_catalogue = with_weights(presses()[name].load()())
        (context,) = read_context(tiny_model("llama"), [of_catalogue], ids=tiny_ids(tokens)).compress(
            of_catalogue, [0.5]
        )
        assert context.kept_fraction <= max(0.5, 1 / tokens)


def test_random_scores_differ_between_layers_contexts_and_rows_and_repeat() -> None:
    """kvpress: with a seed, the same positions in all layers and contexts; without, any."""
    model, press = tiny_model("llama"), RandomPress()
    first = selected(model, press, tiny_ids(TOKENS))
    torch.manual_seed(7)
    assert torch.equal(first, selected(model, press, tiny_ids(TOKENS)))
    assert all(not torch.equal(a, b) for a, b in pairwise(first))
    assert not torch.equal(first, selected(model, press, tiny_ids(TOKENS, seed=1)))
    assert not torch.equal(first, selected(model, RandomPress(seed=1), tiny_ids(TOKENS)))
    both = selected(model, press, torch.cat((tiny_ids(TOKENS), tiny_ids(TOKENS, seed=1))))
    assert torch.equal(both[:, :1], first) and not torch.equal(both[:, 0], both[:, 1])


@pytest.mark.parametrize("family", ["qwen2", "phi3"])
@pytest.mark.parametrize(
    "press",
    [CriticalKVPress(SnapKVPress()), ExpectedAttentionStatsPress(), ThinKPress()],
    ids=lambda press: press.name,
)
def test_configurations_without_a_head_size(press: BasePress, family: str) -> None:
    """kvpress: AttributeError."""
    model = tiny_model(family)
    assert getattr(model.config, "head_dim", None) is None
    press = with_weights(press)
    (context,) = read_context(model, [press], ids=tiny_ids(TOKENS)).compress(press, [0.5])
    context.check_budget(press, Budget.of(0.5))
    assert context.kept_fraction < 1


def test_inner_presses_load_the_weights_of_the_model_at_hand() -> None:
    """kvpress: wrappers that do not pass the model on, and weights of the first model used for the second."""
    for name in ("qfilter", "kvzap", "expected_attention_stats"):
        inner = with_weights(presses()[name].load()())
        press = CriticalAdaKVPress(inner)
        for family in ("llama", "qwen3"):
            assert selected(tiny_model(family), press, tiny_ids(TOKENS)).float().mean() == 0.5


def test_shared_scores_are_not_written_to() -> None:
    """kvpress: AdaKV, CriticalAdaKV and LUKV pin entries in the tensor they are given."""
    model = tiny_model("llama")
    for name in ("adakv", "critical_adakv", "lukv"):
        press = with_weights(presses()[name].load()())
        assert torch.equal(
            selected(model, press, tiny_ids(TOKENS), 0.5), selected(model, press, tiny_ids(TOKENS), 0.5)
        )
        prefilled = read_context(model, [press], ids=tiny_ids(TOKENS))
        evidence = prefilled.observer.evidence[press.identity()]
        first = press.select(evidence, Budget(ratio=0.5))
        press.select(evidence, Budget(ratio=0.9))
        assert all(
            torch.equal(a.keep, b.keep)
            for a, b in zip(first, press.select(evidence, Budget(ratio=0.5)), strict=True)
        )
