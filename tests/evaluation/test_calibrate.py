"""From a text to weights to a sweep that uses them: every press with a published recipe, on a tiny model."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from longpress import CompressingPipeline
from longpress.catalogue import ROOT, presses
from longpress.cli import main
from longpress.evaluation.calibrate import Calibration, _pieces, calibrate
from presses.expected_attention import query_statistics
from presses.headkv import repeated_attention
from presses.kvzap import KVzapPress, fitted
from presses.kvzip import KVzipPress
from presses.lukv import concave, pruned_shares
from presses.support.weights import observe_pieces, prefilled
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.made_up_tokenizers import sentencepiece_bpe, several_in_front
from tests.support.running import save_tiny_model
from tests.support.tiny_models import tiny_model

ABLE = sorted(name for name, entry in presses().items() if entry.load()().traits.has_recipe)
TEXT = (
    "the keeper of the lamp wrote down in march that 4711 ships had passed, and in june that none had come "
    "back. " * 30
)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("calibrated")
    save_tiny_model(folder / "model", chat_template=False)
    (folder / "text.txt").write_text(TEXT)
    return folder / "model", folder / "text.txt"


def arguments(press: str, saved: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    model, text = saved
    return [
        press,
        "model=hub",
        f"model.path={model}",
        "model.device=cpu",
        f"text={text}",
        f"out={out}",
        "length=300",
        "pieces=4",
        *more,
    ]


def command(*arguments: str) -> int:
    """The exit code of the command."""
    try:
        main(["calibrate", *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_who_has_a_recipe() -> None:
    writers = [name for name, entry in presses().items() if "calibrate" in vars(entry.load())]
    assert sorted(writers) == ABLE
    assert ABLE == ["duo_attention", "expected_attention_stats", "headkv", "kvzap", "lukv", "qfilter"]


@pytest.mark.parametrize("name", ABLE)
def test_from_a_text_to_an_answer(
    name: str, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["presses.kvzap.model_type=linear"] if name == "kvzap" else []
    assert command(*arguments(name, saved, tmp_path / "weights", *more)) == 0
    assert f"presses.{name}.weights={tmp_path / 'weights'}" in capsys.readouterr().out
    note = json.loads((tmp_path / "weights" / "calibration.json").read_text())
    assert note["press"] == name
    assert note["tokens"] in (1200, 1204)
    assert len(note["revision"]) == 64
    assert note["pieces"] == 4
    options = {"model_type": "linear"} if name == "kvzap" else {}
    press = presses()[name].load()(weights=str(tmp_path / "weights"), **options)
    pipeline = CompressingPipeline(tiny_model("llama", vocab_size=VOCABULARY), byte_tokenizer())
    (full,), (kept,) = pipeline.sweep(
        TEXT[:700], ["how many?"], [(presses()["none"].load()(), 0.0), (press, 0.5)], max_new_tokens=4
    )
    assert full
    assert kept is not None
    assert command(*arguments(name, saved, tmp_path / "weights", *more)) == 2
    assert "holds weights already" in capsys.readouterr().err


def test_statistics_are_those_of_the_queries(saved: tuple[Path, Path], tmp_path: Path) -> None:
    calibrate(
        Calibration.parse(
            arguments(
                "expected_attention_stats", saved, tmp_path, "presses.expected_attention_stats.n_sink=2"
            )
        )
    )
    found = load_file(tmp_path / "model.safetensors")
    ids = byte_tokenizer(chat_template=False)(TEXT, add_special_tokens=False)["input_ids"]
    pieces = [ids[start : start + 300] for start in range(0, 1200, 300)]
    if json.loads((tmp_path / "calibration.json").read_text())["tokens"] == 1204:
        pieces = [[byte_tokenizer().bos_token_id, *piece] for piece in pieces]
    queries: dict[int, list[torch.Tensor]] = {}
    observe_pieces(
        tiny_model("llama", vocab_size=VOCABULARY),
        pieces,
        lambda layer: queries.setdefault(layer.index, []).append(layer.queries_before_rope()[0, :, 2:]),
    )
    for index, parts in queries.items():
        together = torch.cat(parts, dim=1)  # (H * G, n, d)
        torch.testing.assert_close(found["query_mean"][index], together.mean(1), rtol=1e-4, atol=1e-5)
        for head in range(len(together)):
            torch.testing.assert_close(
                found["query_cov"][index, head], torch.cov(together[head].T), rtol=1e-3, atol=1e-4
            )


def test_heads_that_repeat_are_found() -> None:
    class Layer:
        def window_attention(self, last: int) -> torch.Tensor:
            """Four tokens of which 1 and 2 are repeated: queries 4 and 5 of two heads."""
            assert last == 2
            rows = torch.tensor(
                [
                    [[0.1, 0.1, 0.7, 0.05, 0.05, 0.0], [0, 0, 0, 1.0, 0, 0]],
                    [[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1.0]],
                ]
            )
            return rows[None]

    # query 4 repeats token 1, whose successor stands at 2; the last repeated token has no successor that
    # counts
    assert repeated_attention(Layer(), (1, 3)).tolist() == pytest.approx([0.7, 0.0])


def test_scores_of_heads_separate_a_head_that_copies(saved: tuple[Path, Path], tmp_path: Path) -> None:
    calibrate(Calibration.parse(arguments("headkv", saved, tmp_path)))
    heads = json.loads((tmp_path / "head_scores.json").read_text())
    assert set(heads) == {f"{layer}-{head}" for layer in range(3) for head in range(4)}
    assert all(len(scores) == 4 and all(0 <= score <= 1 for score in scores) for scores in heads.values())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["snapkv"],
            "has no published recipe; those that have: duo_attention, expected_attention_stats, headkv, "
            "kvzap, lukv, qfilter",
        ),
        (["qfilters"], "did you mean qfilter"),
        (["qfilter", "presses.qfilter.colour=red"], "presses.qfilter.colour=red"),
        (["kvzap"], "has to be trained by gradient descent"),
        (["qfilter", "length=0"], "length=0 must be a whole number from 1"),
        (["qfilter", "text=/nowhere"], "no file there"),
        ([], "give one press and a folder"),
    ],
)
def test_one_sentence_for_what_cannot_be_done(
    more: list[str], message: str, saved: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    assert command(*more[:1], *arguments("x", saved, tmp_path)[1:], *more[1:]) == 2
    assert message in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_statistics_of_one_piece_are_the_contexts_own() -> None:
    layers = []
    observe_pieces(tiny_model("llama", vocab_size=VOCABULARY), [[5, 6, 7, 8, 9, 10]], layers.append)
    mean, covariance = query_statistics(layers[0], 2)
    assert mean.shape == (1, 4, 16)
    assert covariance.shape == (1, 4, 16, 16)


def test_curves_give_entries_to_the_heads_that_gain_most() -> None:
    hull = concave(torch.tensor([1.0, 5.0, 0.0, 2.0]))
    assert hull.tolist() == [3.0, 3.0, 1.0, 1.0]
    assert concave(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    shares = pruned_shares(
        torch.tensor([[[4.0, 3.0, 2.0, 1.0], [9.0, 0.5, 0.5, 0.5]]])
    )  # one layer, two heads, four entries
    assert shares.shape == (99, 1, 2)
    assert shares[49, 0].tolist() == [0.25, 0.75]  # at half: 9, 4, 3, 2 stay
    torch.testing.assert_close(
        shares.mean((1, 2))[[24, 49, 74]], torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )


def test_a_linear_model_learns_what_kvzip_plus_finds(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=VOCABULARY)
    ids = byte_tokenizer(chat_template=False)(TEXT, add_special_tokens=False)["input_ids"][:900]
    save_file(fitted(model, [ids[:600]]), tmp_path / "model.safetensors")
    press = KVzapPress(model_type="linear", weights=str(tmp_path))
    found: list[torch.Tensor] = []
    prefill = prefilled(model, ids[600:], lambda layer: found.append(press.score(layer)[0].detach()))
    wanted = KVzipPress(n_sink=0, kvzip_plus_normalization=True).probe(prefill, [])
    for predicted, true in zip(found, wanted, strict=True):
        for head in range(2):
            assert float(torch.corrcoef(torch.stack((predicted[head], true[0, head].log())))[0, 1]) > 0.5


@pytest.mark.slow
def test_from_a_text_to_a_table_on_a_real_model(tmp_path: Path) -> None:
    """Filters of SmolLM2 from the text that comes with longpress; a sweep with them beats chance."""
    out = f"out={tmp_path / 'weights'}"
    assert command("qfilter", "model=smollm2", out, "pieces=4", "model.device=cpu") == 0
    note = json.loads((tmp_path / "weights" / "calibration.json").read_text())
    assert (note["pieces"], note["tokens"]) == (4, 4000)
    sweep = [
        sys.executable,
        "evaluate.py",
        "press=[qfilter,random]",
        f"presses.qfilter.weights={tmp_path / 'weights'}",
    ]
    options = [
        "compression_ratio=0.25",
        "model=smollm2",
        "benchmark.length=1024",
        "benchmark.tasks=[niah_single_1,qa_1]",
        "limit=2",
    ]
    done = subprocess.run(
        [*sweep, *options, "plots=false", f"results={tmp_path / 'results'}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "results" / "scores.csv").open(encoding="utf-8") as file:
        rows = {row["press"]: row for row in csv.DictReader(file) if row["task"] == "average"}
    assert set(rows) == {"none", "qfilter", "random"}
    assert float(rows["qfilter"]["kept_fraction"]) == pytest.approx(0.75, abs=0.01)
    assert float(rows["none"]["score"]) >= float(rows["qfilter"]["score"]) >= float(rows["random"]["score"])


def test_pieces_have_in_front_all_that_the_tokenizer_puts_there(tmp_path: Path) -> None:
    asked = SimpleNamespace(text="a text", length=100, pieces=2)
    text = "The fox jumps over the dog. " * 20
    for made, front in ((several_in_front, 2), (byte_tokenizer, 0), (sentencepiece_bpe, 1)):
        tokenizer = made()
        for piece in _pieces(asked, text, tokenizer):
            assert piece[:front] == tokenizer("a").input_ids[:front] and len(piece) == 100 + front
