"""Runs that draw several answers to a question: reproducible whatever order, workers and resume."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from longpress.evaluation.config import composed, register, settings
from tests.support.running import content, records, run, table
from tests.support.thinking_templates import thinking_tokenizer

DRAWN = (
    *("benchmark.tasks=[niah_single_1]", "benchmark.length=600", "limit=2", "press=knorm"),
    *("compression_ratio=0.5", "temperature=1.0", "top_p=0.9"),
)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_answers_do_not_depend_on_order_workers_and_resume(
    model_folder: Path, tmp_path: Path, workers: int
) -> None:
    drawn = (*DRAWN, "max_new_tokens=12")
    run(model_folder, tmp_path / "whole", *drawn, "samples_per_question=2", "sampling_seed=[1,2]")
    found = records(tmp_path / "whole")
    assert len(found) == 2 * 2 * 2 * 2  # questions, seeds, answers, the full cache and a press
    assert len({record["key"] for record in found}) == len(found)
    assert len({record["prediction"] for record in found}) > 8

    # some of them first, then the rest, the seeds the other way round
    run(model_folder, tmp_path / "parts", *drawn, "sampling_seed=2", "limit=1")
    rest = ("samples_per_question=2", "sampling_seed=[2,1]", f"workers={workers}", "max_batch_gb=1e-9")
    run(model_folder, tmp_path / "parts", *drawn, *rest)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert table(tmp_path / "parts") == table(tmp_path / "whole")

    # the table tells questions from answers
    assert set(pd.read_csv(tmp_path / "whole" / "scores.csv")["n"]) == {2}
    assert "2 × 4" in table(tmp_path / "whole")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["samples_per_question=8"], "temperature=0, which always gives the same answer"),
        (["sampling_seed=3"], "temperature=0, which always gives the same answer"),
        (["temperature=1", "samples_per_question=0"], "at least 1 answer"),
        (["temperature=1", "sampling_seed=[]"], "names no seed"),
        (["temperature=1", "sampling_seed=1.5"], "must be a whole number"),
        (["temperature=1", "sampling_seed=[1,many]"], "sampling_seed='many' must be a whole number"),
        (["temperature=hot"], "temperature='hot' must be a number"),
    ],
)
def test_what_cannot_be_drawn_is_refused(overrides: list[str], said: str) -> None:
    register()
    with pytest.raises(ValueError, match=said):
        settings(composed(overrides))


def test_thoughts_stand_in_the_record_and_not_in_the_answer(model_folder: Path, tmp_path: Path) -> None:
    thinks = shutil.copytree(model_folder, tmp_path / "model")
    thinking_tokenizer("opened").save_pretrained(thinks)
    given = ("thinking=on", "max_thinking_tokens=5", "max_new_tokens=8", "samples_per_question=6", "limit=1")
    run(thinks, tmp_path / "results", *DRAWN, *given)
    found = records(tmp_path / "results")
    assert len(found) == 6 * 2
    closed = [record for record in found if record["thought_end"] == "limit"]
    assert closed
    for record in found:
        assert record["generation_parameters"] == {
            "temperature": 1.0,
            "top_p": 0.9,
            "thinking": "on",
            "max_thinking_tokens": 5,
            "max_new_tokens": 8,
        }
        if record in closed:
            assert record["thinking_tokens"] == 5
            assert record["new_tokens"] > 5 + len("\n</think>\n\n")
        else:  # the model ended its turn while it thought
            assert (record["thought_end"], record["prediction"]) == ("open", "")
    assert "thinking=on" in table(tmp_path / "results")
    page = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert "behind a thought of 5 tokens (limit)" in page
