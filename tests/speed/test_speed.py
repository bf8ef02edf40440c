"""The arithmetic of the bench, on figures made up so that the answer is known, and what it measures on a tiny model."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from longpress import CompressingPipeline
from longpress.speed.__main__ import different_answers, limit_seconds, peer_seconds, ruler_rows, summary
from longpress.speed.limit import parts
from longpress.speed.ours import sweep
from longpress.speed.plot import draw
from longpress.speed.subject import SHAPES, Subject
from longpress.speed.sweep import PRESSES, RATIOS, WIDE, Row, grid, load, peer_grid, save

ROW = Row("vt", "context", "question", "", 30)


def measured(answers: list[str]) -> dict:
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
    assert set(peer_grid(8)) <= set(grid()) and {point.press for point in peer_grid(8)} == {"none", *PRESSES}
    assert [point.press for point in peer_grid(2)] == ["none", PRESSES[0], PRESSES[4]]


def test_the_limit_is_prefills_and_tokens_at_the_best_rates() -> None:
    parts = {"prefill": [2.0, 3.0], "question_token": 0.01, "token": 0.5}
    assert limit_seconds(parts, measured([])) == pytest.approx(5 + 1 + 5)


def test_kvpress_is_extrapolated_from_the_mean_of_its_presses() -> None:
    assert peer_seconds({"seconds": [[5.0, 6.0, 8.0], [1.0, 1.0, 3.0]]}, 33) == pytest.approx(
        5 + 32 * 7 + 1 + 32 * 2
    )


def test_answers_that_differ_are_listed_with_both() -> None:
    ours = [f"{point.press}{point.ratio}" for point in grid()]
    theirs = [f" {point.press}{point.ratio}\n" for point in peer_grid(8)]
    assert different_answers(measured(ours), {"answers": [theirs]}, [ROW], grid(), peer_grid(8)) == []
    theirs[2] = "something else"
    (one,) = different_answers(measured(ours), {"answers": [theirs]}, [ROW], grid(), peer_grid(8))
    assert (one["press"], one["peer"]) == (peer_grid(8)[2].press, "something else")


def test_rows_and_points_survive_a_file(tmp_path) -> None:
    save(tmp_path / "in.json", Subject.of("llama-3.2-1b", "bfloat16", "cuda"), [ROW], grid())
    assert load(tmp_path / "in.json") == (Subject.of("llama-3.2-1b", "bfloat16", "cuda"), [ROW], grid())


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_shape_is_measured_like_the_embedded_model(dtype: str) -> None:
    loaded = Subject("tiny", TINY, dtype).load()
    again = Subject("tiny", TINY, dtype).load()
    assert all(
        torch.equal(one, other)
        for one, other in zip(loaded.model.parameters(), again.model.parameters(), strict=True)
    )
    pipe = CompressingPipeline(loaded.model, loaded.tokenizer, window=loaded.window)
    rows = ruler_rows(Subject("tiny", TINY), 512, ("vt", "niah_single_3"))
    found = sweep(pipe, rows, grid(*WIDE))
    assert [len(answers) for answers in found["answers"]] == [51, 51]
    assert found["new_tokens"] == 51 * sum(row.max_new_tokens for row in rows)
    measured = parts(loaded.model, [torch.zeros(1, 600, dtype=torch.long)])
    assert limit_seconds(measured, found) > 0 and found["seconds"] > found["prefill"] > 0


def test_summary_and_plots_show_what_was_measured(tmp_path) -> None:
    one = {
        "ours": measured([""] * 33),
        "limit": {"seconds": 9.0, "fast_seconds": 5.0},
        "variants": 33,
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
    points = {"1": measured([]), "33": measured([])}
    found = {"lengths": {"2048": one}, "growth": {"variants": points, "contexts": points}}
    text = summary(json.loads(json.dumps(found)))
    assert (
        "20.0 times as long" in text
        and "0.75 of the limit" in text
        and "0.42 with those chosen here" in text
        and "3.1%" in text
    )
    draw(found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "seconds.png",
        "seconds.pdf",
        "growth.png",
        "growth.pdf",
    }
