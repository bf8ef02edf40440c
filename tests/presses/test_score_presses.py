"""Scores: what is kept equals kvpress 0.5.5 where it is right, and is right where it is not."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from kvcache.budget import Budget
from presses import (
    AdaKVPress,
    CapPress,
    CompactorPress,
    CriticalKVPress,
    CURPress,
    LagKVPress,
    LeverageScorePress,
    NonCausalAttnPress,
    SnapKVPress,
    ThinKPress,
)
from presses.base import BasePress
from presses.non_causal_attention import attention_within_chunks
from tests.support.each_family import each_family
from tests.support.learned_weights import with_weights
from tests.support.peer.goldens import Case, load_goldens
from tests.support.prefilled_contexts import model_of, observed_layer, read_context
from tests.support.recorded_presses import WINDOW, padded_attention, recorded_press, their_sketches

GOLDENS = load_goldens("kvpress_kept_more.npz")
SAME = [
    *("LagKV", "LagKV(lag_size=32)", "LagKV(lag_size=32, cross_scoring=True)"),
    *(
        "CUR",
        "CUR(leverage_type=key)",
        "CUR(leverage_type=value)",
        "CUR(leverage_type=kv_avg)",
        "CUR(use_local_approximation=False)",
    ),
    *("CUR(use_random_leverage=True)", "LeverageScore", "Cap"),
    *("QFilter", "KVzap(model_type=linear)", "KVzap(model_type=mlp)", "ExpectedAttentionStats"),
    *("CriticalKV(SnapKV)", "CriticalKV(ExpectedAttention(use_vnorm=False))", "CriticalKV(Knorm)"),
]


@cache
def golden_press(label: str) -> BasePress:
    described = GOLDENS.metadata["presses"][label]
    return with_weights(recorded_press(described, without={"stats_folder"}))


def compare(label: str, family: str) -> None:
    press = golden_press(label)
    cases = [case for case in GOLDENS.cases(label) if case.family == family]
    for length in sorted({case.length for case in cases}):
        read = read_context(model_of(family), [press], length)
        evidence = read.observer.evidence[press.identity()]
        for case in (case for case in cases if case.length == length):
            scores = press.scores_at(evidence, Budget.of(case.ratio))
            for index, layer_scores, selection in zip(
                read.prefill.layers, scores, press.select(evidence, Budget.of(case.ratio)), strict=True
            ):
                same_choice(case, layer_scores[0], selection.keep[0], torch.from_numpy(GOLDENS[case][index]))
    if not cases:
        assert any(
            failure["label"] == label and failure["family"] == family
            for failure in GOLDENS.metadata["failures"]
        )
        assert read_context(model_of(family), [press], 90).compress(press, [0.5])


def same_choice(case: Case, scores: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal positions; where kvpress chose among equal scores, equal scores of what is kept."""
    assert torch.equal(ours.sum(-1), theirs.sum(-1)), case
    if not GOLDENS.details[case].get("tied"):
        assert torch.equal(ours, theirs), (case, int((ours != theirs).sum()))
        return
    if "(SnapKV)" in case.label:  # the first stage takes part of a window that ties
        assert torch.equal(ours[:, :-WINDOW], theirs[:, :-WINDOW]), case
        return
    pinned = scores > scores.max() - 1e-3  # ours differ among themselves, theirs do not
    scores = scores.masked_fill(
        pinned, scores[~pinned].max() if case.label.startswith("Compactor") else scores.max()
    )
    for head in range(len(scores)):
        assert torch.equal(
            scores[head][ours[head]].sort().values, scores[head][theirs[head]].sort().values
        ), case


@pytest.mark.parametrize("label", SAME)
@each_family()
def test_kept_positions_equal_kvpress(label: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    their_sketches(monkeypatch)
    compare(label, family)


@pytest.mark.parametrize(
    "label", ["NonCausalAttn", "NonCausalAttn(chunk_size=64)", "Compactor", "Compactor(blending=0.35)"]
)
@each_family()
def test_non_causal_scores_equal_kvpress_but_for_its_padding(
    label: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    their_sketches(monkeypatch)
    monkeypatch.setattr("presses.non_causal_attention.attention_within_chunks", padded_attention)
    compare(label, family)


@pytest.mark.parametrize("length", [64, 61, 129])
def test_padding_takes_no_part_in_non_causal_attention(length: int) -> None:
    layer = observed_layer("llama", length)
    received = attention_within_chunks(layer, 64)
    for start in range(0, length, 64):
        logits = (
            layer.queries()[:, :, start : start + 64]
            @ layer.keys[:, :, start : start + 64].repeat_interleave(layer.group, 1).mT
        )
        torch.testing.assert_close(received[..., start : start + 64], logits.softmax(-1).sum(2))
    if length % 64 == 0:
        torch.testing.assert_close(received, padded_attention(layer, 64))
    assert received.sum(-1).allclose(torch.tensor(float(length)))  # every query gives 1


def test_lagkv_scores_equal_kvpress() -> None:
    press = LagKVPress()
    evidence = read_context(model_of("llama"), [press], 701).observer.evidence[press.identity()]
    for scores, theirs in zip(evidence, GOLDENS.arrays["scores LagKV llama 701 0.5"], strict=True):
        torch.testing.assert_close(scores[0].clamp_max(1), torch.from_numpy(theirs), rtol=0, atol=1e-6)


def test_lagkv_with_constant_channels_is_finite() -> None:
    layer = observed_layer("llama", 40)
    keys = layer.keys.clone()
    keys[..., 3] = 1.5
    keys[..., 7] = 0.0
    keys[:, :, :6, 7] = 2.0  # constant where it is the scale, not where it is scored
    scores = LagKVPress(lag_size=8, cross_scoring=True).score(replace(layer, keys=keys, _memo={}))
    assert scores.isfinite().all()
    without = [channel for channel in range(keys.shape[-1]) if channel not in (3, 7)]
    zeroed = layer.keys.clone()
    zeroed[..., [3, 7]] = 0.0
    same = LagKVPress(lag_size=8, cross_scoring=True).score(replace(layer, keys=zeroed, _memo={}))
    torch.testing.assert_close(scores, same)
    assert len(without) == keys.shape[-1] - 2


def test_lagkv_by_hand() -> None:
    """Partitions of 2 behind 1 sink: [a b][c d] scored on the next, [e f] kept. Two channels per token."""
    tokens = [[9, 9], [0, 0], [0, 4], [0, 0], [1, 2], [0, 0], [2, 2]]
    states = torch.tensor(tokens, dtype=torch.float32)[None, None]
    layer = observed_layer("llama", 7)
    scores = LagKVPress(n_sink=1, lag_size=2, cross_scoring=True).score(
        replace(layer, keys=states, values=states, _memo={})
    )[0, 0]
    # a, b over min (0, 0), max (1, 2): (0, 0) and (0, 2), deviations 0 and √2; c, d over (0, 0), (2, 2): (0,
    # 0) and (0.5, 1), √(1/8)
    expected = torch.cat([torch.tensor([0.0, 2**0.5]).softmax(0), torch.tensor([0.0, 0.125**0.5]).softmax(0)])
    torch.testing.assert_close(scores[1:5], expected)
    assert (scores[[0, 5, 6]] > 1).all()


def test_cur_by_hand() -> None:
    keys = torch.tensor([1.0, 2.0, 1.0, 1.0])[None, None, :, None].sqrt()
    values = torch.tensor([1.0, 1.0, 3.0, 1.0])[None, None, :, None].sqrt()
    layer = replace(observed_layer("llama", 4), keys=keys, values=values, _memo={})
    scores = CURPress(num_sinks=1, local_window_size=2).score(layer)[0, 0]
    shares = torch.tensor([1 / 3 / 2, 2 / 3 / 2, 1 / 2 * 3 / 4, 1 / 2 * 1 / 4])
    torch.testing.assert_close(scores[1:], (shares / shares.sum())[1:])
    assert scores[0] == 1
    assert CURPress().score(replace(layer, keys=keys * 0, _memo={})).isfinite().all()


@pytest.mark.parametrize(
    "press",
    [LeverageScorePress(), CompactorPress(), CURPress(use_random_leverage=True)],
    ids=lambda press: press.name,
)
def test_sketches_have_a_generator_of_their_own(press: BasePress) -> None:
    layers = {seed: observed_layer("llama", 50) for seed in (0, 1)}
    torch.manual_seed(1)
    first = press.observe(layers[0])
    torch.manual_seed(2)
    again, other = press.observe(layers[1]), replace(press, seed=1).observe(observed_layer("llama", 50))
    pick = (lambda seen: seen[0]) if isinstance(first, tuple) else (lambda seen: seen)
    assert torch.equal(pick(first), pick(again))
    assert not torch.equal(pick(first), pick(other))
    elsewhere = press.observe(replace(layers[0], fingerprints=(5,), _memo={}))
    assert not torch.equal(pick(first), pick(elsewhere))


def test_rows_of_a_batch_are_standardised_alone() -> None:
    one = observed_layer("llama", 30)
    both = replace(
        one,
        **{
            name: getattr(one, name).repeat(2, *[1] * (getattr(one, name).dim() - 1))
            for name in ("hidden", "keys", "values")
        },
    )
    both = replace(
        both,
        values=both.values * torch.tensor([1.0, 100.0])[:, None, None, None],
        fingerprints=one.fingerprints * 2,
        _memo={},
    )
    for press in (NonCausalAttnPress(), LeverageScorePress()):
        torch.testing.assert_close(
            press.score(both)[:1], press.score(replace(one, _memo={})), rtol=1e-4, atol=1e-4
        )


def test_compactor_blends_by_the_ratio() -> None:
    layer = observed_layer("llama", 60)
    press = CompactorPress()
    unusual, attended = press.observe(layer)
    for ratio in (0.2, 0.7):
        (scores,) = press.scores_at([(unusual, attended)], Budget.of(ratio))
        torch.testing.assert_close(scores[..., 8:-4], (ratio * unusual + attended)[..., 8:-4])
        assert scores[..., 8:-4].max() < min(scores[..., :8].min(), scores[..., -4:].min())


def test_criticalkv_by_hand() -> None:
    """Scores 4 3 2 1 and norms 1 1 5 9: one entry is sure, then the largest product of both."""
    scores, norms = (
        torch.tensor([4.0, 3.0, 2.0, 1.0])[None, None],
        torch.tensor([1.0, 1.0, 5.0, 9.0])[None, None],
    )
    (selection,) = CriticalKVPress().select([(scores, norms)], Budget(ratio=0.5))
    assert selection.positions.tolist() == [[[0, 2]]]


def test_criticalkv_within_other_wrappers() -> None:
    press = AdaKVPress(CriticalKVPress(SnapKVPress(window_size=8)))
    assert read_context(model_of("qwen2"), [press], 90).compress(press, [0.5])[0].kept_fraction == 0.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LagKVPress(lag_size=0), "lag_size=0"),
        (lambda: CURPress(leverage_type="both"), "'both'"),
        (lambda: CURPress(local_window_size=0), "local_window_size=0"),
        (lambda: CapPress(n_sink=-1), "n_sink=-1"),
        (lambda: LeverageScorePress(sketch_dimension=0), "sketch_dimension=0"),
        (lambda: NonCausalAttnPress(chunk_size=0), "chunk_size=0"),
        (lambda: CompactorPress(sink_size_end=-1), "sink_size_end=-1"),
        (lambda: CompactorPress(chunk_size=0), "chunk_size=0"),
        (lambda: CriticalKVPress(first_stage_ratio=1.5), "first_stage_ratio=1.5"),
        (lambda: AdaKVPress(ThinKPress()), "built on scores"),
    ],
)
def test_wrong_options_are_refused_with_a_sentence(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
