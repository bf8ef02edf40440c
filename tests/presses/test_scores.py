"""Scores: what is kept equals kvpress 0.5.5 where it is right, and is right where it is not."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from peer.goldens import Case, load_goldens
from test_against_kvpress import WINDOW, build, prefilled
from tiny_models import FAMILIES, HEAD_DIM, KV_HEADS

import presses
from kvcache.observation import LayerObservation
from kvcache.selection import budget
from presses import leverage, non_causal_attention
from presses.base import BasePress

GOLDENS = load_goldens("kvpress_kept_more.npz")
SAME = [
    *("LagKV", "LagKV(lag_size=32)", "LagKV(lag_size=32, cross_scoring=True)"),
    *("CUR", "CUR(leverage_type=key)", "CUR(leverage_type=value)", "CUR(leverage_type=kv_avg)", "CUR(use_local_approximation=False)"),
    *("CUR(use_random_leverage=True)", "LeverageScore", "Cap"),
    *("CriticalKV(SnapKV)", "CriticalKV(ExpectedAttention(use_vnorm=False))", "CriticalKV(Knorm)"),
]
PADDED = ["NonCausalAttn", "NonCausalAttn(chunk_size=64)", "Compactor", "Compactor(blending=0.35)"]


@cache
def golden_press(label: str) -> BasePress:
    return build(GOLDENS.metadata["presses"][label])


def their_sketches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws of kvpress in the place of ours."""

    def recorded(layer: LayerObservation, seed: int, *shape: int) -> torch.Tensor:
        if len(shape) == 2:
            return torch.from_numpy(GOLDENS.arrays["sketch CUR"][layer.index])[None]
        return torch.from_numpy(GOLDENS.arrays["sketch LeverageScore"][layer.index])

    monkeypatch.setattr("presses.leverage.gaussian", recorded)
    monkeypatch.setattr("presses.cur.gaussian", recorded)


def compare(label: str, family: str) -> None:
    press = golden_press(label)
    cases = [case for case in GOLDENS.cases(label) if case.family == family]
    for length in sorted({case.length for case in cases}):
        read = prefilled(family, length, press)
        evidence = read.onlooker.evidence[press.identity()]
        for case in (case for case in cases if case.length == length):
            scores = press.scores_at(evidence, case.ratio)
            for index, layer_scores, selection in zip(read.prefill.layers, scores, press.select(evidence, case.ratio), strict=True):
                same_choice(case, layer_scores[0], selection.keep[0], torch.from_numpy(GOLDENS[case][index]))
    if not cases:
        assert any(failure["label"] == label and failure["family"] == family for failure in GOLDENS.metadata["failures"])
        assert prefilled(family, 90, press).compress(press, [0.5])


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
    scores = scores.masked_fill(pinned, scores[~pinned].max() if case.label.startswith("Compactor") else scores.max())
    for head in range(len(scores)):
        assert torch.equal(scores[head][ours[head]].sort().values, scores[head][theirs[head]].sort().values), case


@pytest.mark.parametrize("label", SAME)
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_positions_equal_kvpress(label: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    their_sketches(monkeypatch)
    compare(label, family)
