"""Presses that act while answers are written: laws over the catalogue, kvpress's recorded decisions, small examples."""

from dataclasses import fields, replace

import pytest
import torch
from learned_weights import with_weights
from peer.goldens import MORE, load_goldens
from tiny_models import FAMILIES, tiny_ids, tiny_model
from transformers import DynamicCache

from evaluation.catalogue import presses
from kvcache.attention import attending
from kvcache.cache import CompressedCache, CompressedLayer
from kvcache.following import Follower
from kvcache.observation import cache_keyword
from kvcache.selection import Selection
from pipeline.prefill import Onlooker, PrefilledContext
from presses import (
    DecodingPress,
    KeyDiffPress,
    KnormPress,
    PrefillDecodingPress,
    RatioDecodingPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from presses.base import BasePress

GOLDENS = load_goldens(MORE)
SMALL = {"compression_interval": 4, "target_size": 40, "sliding_window_size": 16}
"""Values of common options at which something happens within a few tokens."""


def busy(press: BasePress) -> BasePress:
    """The press with options at which it acts within a few tokens, presses inside likewise."""
    changed = {field.name: SMALL[field.name] for field in fields(press) if field.name in SMALL}
    inside = {field.name: busy(getattr(press, field.name)) for field in fields(press) if isinstance(getattr(press, field.name), BasePress)}
    return replace(press, **changed, **inside)


ACTIVE = [name for name in sorted(presses()) if with_weights(presses()[name].load()()).while_decoding(0.5) is not None]


def make(name: str) -> BasePress:
    return busy(with_weights(presses()[name].load()()))


def compare_with_kvpress(label: str, press: BasePress, family: str, monkeypatch: pytest.MonkeyPatch) -> CompressedCache:
    """Feed the recorded tokens under `press`, and compare what each layer keeps after every recorded step."""
    model, seen = tiny_model(family), 0
    cases = {GOLDENS.details[case]["step"]: case for case in GOLDENS.cases(label) if case.family == family}
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
            model.model(input_ids=part, position_ids=torch.arange(seen, seen + part.shape[1])[None], **{keyword: stored})
            seen += part.shape[1]
            for index, layer in enumerate(stored.layers if step in cases else []):
                ours = torch.stack([held(every[index][head], layer.keys[0, head][layer.valid[0, head]]) for head in range(2)]).numpy()
                theirs = GOLDENS[cases[step]][index]
                differing = int((ours != theirs).sum())
                assert differing <= 2 * GOLDENS.details[cases[step]].get("unstable", 0), (cases[step], index, differing)
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
    "CompressionRatioDecoding(KeyDiff, target_compression_ratio=0.3)": RatioDecodingPress(KeyDiffPress(), 0.3, compression_interval=8),
    "PrefillDecoding(Knorm, Decoding(KeyDiff))": PrefillDecodingPress(
        KnormPress(0.4), DecodingPress(KeyDiffPress(), compression_interval=8, target_size=48)
    ),
}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma3"])
@pytest.mark.parametrize("label", RECORDED)
def test_kept_positions_equal_kvpress(label: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare_with_kvpress(label, RECORDED[label], family, monkeypatch)


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


def test_a_target_below_the_window_keeps_the_most_recent() -> None:
    press = DecodingPress(SnapKVPress(window_size=8), compression_interval=6, target_size=3)
    assert kept_positions(press, prefill=20, steps=6) == [23, 24, 25]


def prefilled(model, presses_: list[BasePress], tokens: int) -> PrefilledContext:
    onlooker = Onlooker(presses_)
    with torch.no_grad(), onlooker(model):
        model.model(input_ids=tiny_ids(tokens), **{cache_keyword(model.model): DynamicCache(config=model.config)})
    return PrefilledContext(onlooker, 0.0)


def forced(model, contexts, followers, ids: torch.Tensor) -> torch.Tensor:
    """(R, n, D) hidden states of single tokens (R, n) fed to a batch of rows."""
    starts = [context.next_position for context in contexts]
    count = len(contexts[0].layers)
    made = [
        [follower() if at in context.observed else None for context, follower in zip(contexts, followers, strict=True)]
        for at in range(count)
    ]
    cache = CompressedCache([CompressedLayer([c.layers[at] for c in contexts], starts, 0, made[at]) for at in range(count)])
    out = []
    with torch.no_grad(), attending(model):
        for step in range(ids.shape[1]):
            positions = (torch.tensor(starts) + step)[:, None]
            out.append(
                model.model(
                    input_ids=ids[:, step : step + 1], position_ids=positions, **{cache_keyword(model.model): cache}
                ).last_hidden_state
            )
    return torch.cat(out, dim=1)


@pytest.mark.parametrize("name", ACTIVE)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_beside_each_other_are_as_rows_alone_and_as_standalone(name: str, family: str) -> None:
    model, press, full = tiny_model(family), make(name), KnormPress()
    read = prefilled(model, [press, full], 60)
    mine = read.compress(press, [0.0] if press.lossless else [0.5])[0]
    plain, knorm = read.compress(full, [0.0, 0.5])
    ids = tiny_ids(13, batch=4, seed=8)
    follower, nothing = lambda: press.while_decoding(0.5), lambda: None
    contexts, followers = [plain, mine, knorm, mine], [nothing, follower, nothing, follower]
    together = forced(model, contexts, followers, ids)
    for row in range(4):
        alone = forced(model, [contexts[row]], [followers[row]], ids[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-3)
    without = forced(model, [mine], [nothing], ids[1:2])
    assert not torch.allclose(together[1:2], without, atol=1e-3), "nothing was dropped: give the option a small value in SMALL"
    stored, keyword = DynamicCache(config=model.config), cache_keyword(model.model)
    standing = press if press.lossless else replace(press, compression_ratio=0.5)
    with torch.no_grad(), standing(model):
        model.model(input_ids=tiny_ids(60), **{keyword: stored})
        steps = [
            model.model(
                input_ids=ids[1:2, at : at + 1], position_ids=torch.tensor([[mine.next_position + at]]), **{keyword: stored}
            ).last_hidden_state
            for at in range(13)
        ]
    torch.testing.assert_close(together[1:2], torch.cat(steps, dim=1), rtol=1e-3, atol=1e-3)


class _KeepAll(Follower):
    def follow(self, layer):
        return Selection(layer.valid)

    def apply(self, keys, values, selection):
        return keys.clone(), values.clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_moving_a_row_to_storage_of_its_own_changes_nothing(family: str) -> None:
    model, full = tiny_model(family), KnormPress()
    plain, knorm = prefilled(model, [full], 60).compress(full, [0.0, 0.5])
    ids = tiny_ids(7, batch=3, seed=8)
    contexts, nothing = [plain, knorm, plain], lambda: None
    expected = forced(model, contexts, [nothing] * 3, ids)
    torch.testing.assert_close(forced(model, contexts, [_KeepAll, nothing, nothing], ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ACTIVE)
def test_generate_works_inside_the_block(name: str) -> None:
    model, press = tiny_model("llama"), make(name)
    press = press if press.lossless else replace(press, compression_ratio=0.5)
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
    ],
)
def test_what_cannot_work_is_refused(make_press) -> None:
    with pytest.raises(ValueError, match=r"compression_ratio|target_size|interval|does nothing"):
        make_press()
