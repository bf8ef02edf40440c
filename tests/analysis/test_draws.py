"""Several answers to a question: means and errors by question, pass@k, and tables that say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from longpress.analysis.records import Record
from longpress.analysis.stats.draws import Questions, pass_at
from longpress.analysis.tables.comparison import compare
from longpress.analysis.tables.pass_at_k import pass_at_k
from longpress.analysis.tables.scores import scores
from longpress.analysis.tables.write import write_tables
from tests.support.made_up_records import line, record, write_records

SAMPLING = {"temperature": 0.6, "top_p": 0.95}
RIGHT = (
    (1, 1, 1, 1, 1, 1, 1, 1),
    (1, 1, 0, 1, 1, 1, 1, 1),
    (0, 0, 1, 0, 0, 1, 0, 1),
    (0, 1, 0, 0, 0, 0, 0, 0),
    (0, 0, 0, 0, 0, 1, 0, 0),
    (0, 0, 0, 0, 0, 0, 0, 0),
)
"""Of six questions, which of eight answers are right."""
PASS_AT = {1: 20 / 48, 2: 0.5238095238095238, 4: 0.6547619047619048, 8: 5 / 6}


def answers(right=RIGHT, press: str = "none", ratio: float = 0.0, **changes) -> list[Record]:
    """Eight drawn answers to each of six questions, two seeds with four each."""
    return [
        record(
            "aime",
            at,
            float(score),
            press,
            ratio,
            **{"generation_parameters": SAMPLING, "sampling_seed": number // 4, "draw": number % 4} | changes,
        )
        for at, of_question in enumerate(right)
        for number, score in enumerate(of_question)
    ]


def single(frame: pd.DataFrame, press: str = "none") -> pd.Series:
    """The entry of the only task of a press."""
    return frame[(frame["press"] == press) & ~frame["aggregate"]].iloc[0]


def test_pass_at_k_by_hand() -> None:
    # of four answers two are right: of six pairs one has none of them
    assert [pass_at(4, 2, k) for k in (1, 2, 3, 4)] == pytest.approx([1 / 2, 5 / 6, 1, 1])
    assert [pass_at(3, 0, k) for k in (1, 2, 3)] == [0, 0, 0]
    assert pass_at(5, 5, 1) == 1
    for k in (0, 5):
        with pytest.raises(ValueError, match="from 1 to the number of answers, 4"):
            pass_at(4, 2, k)


def test_pass_at_k_is_unbiased() -> None:
    """The mean over all ways to draw n answers is 1 - (1 - p)^k."""
    n, p = 6, 0.3
    for k in range(1, n + 1):
        chances = [pass_at(n, right, k) for right in range(n + 1)]
        weights = [p**right * (1 - p) ** (n - right) * _ways(n, right) for right in range(n + 1)]
        assert np.dot(chances, weights) == pytest.approx(1 - (1 - p) ** k)


def _ways(n: int, k: int) -> int:
    from math import comb

    return comb(n, k)


def test_pass_at_k_of_records() -> None:
    frame = pass_at_k(answers())
    tasks = frame[~frame["aggregate"]].set_index("k")
    assert tasks["pass_at_k"].to_dict() == pytest.approx({k: 100 * value for k, value in PASS_AT.items()})
    assert set(tasks["n"]) == {6}
    # the error of pass@1 is that of the mean score, over questions
    whole = single(scores(answers()))
    assert tasks.loc[1, "se"] == pytest.approx(whole["se"])
    assert tasks.loc[1, "pass_at_k"] == pytest.approx(whole["score"])


def test_errors_count_questions() -> None:
    entry = single(scores(answers()))
    means = np.mean(RIGHT, axis=1)
    assert entry["score"] == pytest.approx(100 * means.mean())
    assert entry["se"] == pytest.approx(100 * means.std(ddof=1) / np.sqrt(6))
    assert (entry["n"], entry["n_contexts"], entry["answers_least"], entry["answers_most"]) == (6, 6, 8, 8)


def test_more_answers_of_the_same_do_not_shrink_the_error() -> None:
    once = single(scores(answers([row[:1] * 2 for row in RIGHT])))
    often = single(scores(answers([row[:1] * 8 for row in RIGHT])))
    assert often["se"] == pytest.approx(once["se"])
    assert often["ci_low"] == pytest.approx(once["ci_low"])


def test_a_question_counts_once_however_many_answers_it_has() -> None:
    """A run that was stopped: the first question has eight answers, the second one."""
    entry = single(scores(answers([(1,) * 8, (0,)])))
    assert entry["score"] == 50
    assert (entry["answers_least"], entry["answers_most"]) == (1, 8)
    frame = pass_at_k(answers([(1,) * 8, (0,)])).set_index(["k", "aggregate"])
    assert frame.loc[(1, False), "n"] == 2
    assert frame.loc[(8, False), "n"] == 1


def test_rows_are_paired_by_question() -> None:
    worse = [(*row[:4], 0, 0, 0, 0) for row in RIGHT]
    records = answers() + answers(worse, "knorm", 0.5)
    entry = single(scores(records), "knorm")
    change = np.mean(worse, axis=1) - np.mean(RIGHT, axis=1)
    assert entry["delta"] == pytest.approx(100 * change.mean())
    assert entry["delta_se"] == pytest.approx(100 * change.std(ddof=1) / np.sqrt(6))
    assert (entry["n_common"], entry["wins"], entry["losses"], entry["ties"]) == (6, 0, 4, 2)
    # `longpress compare` says the same; the presses stand at one ratio there
    records = answers(press="snapkv", ratio=0.5) + answers(worse, "knorm", 0.5)
    compared = compare(records, "knorm", "snapkv").iloc[0]
    assert compared["delta"] == pytest.approx(100 * change.mean())
    assert (compared["n"], compared["losses"]) == (6, 4)


def test_a_failed_answer_leaves_the_others_of_its_question() -> None:
    records = answers()
    records[0] = record("aime", 0, None, generation_parameters=SAMPLING, sampling_seed=0, draw=0)
    entry = single(scores(records))
    assert entry["score"] == pytest.approx(100 * np.mean(RIGHT, axis=1).mean())
    assert (entry["n"], entry["n_failed"], entry["answers_least"]) == (6, 1, 7)


def test_greedy_and_drawn_answers_stand_in_different_tables() -> None:
    records = [*answers(), *line("aime", [1.0] * 6), *answers(generation_parameters={"temperature": 1.0})]
    frame = scores(records)
    assert set(frame["generation_parameters"]) == {
        "{}",
        '{"temperature": 1.0}',
        '{"temperature": 0.6, "top_p": 0.95}',
    }


def test_an_answer_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="sample 'aime/0' was answered twice"):
        scores([*answers(), record("aime", 0, 1.0, generation_parameters=SAMPLING, sampling_seed=0, draw=0)])
    with pytest.raises(ValueError, match="different prompts"):
        other = {"generation_parameters": SAMPLING, "sampling_seed": 9, "draw": 0, "prompt_hash": "other"}
        scores([*answers(), record("aime", 0, 1.0, **other)])


def test_scores_between_0_and_1_have_no_pass_at_k() -> None:
    assert pass_at_k(answers([[0.5, 0.2], [1, 0]])).empty
    assert pass_at_k(line("aime", [1.0, 0.0])).empty


def test_the_files_say_how_many_answers_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_records(tmp_path, answers() + answers(press="knorm", ratio=0.5))
    write_tables([folder])
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert "temperature=0.6, top_p=0.95" in table
    assert "| full cache |     – | 100.0 % | 6 × 8 |" in table
    assert "avg@8" in table
    assert "pass@8" in table
    assert "83.3" in table
    assert "6 × 8" in capsys.readouterr().out
    csv = pd.read_csv(folder / "scores.csv")
    assert set(csv["answers_most"]) == {8}
    assert set(pd.read_csv(folder / "pass_at_k.csv")["k"]) == {1, 2, 4, 8}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "pass@8" in page
    assert "seed 1, draw 3" in page


def test_files_of_greedy_answers_have_no_column_more(tmp_path: Path) -> None:
    folder = write_records(tmp_path, line("aime", [1.0, 0.0]))
    write_tables([folder])
    assert not [name for name in pd.read_csv(folder / "scores.csv") if name.startswith(("answers", "gener"))]
    assert not (folder / "pass_at_k.csv").exists()
    assert "answers to each question" not in (folder / "table.md").read_text(encoding="utf-8")


def test_values_of_questions() -> None:
    questions = Questions.of(["b", "a", "b"])
    assert questions.means(np.array([1.0, 3.0, 2.0])).tolist() == [3.0, 1.5]
    assert questions.agree(["x", "y", "x"])
    assert not questions.agree(["x", "y", "z"])
