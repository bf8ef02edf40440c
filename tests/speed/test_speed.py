"""`longpress bench`: its arithmetic, on figures made up so that the answer is known, and a tiny model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from longpress import CompressingPipeline
from longpress.cli import main
from longpress.speed import command, comparison
from longpress.speed.comparison import different_answers, limit_seconds, measure, peer_seconds, ruler_rows
from longpress.speed.limit import parts
from longpress.speed.measured_model import SHAPES, MeasuredModel
from longpress.speed.ours import sweep
from longpress.speed.plot import draw
from longpress.speed.summary import summary
from longpress.speed.workload import (
    PRESSES,
    RATIOS,
    WIDE_PRESSES,
    WIDE_RATIOS,
    Row,
    Workload,
    grid,
    peer_grid,
)

ROW = Row("vt", "context", "question", "", 30)


def measured(answers: list[str]) -> dict[str, Any]:
    """What the engine of longpress says of one row."""
    return {
        "seconds": 12.0,
        "prefill": 5.0,
        "observe": 1.0,
        "compress": 1.0,
        "decode": 6.0,
        "answers": [answers],
        "question_tokens": 100,
        "new_tokens": 10,
        "peak_bytes": 3e9,
    }


def test_the_grid_is_the_full_cache_and_every_press_at_every_ratio() -> None:
    assert len(grid()) == len(set(grid())) == 1 + len(PRESSES) * len(RATIOS) == 33
    assert set(peer_grid(8)) <= set(grid())
    assert {variant.press for variant in peer_grid(8)} == {"none", *PRESSES}
    assert [variant.press for variant in peer_grid(2)] == ["none", PRESSES[0], PRESSES[4]]


def test_the_limit_is_prefills_and_tokens_at_the_best_rates() -> None:
    parts = {"prefill": [2.0, 3.0], "question_token": 0.01, "token": 0.5}
    assert limit_seconds(parts, measured([])) == pytest.approx(5 + 1 + 5)


def test_kvpress_is_extrapolated_from_the_mean_of_its_presses() -> None:
    assert peer_seconds({"seconds": [[5.0, 6.0, 8.0], [1.0, 1.0, 3.0]]}, 33) == pytest.approx(
        5 + 32 * 7 + 1 + 32 * 2
    )


def test_answers_that_differ_are_listed_with_both() -> None:
    ours = [variant.label for variant in grid()]
    theirs = [f" {variant.label}\n" for variant in peer_grid(8)]
    assert different_answers(measured(ours), {"answers": [theirs]}, [ROW], grid(), peer_grid(8)) == []
    theirs[2] = "something else"
    (one,) = different_answers(measured(ours), {"answers": [theirs]}, [ROW], grid(), peer_grid(8))
    assert (one["press"], one["peer"]) == (peer_grid(8)[2].press, "something else")


def test_a_workload_survives_a_file(tmp_path: Path) -> None:
    workload = Workload(MeasuredModel.named("llama-3.2-1b", "bfloat16", "cuda"), [ROW], grid())
    workload.save(tmp_path / "in.json")
    assert Workload.read(tmp_path / "in.json") == workload


TINY = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
} | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "eos_token_id": None,
}


def test_shapes_have_the_size_of_the_models_they_are_named_after() -> None:
    with torch.device("meta"):
        sizes = {
            name: AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape)).num_parameters()
            for name, shape in SHAPES.items()
        }
    assert sizes == {"llama-3.1-8b": 8_030_261_248, "llama-3.2-1b": 1_235_814_400}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_shape_is_measured_like_the_embedded_model(dtype: str) -> None:
    loaded = MeasuredModel("tiny", TINY, dtype).load()
    again = MeasuredModel("tiny", TINY, dtype).load()
    assert all(
        torch.equal(one, other)
        for one, other in zip(loaded.model.parameters(), again.model.parameters(), strict=True)
    )
    pipe = CompressingPipeline(loaded.model, loaded.tokenizer, max_length=loaded.window)
    rows = ruler_rows(MeasuredModel("tiny", TINY), 512, ("vt", "niah_single_3"))
    ours = sweep(pipe, rows, grid(WIDE_PRESSES, WIDE_RATIOS))
    assert [len(answers) for answers in ours["answers"]] == [51, 51]
    assert ours["new_tokens"] == 51 * sum(row.max_new_tokens for row in rows)
    limit = parts(loaded.model, [torch.zeros(1, 600, dtype=torch.long)])
    assert limit_seconds(limit, ours) > 0 and ours["seconds"] > ours["prefill"] > 0


def compared(variants: int = 33) -> dict[str, Any]:
    """What is written of one length."""
    return {
        "ours": measured([""] * variants),
        "limit": {"seconds": 9.0, "fast_seconds": 5.0},
        "variants": variants,
        "fraction_of_limit": 0.75,
        "fraction_of_fast_limit": 0.42,
        "observe_share_per_press": 0.031,
        "compress_per_variant": 0.03,
        "peer_points": ["none@0.0", "knorm@0.25"],
        "peer": {"extrapolated_seconds": 240.0},
        "ratio_to_peer": 20.0,
        "compared_answers": 9,
        "different_answers": [],
    }


def test_summary_and_plots_show_what_was_measured(tmp_path: Path) -> None:
    sweeps = {"1": measured([]), "33": measured([])}
    content = {"lengths": {"2048": compared()}, "growth": {"variants": sweeps, "contexts": sweeps}}
    text = summary(json.loads(json.dumps(content)))
    assert (
        "20.0 times as long" in text
        and "0.75 of the limit" in text
        and "0.42 with those chosen here" in text
        and "3.1%" in text
    )
    draw(content, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "seconds.png",
        "seconds.pdf",
        "growth.png",
        "growth.pdf",
    }


def test_the_command_writes_what_was_measured_before_the_next_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths: list[int] = []

    def side_by_side(model: MeasuredModel, length: int, *others: Any) -> dict[str, Any]:
        lengths.append(length)
        if length == 4096:
            raise ValueError("no memory left")
        return compared()

    monkeypatch.setattr(comparison, "side_by_side", side_by_side)
    main(["bench", "--lengths", "2048", "--growth", "0", "--out", str(tmp_path)])
    assert "20.0 times as long" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "--lengths", "2048", "4096", "--growth", "0", "--out", str(tmp_path / "half")])
    assert capsys.readouterr().err == "error: no memory left\n"
    for folder in (tmp_path, tmp_path / "half"):
        content = json.loads((folder / "speed.json").read_text(encoding="utf-8"))
        assert list(content["lengths"]) == ["2048"]
        assert content["ratio_to_peer_2k"] == 20.0 and content["fraction_of_limit_2k"] == 0.75
    assert lengths == [2048, 2048, 4096]


def test_the_command_measures_scoring_and_workers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, dict[str, Any]] = {}
    for name in ("_scoring", "_workers"):
        monkeypatch.setattr(command, name, lambda arguments, name=name: given.update({name: vars(arguments)}))
    main(["bench", "scoring", "--tokens", "64"])
    main(["bench", "workers", "--contexts", "4"])
    assert (given["_scoring"]["tokens"], given["_scoring"]["repeats"]) == (64, 3)
    assert (given["_workers"]["contexts"], given["_workers"]["workers"]) == (4, 2)


def test_an_engine_finds_our_packages_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """kvpress's environment must not find what is installed beside longpress in ours."""
    (engine := tmp_path / "engine").write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "found = sorted(name for name in os.listdir(os.environ['PYTHONPATH']) if '.' not in name)\n"
        "open(sys.argv[-1], 'w').write(json.dumps({'arguments': sys.argv[1:3], 'found': found}))\n"
    )
    engine.chmod(0o755)
    workload = Workload(MeasuredModel(), [ROW], grid())
    assert measure("longpress.speed.peer", workload, str(engine)) == {
        "arguments": ["-m", "longpress.speed.peer"],
        "found": sorted(comparison.PACKAGES),
    }
    with pytest.raises(ValueError, match=r"longpress\.speed\.nothing with .* failed: .*No module named"):
        measure("longpress.speed.nothing", workload)


@pytest.mark.slow
def test_what_the_peer_runs_imports_nothing_of_ours_that_is_not_put_beside_it() -> None:
    code = (
        "import sys\n"
        "sys.modules['kvpress'] = sys\n"
        "import longpress.speed.peer, longpress.models.loading\n"
        "packages = {name.split('.')[0] for name in sys.modules}\n"
        "print(*packages & {'benchmarks', 'hydra', 'omegaconf', 'datasets', 'pandas'})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
