"""Presses that act while answers are written: laws of all, kvpress's recorded decisions, small examples."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

from kvcache.budget import Budget
from kvcache.cache import CompressedCache, CompressedLayer
from kvcache.hooks.decode_hooks import DecodeHook, DecodingObservation
from kvcache.modules import cache_keyword
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from presses import (
    AdaKVPress,
    CAMPress,
    DecodingPress,
    DMSPress,
    KeyDiffPress,
    KnormPress,
    KVzipPress,
    PrefillDecodingPress,
    QFilterPress,
    RatioDecodingPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from presses.base import BasePress
from presses.cam import coins
from tests.support.catalogue_presses import ACTIVE, busy_press_named, has_no_ratio
from tests.support.decoded_rows import decode_forced
from tests.support.each_family import each_family
from tests.support.learned_weights import with_weights
from tests.support.peer.goldens import MORE, REST, Goldens, load_goldens
from tests.support.prefilled_contexts import read_context
from tests.support.tiny_models import tiny_ids, tiny_model

FILES = [load_goldens(name) for name in (MORE, REST)]


def recording(label: str) -> Goldens:
    """The file that holds the label."""
    return next(goldens for goldens in FILES if label in goldens.metadata["presses"])


def compare_with_kvpress(
    label: str, press: BasePress, family: str, monkeypatch: pytest.MonkeyPatch
) -> CompressedCache:
    """Feed the recorded tokens under `press`, and compare what each layer keeps after every recorded step."""
    model, seen, goldens = tiny_model(family), 0, recording(label)
    cases = {goldens.details[case]["step"]: case for case in goldens.cases(label) if case.family == family}
    assert cases
    every = full_keys(family, tiny_ids(150)[:, :96])
    stored, keyword = DynamicCache(config=model.config), cache_keyword(model.model)
    update = CompressedLayer.update

    def note(layer: CompressedLayer, keys: torch.Tensor, *rest, **options):
        every[stored.layers.index(layer)] = torch.cat((every[stored.layers.index(layer)], keys[0]), dim=1)
        return update(layer, keys, *rest, **options)

    monkeypatch.setattr(CompressedLayer, "update", note)
    with torch.no_grad(), press(model):
        for step, part in enumerate(tiny_ids(150).split([96, 5, *[1] * 49], dim=1)):
            model.model(
                input_ids=part,
                position_ids=torch.arange(seen, seen + part.shape[1])[None],
                **{keyword: stored},
            )
            seen += part.shape[1]
            for index, layer in enumerate(stored.layers if step in cases else []):
                ours = torch.stack(
                    [held(every[index][head], layer.keys[0, head][layer.valid[0, head]]) for head in range(2)]
                ).numpy()
                theirs = goldens[cases[step]][index]
                differing = int((ours != theirs).sum())
                assert differing <= 2 * goldens.details[cases[step]].get("unstable", 0), (
                    cases[step],
                    index,
                    differing,
                )
    return stored


def held(keys: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """(T,) which of the keys (T, d) are among those kept (K, d)."""
    return (keys[:, None] == kept[None]).all(-1).any(-1)


def full_keys(family: str, ids: torch.Tensor) -> list[torch.Tensor]:
    model = tiny_model(family)
    stored = DynamicCache(config=model.config)
    with torch.no_grad():
        model.model(input_ids=ids, **{cache_keyword(model.model): stored})
    return [layer.keys[0] for layer in stored.layers]


RECORDED = {
    "Decoding(Knorm)": DecodingPress(KnormPress(), compression_interval=8, target_size=64),
    "Decoding(KeyDiff)": DecodingPress(KeyDiffPress(), compression_interval=8, target_size=64),
    "Decoding(TOVA)": DecodingPress(TOVAPress(), compression_interval=8, target_size=64),
    "CompressionRatioDecoding(Knorm)": RatioDecodingPress(KnormPress(), 0.5, compression_interval=8),
    "CompressionRatioDecoding(KeyDiff, target_compression_ratio=0.3)": RatioDecodingPress(
        KeyDiffPress(), 0.3, compression_interval=8
    ),
    "PrefillDecoding(Knorm, Decoding(KeyDiff))": PrefillDecodingPress(
        KnormPress(0.4), DecodingPress(KeyDiffPress(), compression_interval=8, target_size=48)
    ),
    "Decoding(AdaKV(Knorm))": DecodingPress(
        AdaKVPress(KnormPress()), compression_interval=16, target_size=64
    ),
    "CAM(Knorm)": CAMPress(KnormPress(), compression_interval=8, target_size=64, merge_budget=8),
    "CAM(KeyDiff)": CAMPress(KeyDiffPress(), compression_interval=1, target_size=64, merge_budget=32),
    "CAM(TOVA)": CAMPress(TOVAPress(), compression_interval=8, target_size=64, buffer_size=1),
    "Decoding(QFilter)": DecodingPress(with_weights(QFilterPress()), compression_interval=8, target_size=64),
    "DMS(Knorm, threshold=-6.0, decoding=True)": DMSPress(
        KnormPress(), threshold=-6.0, sliding_window_size=32, decoding=True
    ),
    "DMS(Knorm, threshold=-5.4, decoding=True)": DMSPress(
        KnormPress(), threshold=-5.4, sliding_window_size=32, decoding=True
    ),
}


def likely(chance: torch.Tensor, layer: object, seed: int) -> torch.Tensor:
    """The coin of the recording."""
    return (chance >= 0.5).to(chance.dtype)


@each_family(but="gemma3")
@pytest.mark.parametrize("label", RECORDED)
def test_kept_positions_equal_kvpress(label: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("presses.cam.coins", likely)
    stored = compare_with_kvpress(label, RECORDED[label], family, monkeypatch)
    if label.startswith("CAM"):
        theirs = torch.from_numpy(recording(label).arrays[f"values {label} {family} 150 0.0"])
        ours = torch.stack([layer.values[0] for layer in stored.layers])
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_streaming_keeps_sinks_and_the_most_recent() -> None:
    press = DecodingPress(StreamingLLMPress(n_sink=2), compression_interval=3, target_size=6)
    assert kept_positions(press, prefill=9, steps=2) == [*range(11)]
    assert kept_positions(press, prefill=9, steps=3) == [0, 1, 8, 9, 10, 11]
    assert kept_positions(press, prefill=9, steps=5) == [0, 1, 8, 9, 10, 11, 12, 13]
    assert kept_positions(press, prefill=9, steps=6) == [0, 1, 11, 12, 13, 14]


def kept_positions(press: BasePress, prefill: int, steps: int) -> list[int]:
    """Positions kept in the last layer after single tokens; of a model with a window, which stores them."""
    model = tiny_model("mistral", sliding_window=512)
    stored = DynamicCache(config=model.config)
    ids = tiny_ids(prefill + steps)
    with torch.no_grad(), press(model):
        for part in ids.split([prefill, *[1] * steps], dim=1):
            model(part, **{cache_keyword(model): stored})
    positions = stored.layers[-1].row_entries(0)[3]
    assert bool((positions == positions[:1]).all())
    return positions[0].tolist()


def test_cam_merges_by_hand() -> None:
    """Of five entries two are evicted: the one attended to more is shared among the two after it."""
    decode_hook = CAMPress(KnormPress(), target_size=3, merge_budget=2).decode_hook(Budget(ratio=0.0))
    decode_hook.received = torch.tensor([[[0.1, 0.6, 0.4, 0.2, 0.1]]])
    layer = SimpleNamespace(
        valid=torch.ones(1, 1, 5, dtype=torch.bool), generators=lambda seed: [torch.Generator()]
    )
    scores = torch.tensor([[[0.0, 1.0, 5.0, 4.0, 3.0]]])
    kept = Selection.top(scores, 3)
    merged = decode_hook._merged(layer, scores, kept, merges=1)
    assert merged.sources.tolist() == [
        [[1]]
    ]  # the better of the two; 0.6 / mean(0.4, 0.2) is above 1, so it is merged for sure
    values = torch.arange(5.0).view(1, 1, 5, 1)
    assert decode_hook.apply(values, values, merged)[1].flatten().tolist() == [2.5, 3.5, 4.0]
    everything = decode_hook._merged(layer, scores, kept, merges=9)
    assert everything.sources.tolist() == [[[1, 0]]]
    assert everything.shares[0, 0, 0].tolist() == [0.5, 0.5, 0.0]


def test_cam_draws_the_same_coins_again_and_others_elsewhere() -> None:
    def coins_at(position: int, index: int, seed: int = 0) -> list[float]:
        layer = SimpleNamespace(
            generators=lambda seed: LayerObservation.generators(
                SimpleNamespace(index=index, fingerprints=(position,)), seed
            )
        )
        return coins(torch.full((1, 1, 64), 0.5), layer, seed).flatten().tolist()

    assert coins_at(7, 0) == coins_at(7, 0)
    assert len({tuple(coins_at(*at)) for at in [(7, 0), (8, 0), (7, 1), (7, 0, 1)]}) == 4
    assert 16 < sum(coins_at(7, 0)) < 48


def test_dms_judges_tokens_when_they_leave_the_window() -> None:
    """Keys of norm 1 to 9 in turn: what scores below -5 goes, three tokens later."""
    press = DMSPress(KnormPress(), threshold=-5.0, sliding_window_size=3, decoding=True)
    keys = torch.tensor([1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0])[None, None, :, None]
    scores = -keys[..., 0]
    decode_hook = press.decode_hook(Budget(ratio=0.5))
    (prefill,) = press.select([scores[..., :4]], Budget(ratio=0.5))
    assert prefill.keep[0, 0].tolist() == [True, True, True, True]
    entries, seen = list(range(4)), []
    for token in range(4, 7):
        entries.append(token)
        held = keys[:, :, entries]
        layer = DecodingObservation(
            0,
            SimpleNamespace(layer_idx=0),
            torch.zeros(1, 1, 1),
            held,
            held,
            held,
            held,
            None,
            (token,),
            valid=torch.ones(1, 1, len(entries), dtype=torch.bool),
        )
        layer = replace(layer, entry_metadata=press.entry_metadata(scores[..., :4]) if token == 4 else None)
        selection = decode_hook.after_pass(layer)
        entries = entries if selection is None else [entries[at] for at in selection.positions[0, 0].tolist()]
        seen.append(list(entries))
    assert seen == [[0, 2, 3, 4], [0, 2, 3, 4, 5], [0, 2, 4, 5, 6]]


def test_a_target_below_the_window_keeps_the_most_recent() -> None:
    press = DecodingPress(SnapKVPress(window_size=8), compression_interval=6, target_size=3)
    assert kept_positions(press, prefill=20, steps=6) == [23, 24, 25]


@pytest.mark.parametrize("name", ACTIVE)
@each_family()
def test_rows_beside_each_other_are_as_rows_alone_and_as_standalone(name: str, family: str) -> None:
    model, press, full = tiny_model(family), busy_press_named(name), KnormPress()
    read = read_context(model, [press, full], 60)
    mine = read.compress(press, [0.0] if has_no_ratio(press) else [0.5])[0]
    plain, knorm = read.compress(full, [0.0, 0.5])
    ids = tiny_ids(13, batch=4, seed=8)
    decode_hook, nothing = lambda: press.decode_hook(Budget(ratio=0.5)), lambda: None
    contexts, decode_hooks = [plain, mine, knorm, mine], [nothing, decode_hook, nothing, decode_hook]
    together = decode_forced(model, contexts, decode_hooks, ids)
    for row in range(4):
        alone = decode_forced(model, [contexts[row]], [decode_hooks[row]], ids[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-3)
    without = decode_forced(model, [mine], [nothing], ids[1:2])
    assert not torch.allclose(together[1:2], without, atol=1e-3), (
        "nothing was dropped: give the option a small value in SMALL"
    )
    stored, keyword = DynamicCache(config=model.config), cache_keyword(model.model)
    standing = press if has_no_ratio(press) else replace(press, compression_ratio=0.5)
    with torch.no_grad(), standing(model):
        model.model(input_ids=tiny_ids(60), **{keyword: stored})
        steps = [
            model.model(
                input_ids=ids[1:2, at : at + 1],
                position_ids=torch.tensor([[mine.next_position + at]]),
                **{keyword: stored},
            ).last_hidden_state
            for at in range(13)
        ]
    torch.testing.assert_close(together[1:2], torch.cat(steps, dim=1), rtol=1e-3, atol=1e-3)


class _KeepAll(DecodeHook):
    def after_pass(self, layer):
        return Selection(layer.valid)

    def apply(self, keys, values, selection):
        return keys.clone(), values.clone()


@each_family()
def test_moving_a_row_to_storage_of_its_own_changes_nothing(family: str) -> None:
    model, full = tiny_model(family), KnormPress()
    plain, knorm = read_context(model, [full], 60).compress(full, [0.0, 0.5])
    ids = tiny_ids(7, batch=3, seed=8)
    contexts, nothing = [plain, knorm, plain], lambda: None
    expected = decode_forced(model, contexts, [nothing] * 3, ids)
    torch.testing.assert_close(
        decode_forced(model, contexts, [_KeepAll, nothing, nothing], ids), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ACTIVE)
def test_generate_works_inside_the_block(name: str) -> None:
    model, press = tiny_model("llama"), busy_press_named(name)
    press = press if has_no_ratio(press) else replace(press, compression_ratio=0.5)
    with press(model):
        out = model.generate(tiny_ids(60), max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert out.shape == (1, 72)


@pytest.mark.parametrize(
    "make_press",
    [
        lambda: DecodingPress(KnormPress(0.5)),
        lambda: DecodingPress(target_size=0),
        lambda: DecodingPress(compression_interval=0),
        lambda: RatioDecodingPress(buffer_size=0),
        lambda: PrefillDecodingPress(decoding=KnormPress()),
        lambda: DecodingPress(KVzipPress()),
        lambda: CAMPress(merge_budget=0),
        lambda: CAMPress(AdaKVPress(KnormPress())),
    ],
)
def test_what_cannot_work_is_refused(make_press) -> None:
    with pytest.raises(
        ValueError,
        match=r"compression_ratio|target_size|interval|buffer|does nothing|cannot act|merge_budget|"
        r"same positions",
    ):
        make_press()
