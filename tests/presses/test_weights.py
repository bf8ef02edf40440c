"""Learned weights: found or refused, read once, never another model's; and the recipes that make them."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

import presses.support.weights
from kvcache.hooks.prefill import observing
from kvcache.modules import cache_keyword
from kvcache.observation import LayerObservation
from presses import (
    DuoAttentionPress,
    ExpectedAttentionPress,
    ExpectedAttentionStatsPress,
    FastKVzipPress,
    HeadKVPress,
    KVzapPress,
    LUKVPress,
    QFilterPress,
)
from presses.support.weights import observe_pieces
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.learned_weights import weight_file, with_weights
from tests.support.peer import weights
from tests.support.peer.goldens import load_goldens
from tests.support.tiny_models import HEAD_DIM, KV_HEADS, LAYERS, tiny_ids, tiny_model

LEARNED = [
    QFilterPress(),
    KVzapPress(),
    ExpectedAttentionStatsPress(),
    FastKVzipPress(),
    LUKVPress(),
    DuoAttentionPress(),
    HeadKVPress(),
]


def pieces_of(texts: list[str]) -> list[list[int]]:
    return [byte_tokenizer(chat_template=False)(text)["input_ids"] for text in texts]


def observed(tokens: int = 20, name: str = "", **shapes: int) -> list[LayerObservation]:
    layers: list[LayerObservation] = []
    model = tiny_model("llama", **shapes)
    model.config._name_or_path = name
    with torch.no_grad(), observing(model, lambda layer, cache: layers.append(layer)):
        model.model(input_ids=tiny_ids(tokens), **{cache_keyword(model.model): DynamicCache()})
    return layers


@pytest.mark.parametrize("press", LEARNED, ids=lambda press: press.name)
def test_a_model_without_a_name_is_told_what_to_give(press) -> None:
    with pytest.raises(ValueError, match=r"of a model without a name are published; give `weights=PATH`"):
        press.observe(observed()[0])


@pytest.mark.parametrize("press", LEARNED[:4], ids=lambda press: press.name)
def test_what_cannot_be_reached_is_named(press, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offline(source: str, file: str, revision: str) -> Path:
        asked.append(f"{source} {file}")
        raise OSError("no network\nand much more")

    monkeypatch.setattr(presses.support.weights, "_fetch", offline)
    with pytest.raises(
        ValueError, match=r"looked for .* at .* \(revision main\).*OSError: no network\); give `weights=PATH`"
    ) as caught:
        press.observe(observed(name="meta-llama/Meta-Llama-3.1-8B-Instruct")[0])
    assert asked[0].split()[0] in str(caught.value)
    assert asked == [
        {
            "qfilter": "nthngdy/Llama-3.1-8B-Instruct_qfilt model.safetensors",
            "kvzap": "nvidia/KVzap-mlp-Meta-Llama-3.1-8B-Instruct model.safetensors",
            "expected_attention_stats": "alessiodevoto/exp_att_stats_meta-llama_Meta-Llama-3.1-8B-Instruct_"
            "kmfoda_booksum_100_1000_4 model.safetensors",
            "fastkvzip": "Jang-Hyun/Fast-KVzip meta-llama-3.1-8b-instruct/q2_dim16_sink16.pt",
        }[press.name]
    ]


@pytest.mark.parametrize("press", [LUKVPress(), DuoAttentionPress()], ids=lambda press: press.name)
def test_addresses_of_the_authors(press, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(source: str, file: str, revision: str) -> Path:
        assert source.startswith("https://raw.githubusercontent.com/") and "//" not in source[8:]
        raise OSError("no network")

    monkeypatch.setattr(presses.support.weights, "_fetch", offline)
    with pytest.raises(ValueError, match="no network"):
        press.observe(observed(name="meta-llama/Llama-3.1-8B-Instruct")[0])


@pytest.mark.parametrize("press", LEARNED, ids=lambda press: press.name)
def test_weights_of_another_model_are_refused(press) -> None:
    wrong = [{"num_hidden_layers": 2}]
    if press.name not in ("expected_attention_stats", "headkv"):  # they know query heads only
        wrong.append({"num_key_value_heads": 1})
    for shapes in wrong:
        with pytest.raises(ValueError, match=r"another model|2 gates"):
            with_weights(press).observe(observed(**shapes)[0])


def test_a_second_file_is_not_the_first(tmp_path: Path) -> None:
    layer = observed()[0]
    scores = []
    for name in ("a", "b"):
        save_file({"q_filters": torch.randn(LAYERS, KV_HEADS, HEAD_DIM)}, tmp_path / f"{name}.safetensors")
        scores.append(QFilterPress(weights=str(tmp_path / f"{name}.safetensors")).score(layer))
    assert not torch.equal(*scores)


def test_a_file_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    presses.support.weights._load.cache_clear()
    press = QFilterPress(weights=weight_file("qfilter"))
    for layer in observed():
        press.observe(layer)
    assert presses.support.weights._load.cache_info().misses == 1


def test_a_folder_holds_the_file(tmp_path: Path) -> None:
    layer = observed()[0]
    press = QFilterPress(weights=str(tmp_path))
    with pytest.raises(ValueError, match=r"has no file model\.safetensors"):
        press.observe(layer)
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds no 'q_filters'"):
        press.observe(layer)


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    with (tmp_path / "gates.pt").open("wb") as file:
        pickle.dump({"module": Bomb()}, file, protocol=2)
    with pytest.raises(ValueError, match="cannot be read as data"):
        FastKVzipPress(weights=str(tmp_path / "gates.pt")).observe(observed()[0])
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_head_scores_equal_kvpress(family: str, tmp_path: Path) -> None:
    DuoAttentionPress().calibrate(tiny_model(family), pieces_of(weights.calibration_texts()), tmp_path)
    rows = [
        [float(number) for number in line.split("\t")]
        for line in (tmp_path / "full_attention_heads.tsv").read_text().splitlines()
    ]
    theirs = load_goldens("kvpress_kept_more.npz").arrays[f"head scores {family}"]
    torch.testing.assert_close(torch.tensor(rows), torch.from_numpy(theirs).float(), rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "config.json").read_text()) == {"sink_size": 128, "recent_size": 256}
    scores = DuoAttentionPress(weights=str(tmp_path)).observe(observed()[1])
    assert scores.scores[0, :, 0].tolist() == pytest.approx(rows[1])


def test_statistics_of_one_text_are_those_of_the_context(tmp_path: Path) -> None:
    model, tokenizer, path = (
        tiny_model("llama"),
        byte_tokenizer(chat_template=False),
        tmp_path / "model.safetensors",
    )
    text = weights.calibration_texts(1)[0]
    ExpectedAttentionStatsPress().calibrate(model, pieces_of([text]), tmp_path)
    layers: list[LayerObservation] = []
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad(), observing(model, lambda layer, cache: layers.append(layer)):
        model.model(input_ids=ids, **{cache_keyword(model.model): DynamicCache()})
    for layer in layers:
        stored, own = ExpectedAttentionStatsPress(weights=str(tmp_path)), ExpectedAttentionPress()
        torch.testing.assert_close(
            stored.score(layer), own.score(layer), rtol=2e-2, atol=1e-4
        )  # n - 1 instead of n
    assert load_file(path)["query_cov"].shape == (LAYERS, 4, HEAD_DIM, HEAD_DIM)


def test_filters_are_the_main_direction_of_the_queries(tmp_path: Path) -> None:
    model, tokenizer, path = (
        tiny_model("llama"),
        byte_tokenizer(chat_template=False),
        tmp_path / "model.safetensors",
    )
    texts = weights.calibration_texts(3)
    QFilterPress().calibrate(model, pieces_of(texts), tmp_path)
    queries = []
    for text in texts:
        with (
            torch.no_grad(),
            observing(
                model, lambda layer, cache: queries.append(layer.queries()[0]) if layer.index == 1 else None
            ),
        ):
            model.model(
                input_ids=torch.tensor([tokenizer(text)["input_ids"]]),
                **{cache_keyword(model.model): DynamicCache()},
            )
    together = torch.cat(queries, dim=1)  # (H * G, n, d)
    left, _, right = torch.linalg.svd(together, full_matrices=False)
    against = (
        1 - 2 * ((left[:, :, 0] > 0).float().mean(1) > 0.5).float()
    )  # as the authors: most queries point the other way
    expected = (against[:, None] * right[:, 0]).unflatten(0, (KV_HEADS, -1)).mean(1)
    torch.testing.assert_close(load_file(path)["q_filters"][1], expected, rtol=1e-3, atol=1e-3)
    assert replace(QFilterPress(), weights=str(path)).score(observed()[1]).isfinite().all()


def test_filters_rank_keys_as_queries_do(tmp_path: Path) -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:  # queries that mostly point one way, as those of trained models
        layer.self_attn.q_proj.bias = torch.nn.Parameter(torch.full((4 * HEAD_DIM,), 1.5))
    pieces = pieces_of(weights.calibration_texts(2))
    QFilterPress().calibrate(model, pieces, tmp_path)
    press, layers = QFilterPress(weights=str(tmp_path)), []
    observe_pieces(model, pieces[:1], layers.append)
    for layer in layers:
        logits = layer.logits(layer.queries().unflatten(1, (KV_HEADS, -1)), layer.keys).mean((2, 3))[
            0
        ]  # (H, T), without the mask
        for asked, scored in zip(logits.detach(), press.score(layer)[0].detach(), strict=True):
            assert float(torch.corrcoef(torch.stack((asked, scored)))[0, 1]) > 0.3
