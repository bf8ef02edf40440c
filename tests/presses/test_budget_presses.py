"""Budgets: what is kept equals kvpress 0.5.5 where it is right, and is right where it is not."""

from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.nn import functional
from transformers import DynamicCache

from kvcache.budget import Budget
from kvcache.hooks.prefill import observing
from kvcache.modules import cache_keyword
from longpress.evaluation.config import register, settings
from presses import (
    BlockPress,
    ChunkPress,
    CriticalAdaKVPress,
    DMSPress,
    DuoAttentionPress,
    EntropyGatedChunkKVPress,
    ExpectedAttentionPress,
    FastKVzipPress,
    KeyDiffPress,
    KeyRerotationPress,
    KnormPress,
    LUKVPress,
    PerLayerCompressionPress,
    RandomPress,
    SimLayerKVPress,
    SnapKVPress,
    TOVAPress,
)
from presses.base import BasePress
from presses.lukv import head_budgets
from tests.support.each_family import each_family
from tests.support.learned_weights import with_weights
from tests.support.peer.goldens import Case, load_goldens
from tests.support.prefilled_contexts import model_of, observed_layer, read_context
from tests.support.recorded_presses import WINDOW, recorded_press
from tests.support.tiny_models import tiny_ids, tiny_model

GOLDENS = load_goldens("kvpress_kept_more.npz")
WRONG = ("Chunk(SnapKV",)
OURS = (
    "CriticalAdaKV",
    "Chunk(",
    "EntropyGated",
    "Block",
    "PerLayer",
    "SimLayerKV",
    "DMS",
    "DuoAttention",
    "LUKV",
    "FastKVzip",
)
LABELS = [
    label for label in GOLDENS.metadata["presses"] if label.startswith(OURS) and "decoding" not in label
]

ACROSS_LAYERS = ("DuoAttention", "FastKVzip")


@cache
def golden_press(label: str) -> BasePress:
    described = GOLDENS.metadata["presses"][label]
    bookkeeping = {"compression_ratios"} if label.startswith("SimLayerKV") else {"decoding"}
    return with_weights(recorded_press(described, without=bookkeeping))


@pytest.mark.parametrize("label", [label for label in LABELS if not label.startswith(WRONG)])
@each_family()
def test_kept_positions_equal_kvpress(label: str, family: str) -> None:
    press = golden_press(label)
    cases = [case for case in GOLDENS.cases(label) if case.family == family]
    if not cases:
        assert any(
            failure["label"] == label and failure["family"] == family
            for failure in GOLDENS.metadata["failures"]
        )
        assert read_context(model_of(family), [press], 90).compress(press, [0.5])
    for length in sorted({case.length for case in cases}):
        read = read_context(model_of(family), [press], length)
        evidence = read.observer.evidence[press.identity()]
        for case in (case for case in cases if case.length == length):
            if family == "gemma3" and label.startswith(
                ACROSS_LAYERS
            ):  # ours compete over the two compressed layers, theirs over all three
                kept = sum(
                    int(selection.keep.sum())
                    for selection in press.select(evidence, Budget.of(case.ratio or 0.5))
                )
                fewest, most = press.entry_bounds(2, 2, length, Budget.of(case.ratio or 0.5))
                assert fewest <= kept <= most
                continue
            detail = GOLDENS.details[case]
            for index, selection in zip(
                read.prefill.layers, press.select(evidence, Budget.of(case.ratio or 0.5)), strict=True
            ):
                ours, theirs = selection.keep[0], torch.from_numpy(GOLDENS[case][index])
                assert ours.sum() == theirs.sum(), case
                ties = detail.get("tied") or (
                    "(SnapKV)" in label and theirs[0].sum() < WINDOW
                )  # they cut a window of equal scores
                free = slice(None, -WINDOW) if ties else slice(None)
                assert int((ours != theirs)[:, free].sum()) <= 2 * detail.get("unstable", 0), (case, index)


# Chunks see their own rotations (kvpress: the end of the context's).


@each_family()
def test_chunks_are_scored_with_their_own_positions(family: str) -> None:
    layer = observed_layer(family, 701)
    press = ChunkPress(SnapKVPress(window_size=16), chunk_length=256)
    queries, keys = layer.queries(), layer.keys.repeat_interleave(layer.group, 1)
    future = torch.ones(16, 256, dtype=torch.bool).triu(241)
    for chunk, scores in enumerate(press.observe(layer)[:2]):
        here = slice(256 * chunk, 256 * (chunk + 1))
        logits = (queries[:, :, here][:, :, -16:] @ keys[:, :, here].mT * layer.scale).masked_fill(
            future, float("-inf")
        )
        votes = functional.avg_pool1d(logits.softmax(-1)[..., :-16].mean(2), 5, stride=1, padding=2)
        torch.testing.assert_close(
            scores[..., :-16], votes.unflatten(1, (-1, layer.group)).mean(2), rtol=1e-4, atol=1e-6
        )


@each_family()
def test_the_last_chunk_equals_kvpress_the_others_do_not(family: str) -> None:
    label, last, differing = "Chunk(SnapKV, chunk_length=256)", 512, 0
    press = golden_press(label)
    read = read_context(model_of(family), [press], 701)
    selections = press.select(read.observer.evidence[press.identity()], Budget(ratio=0.5))
    for index, selection in zip(read.prefill.layers, selections, strict=True):
        ours, theirs = selection.keep[0], torch.from_numpy(GOLDENS[Case(label, family, 701, 0.5)][index])
        assert torch.equal(ours[:, last:], theirs[:, last:])
        differing += int((ours != theirs).sum())
    assert differing > 100


def test_one_chunk_is_the_press_inside() -> None:
    press, inside = ChunkPress(ExpectedAttentionPress(), chunk_length=128), ExpectedAttentionPress()
    layer = observed_layer("llama", 100)
    torch.testing.assert_close(press.observe(layer)[0], inside.observe(layer))


def test_random_chunks_differ() -> None:
    first, second = ChunkPress(RandomPress(), chunk_length=50).observe(observed_layer("llama", 100))
    assert not torch.equal(first, second)


# Block is streaming top-k, for every scorer.


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_block_of_a_tokenwise_score_is_plain_top_k(size: int) -> None:
    layer = observed_layer("llama", 90)
    for ratio in (0.3, 0.9):
        (streamed,) = BlockPress(KnormPress(), block_size=size).select(
            [BlockPress(KnormPress()).observe(layer)], Budget.of(ratio)
        )
        (plain,) = KnormPress().select([KnormPress().score(layer)], Budget.of(ratio))
        assert torch.equal(streamed.keep, plain.keep)


def test_block_gives_a_scorer_of_hidden_states_the_tokens_it_speaks_of() -> None:
    """Done by hand for the first block of SnapKV: attention among kept tokens and the block."""
    layer = observed_layer("qwen3", 40)
    press = BlockPress(TOVAPress(), block_size=20)
    (selection,) = press.select(
        [press.observe(layer)], Budget(ratio=0.5)
    )  # 20 tokens, then 20 more: one step, over all 40
    (plain,) = TOVAPress().select([TOVAPress().score(layer)], Budget(ratio=0.5))
    assert torch.equal(selection.keep, plain.keep)
    press = BlockPress(TOVAPress(), block_size=10)
    (selection,) = press.select([press.observe(layer)], Budget(ratio=0.5))
    votes = (
        layer.queries()[:, :, 29:30]
        @ layer.keys[:, :, :30].repeat_interleave(layer.group, 1).mT
        * layer.scale
    )
    scores = votes.softmax(-1).mean((1, 2))[0]
    scores[29] = 2
    kept = scores.topk(20).indices.sort().values
    seen = torch.cat((kept, torch.arange(30, 40)))
    votes = (
        layer.queries()[:, :, 39:] @ layer.keys[:, :, seen].repeat_interleave(layer.group, 1).mT * layer.scale
    ).softmax(-1)
    scores = votes.mean((1, 2))[0]
    scores[-1] = 2
    expected = seen[scores.topk(20).indices].sort().values
    assert all(selection.positions[0, head].tolist() == expected.tolist() for head in range(layer.kv_heads))


def test_block_holds_hidden_states_only_for_scorers_that_look_at_them() -> None:
    layer = observed_layer("llama", 30)
    assert BlockPress(KeyDiffPress()).observe(layer).hidden.numel() == 0
    assert BlockPress(SnapKVPress()).observe(layer).hidden is layer.hidden


# Rows of a batch decide for themselves.


@pytest.mark.parametrize(
    "press",
    [
        EntropyGatedChunkKVPress(SnapKVPress(window_size=8)),
        CriticalAdaKVPress(SnapKVPress(window_size=8)),
        SimLayerKVPress(lazy_threshold=0.3, n_recent=16),
        DMSPress(KnormPress(), threshold=-5.4, sliding_window_size=8),
        DuoAttentionPress(on_the_fly_scoring=True, sink_size=4, recent_size=8),
        with_weights(FastKVzipPress()),
    ],
    ids=lambda press: press.name,
)
def test_rows_of_a_batch_decide_for_themselves(press: BasePress) -> None:
    def select(rows: slice) -> torch.Tensor:
        evidence: list = []
        with torch.no_grad(), observing(model, lambda layer, cache: evidence.append(press.observe(layer))):
            model.model(input_ids=tiny_ids(90, 2)[rows], **{cache_keyword(model.model): DynamicCache()})
        return torch.stack([selection.keep for selection in press.select(evidence, Budget(ratio=0.5))], dim=1)

    model = tiny_model("llama")
    both = select(slice(0, 2))
    assert torch.equal(both, torch.cat((select(slice(0, 1)), select(slice(1, 2)))))
    assert not torch.equal(both[0], both[1]) or press.name in ("simlayerkv", "duo_attention")


# Small examples by hand.


def test_entropy_gate_by_hand() -> None:
    """Chunks of 2: the best one sits on one token and gives only that; what is left goes to the next best."""
    scores = torch.tensor([9.0, 0.0, 2.0, 2.0, 1.0, 1.0, 3.0, 0.1])[None, None]
    press = EntropyGatedChunkKVPress(KnormPress(), chunk_length=2, low_entropy_chunk_length=1)
    # means 4.5 2 1 1.55, median 1.55; entropies 0 1 1 0.21, median 0.21: the first chunk is gated, the last
    # (0.21 is not below) is not
    assert press.select([scores], Budget(ratio=0.625))[0].positions.tolist() == [[[0, 2, 3]]]
    assert press.select([scores], Budget(ratio=0.375))[0].positions.tolist() == [[[0, 2, 3, 6, 7]]]


def test_head_budgets_by_hand() -> None:
    assert head_budgets(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), 10).tolist() == [
        3,
        5,
        7,
    ]  # 2.5 5 7.5, total 15
    assert head_budgets(torch.tensor([0.01, 0.99], dtype=torch.float64), 10).tolist() == [1, 10]
    assert head_budgets(torch.zeros(2, dtype=torch.float64), 10).tolist() == [1, 1]


def test_dms_by_hand() -> None:
    scores = torch.tensor([[5.0, 1.0, 3.0, 0.0], [1.0, 1.0, 1.0, 0.0]])[None]
    press = DMSPress(KnormPress(), threshold=3.0, sliding_window_size=1)
    assert press.select([scores], Budget(ratio=0.5))[0].keep[0].tolist() == [
        [True, False, True, True],
        [False, False, False, True],
    ]
    by_ratio = DMSPress(KnormPress(), sliding_window_size=1)
    assert by_ratio.select([scores], Budget(ratio=0.5))[0].counts.tolist() == [[3, 1]]


def test_duo_attention_measures_what_it_keeps() -> None:
    for tokens in (40, 300):  # short contexts too, where kvpress reports a negative ratio
        press = DuoAttentionPress(
            head_compression_ratio=0.5, on_the_fly_scoring=True, sink_size=16, recent_size=64
        )
        (context,) = read_context(model_of("llama"), [press], tokens).compress(press, [0.5])
        assert context.kept_fraction == 0.5 + 0.5 * min(1, 80 / tokens)


def test_duo_attention_by_ratio_shortens_the_lowest_heads() -> None:
    press = DuoAttentionPress(on_the_fly_scoring=True, sink_size=2, recent_size=18)
    read = read_context(model_of("llama"), [press], 100)
    scores = torch.stack(
        [seen.scores[0, :, 0] for seen in read.observer.evidence[press.identity()]]
    ).flatten()
    (context,) = read.compress(press, [0.5])
    counts = torch.tensor(context.entries()).flatten()
    assert counts[scores.argsort()].tolist() == [
        20,
        20,
        20,
        40,
        100,
        100,
    ]  # 300 of 600: the fourth keeps what is missing
    (context,) = read.compress(press, [0.9])
    assert set(torch.tensor(context.entries()).flatten().tolist()) == {
        9
    }  # Budget(ratio=0.9).entries(100), fewer than sinks and recent tokens


def test_simlayerkv_by_ratio_takes_the_laziest_layers() -> None:
    press = SimLayerKVPress(n_recent=32)
    read = read_context(model_of("llama"), [press], 90)
    laziness = torch.tensor([float(seen[0, 0, 0]) for seen in read.observer.evidence[press.identity()]])
    (context,) = read.compress(press, [0.34])
    counts = torch.tensor(context.entries())
    assert counts[laziness.argsort(descending=True)].tolist() == [
        [35, 35],
        [52, 52],
        [90, 90],
    ]  # 177 = 3 · Budget(ratio=0.34).entries(90)
    mask = press.select(read.observer.evidence[press.identity()], Budget(ratio=0.34))[
        int(laziness.argmax())
    ].keep[0, 0]
    assert mask.nonzero().flatten().tolist() == [0, 1, 2, 3, *range(59, 90)]


# Budgets that are no ratio.


@pytest.mark.parametrize(
    "press",
    [
        DMSPress(KnormPress(), threshold=-5.4),
        SimLayerKVPress(lazy_threshold=0.01, n_recent=16),
        DuoAttentionPress(head_compression_ratio=0.25, on_the_fly_scoring=True, recent_size=8, sink_size=4),
        PerLayerCompressionPress(compression_ratios=(0.0, 0.5, 0.75)),
        KeyRerotationPress(PerLayerCompressionPress(compression_ratios=(0.5, 0.5, 0.5))),
    ],
    ids=lambda press: press.name,
)
def test_a_budget_of_its_own_holds_whatever_the_ratio(press: BasePress) -> None:
    assert press.traits.has_fixed_budget and press.budget.is_fixed
    prefilled = read_context(model_of("llama"), [press], 300)
    contexts = prefilled.compress(press, [press.budget, 0.1, 0.9, 0.0])
    assert contexts[0].entries() == contexts[1].entries() == contexts[2].entries()
    assert contexts[0].kept_fraction < contexts[3].kept_fraction == 1
    contexts[0].check_budget(press, press.budget)


def test_a_sweep_runs_a_budget_of_its_own_once() -> None:
    with initialize_config_dir(str(Path("conf").absolute()), version_base="1.3"):
        register()
        overrides = [
            "press=[dms,knorm]",
            "presses.dms.threshold=-5",
            "compression_ratio=[0.25,0.5]",
            "benchmark=niah",
        ]
        variants = settings(compose("config", overrides)).variants
    assert [(label, variant.budget) for label, variant in variants] == [
        ("none", Budget(ratio=0.0)),
        ("dms", Budget.fixed()),
        ("knorm", Budget(ratio=0.25)),
        ("knorm", Budget(ratio=0.5)),
    ]


def test_per_layer_needs_a_ratio_for_every_layer() -> None:
    press = PerLayerCompressionPress(compression_ratios=(0.5, 0.5))
    with pytest.raises(ValueError, match="has 2 entries, but the model a layer 2"):
        read_context(model_of("llama"), [press], 40).compress(press, [0.5])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ChunkPress(chunk_length=0), "chunk_length=0"),
        (lambda: BlockPress(block_size=0), "block_size=0"),
        (lambda: EntropyGatedChunkKVPress(chunk_length=3), "low_entropy_chunk_length=4"),
        (lambda: CriticalAdaKVPress(first_stage_ratio=-1), "first_stage_ratio=-1"),
        (lambda: CriticalAdaKVPress(alpha_safeguard=2), "alpha_safeguard=2"),
        (lambda: PerLayerCompressionPress(compression_ratios=(0.5, 1.0)), "1.0"),
        (lambda: SimLayerKVPress(n_recent=1), "n_recent=1"),
        (lambda: DMSPress(sliding_window_size=0), "sliding_window_size=0"),
        (lambda: DuoAttentionPress(head_compression_ratio=1.2), "1.2"),
        (lambda: LUKVPress(sink=-1), "sink=-1"),
        (lambda: FastKVzipPress(window_ratio=2), "window_ratio=2"),
        (lambda: BlockPress(SimLayerKVPress()), "built on scores"),
    ],
)
def test_wrong_options_are_refused_with_a_sentence(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
