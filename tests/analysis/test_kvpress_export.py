"""Folders for the kvpress leaderboard: their names and content, and that the scores come back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from benchmarks.ruler import RulerBenchmark
from longpress.analysis.kvpress_export import kvpress
from longpress.analysis.records import Record, RecordWriter
from longpress.analysis.tables.scores import scores
from tests.support.made_up_records import record

ANSWERS = {
    "niah_single_1": [["123"], ["456"], ["789"]],
    "niah_multivalue": [["1", "2", "3"], ["4", "5", "6"], ["7", "8", "9"]],
}


def ruler_rows(press: str, ratio: float, *texts: str, **changes: Any) -> list[Record]:
    rows = []
    suite = RulerBenchmark()
    for task, answers in ANSWERS.items():
        for at, (references, text) in enumerate(zip(answers, texts, strict=True)):
            (sample, _), *_ = suite.read_predictions([(at, {"pred": text, "outputs": references})], task)
            options = {
                "benchmark": "ruler",
                "benchmark_parameters": {"length": 2048},
                "model": "org/model",
                "metric": "string_match_all",
            }
            score = next(iter(suite.score(sample, text).values()))
            rows.append(
                record(
                    task, at, score, press, ratio, prediction=text, references=references, **options | changes
                )
            )
    return rows


def test_scores_come_back_from_the_folders(tmp_path: Path) -> None:
    rows = [
        *ruler_rows("none", 0.0, "123, 1 2 3", '"456"\n4 5', "7"),
        *ruler_rows("knorm", 0.5, "1", "é 4", "", query_aware=True),
    ]
    folders = kvpress(rows, tmp_path)
    assert [folder.name for folder in folders] == [
        "ruler__2048__org--model__knorm__0.50__fraction0.006__query_aware",
        "ruler__2048__org--model__no_press__0.00__fraction0.006",
    ]
    frame, suite = scores(rows), RulerBenchmark()
    for folder, press in zip(folders, ("knorm", "none"), strict=True):
        metrics = json.loads((folder / "metrics.json").read_text())
        table = pd.read_csv(folder / "predictions.csv", keep_default_na=False)
        for task in ANSWERS:
            expected = frame[(frame["press"] == press) & (frame["task"] == task)]["score"].iloc[0]
            assert metrics[task] == {"string_match": round(expected, 2)}
            part = table[table["task"] == task]
            found = [
                {"pred": text, "outputs": json.loads(answer)}
                for text, answer in zip(part["predicted_answer"], part["answer"], strict=True)
            ]
            again = [
                next(iter(suite.score(*pair).values()))
                for pair in suite.read_predictions(enumerate(found), task)
            ]
            assert 100 * sum(again) / len(again) == pytest.approx(expected)
        config = OmegaConf.load(folder / "config.yaml")
        assert (config.dataset, config.data_dir, config.model) == ("ruler", "2048", "org/model")
        assert config.query_aware == (press == "knorm")


def test_longbench_has_a_folder_per_task_and_a_press_its_name_there(tmp_path: Path) -> None:
    options = {"benchmark": "longbench", "benchmark_parameters": {}}
    rows = [
        record(task, at, 0.25 * at, "adakv", 0.25, **options)
        for task in ("qasper", "trec")
        for at in range(2)
    ]
    folders = kvpress(rows, tmp_path, {"adakv": "adakv_snapkv"})
    assert [folder.name for folder in folders] == [
        f"longbench__{task}__tiny__adakv_snapkv__0.25" for task in ("qasper", "trec")
    ]
    assert [json.loads((folder / "metrics.json").read_text()) for folder in folders] == [12.5, 12.5]


def test_budgets_of_other_kinds(tmp_path: Path) -> None:
    (tokens,) = kvpress(
        ruler_rows("knorm", None, "a", "b", "c", budget_tokens=100, kept_fraction=0.25), tmp_path
    )  # type: ignore[arg-type]
    (threshold,) = kvpress(ruler_rows("dms", None, "a", "b", "c", threshold=-3.0), tmp_path)  # type: ignore[arg-type]
    assert "__knorm__0.75__" in tokens.name and "__dms__-3.00__" in threshold.name
    assert "compression_ratio" not in OmegaConf.load(threshold / "config.yaml")


def test_refusals(tmp_path: Path, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    rows = ruler_rows("none", 0.0, "a", "b", "c")
    kvpress(rows, tmp_path)
    for given, reason in (
        (rows, "already there"),
        ([], "no records"),
        ([record("vt", 0, None, benchmark="ruler")], "1 of 1 samples of press none failed"),
        ([record("1024", 0, 1.0, benchmark="niah")], "takes no niah scores"),
        (
            [*ruler_rows("knorm", 0.5, *"abc"), *ruler_rows("knorm", 0.5, *"abc", press_parameters={"a": 1})],
            "would both be",
        ),
        ([record("a", 0, 1.0)], "no benchmark 'unlisted'"),
    ):
        with pytest.raises(ValueError, match=reason):
            kvpress(given, tmp_path)
    with RecordWriter(tmp_path / "run") as writer:
        for row in rows:
            writer.append(row)
    exported = ("export", "kvpress", tmp_path / "run", tmp_path / "out")
    assert exit_code(*exported, "--name", "none") == 2
    assert exit_code(*exported) == 0
    assert "no_press__0.00" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../../../x", "/etc/x"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    rows = ruler_rows("knorm", 0.5, "1", "4", "", model=name)
    assert [folder.parent for folder in kvpress(rows, tmp_path, {"knorm": name})] == [tmp_path]
