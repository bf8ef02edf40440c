"""ZeroSCROLLS: prompts and their cut, metrics, rows with and without answers, the submission file."""

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.base import Sample
from benchmarks.zero_scrolls import MAX_NEW_TOKENS, ZeroScrollsBenchmark
from benchmarks.zero_scrolls.metrics import accuracy, concordance, exp_similarity, f1
from benchmarks.zero_scrolls.submission import main
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.end_to_end import check_end_to_end
from tests.support.suite_laws import check, prompt, take

GOLD = {
    "quality": "(B) No",
    "space_digest": "80%",
    "book_sum_sort": "2, 4, 1, 3",
    "qasper": "in Zürich, the city",
}
GOLD |= {task: f"A long enough answer to {task}." for task in MAX_NEW_TOKENS if task not in GOLD}
INSTRUCTION, DOCUMENT, QUERY, CUE = (
    "You are given a text.\n\nText:\n",
    "Once upon a time. " * 20,
    "Question:\nWhat?",
    "\n\nAnswer:\n",
)


def row(task: str, number: int, output: str | None) -> dict[str, Any]:
    head = INSTRUCTION + DOCUMENT
    query = head + "\n\n" + QUERY
    return {
        "id": f"id{number}",
        "pid": f"id{number}_0",
        "input": query + CUE,
        "output": output,
        "document_start_index": len(INSTRUCTION),
        "document_end_index": len(head),
        "query_start_index": len(head) + 2,
        "query_end_index": len(query),
        "truncation_seperator": "... [The rest is omitted]\n\n",
    }


def folder(path: Path) -> str:
    for task, gold in GOLD.items():
        (path / task).mkdir()
        validation = [row(task, 0, gold), row(task, 1, gold), row(task, 1, gold)]
        for split, rows in {"validation": validation, "test": [row(task, 7, None)]}.items():
            (path / task / f"{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return str(path)


def test_laws(tmp_path: Path) -> None:
    benchmark = ZeroScrollsBenchmark(path=folder(tmp_path))
    samples = take(benchmark)
    check(benchmark, samples, lambda sample: sample.references[0])
    assert [(sample.id, len(sample.references)) for sample in samples if sample.task == "qasper"] == [
        ("qasper/id0", 1),
        ("qasper/id1", 2),
    ]
    assert len(take(benchmark, 1)) == 10


def test_prompt_is_the_column_input(tmp_path: Path) -> None:
    for sample in take(ZeroScrollsBenchmark(path=folder(tmp_path))):
        assert prompt(sample) == row(sample.task, 0, None)["input"] and not sample.truncated
        assert (sample.context, sample.question, sample.answer_prefix) == (
            INSTRUCTION + DOCUMENT,
            "\n\n" + QUERY,
            CUE,
        )
        assert sample.max_new_tokens == MAX_NEW_TOKENS[sample.task]


def test_cut(tmp_path: Path) -> None:
    [sample] = ZeroScrollsBenchmark(path=folder(tmp_path), tasks=("qasper",), max_length=150).samples(
        byte_tokenizer(), 10**6, 1
    )
    tail = "... [The rest is omitted]\n\n" + QUERY + CUE
    assert sample.truncated and prompt(sample) == (INSTRUCTION + DOCUMENT)[: 150 - len(tail)] + tail
    assert sample.question == QUERY and sample.answer_prefix == CUE
    with pytest.raises(ValueError, match="row id0: the query does not fit into 40 tokens"):
        list(
            ZeroScrollsBenchmark(path=str(tmp_path), tasks=("qasper",), max_length=40).samples(
                byte_tokenizer(), 10**6
            )
        )


def test_archives(tmp_path: Path) -> None:
    (source := tmp_path / "rows").mkdir()
    (packed := tmp_path / "packed").mkdir()
    samples = take(ZeroScrollsBenchmark(path=folder(source)))
    for task in GOLD:
        with zipfile.ZipFile(packed / f"{task}.zip", "w") as archive:
            archive.write(source / task / "validation.jsonl", f"{task}/validation.jsonl")
    assert [prompt(sample) for sample in take(ZeroScrollsBenchmark(path=str(packed)))] == [
        prompt(sample) for sample in samples
    ]
    with pytest.raises(
        ValueError, match=r"gov_report.zip has no member test.jsonl; it has gov_report/validation.jsonl"
    ):
        take(ZeroScrollsBenchmark(path=str(packed), split="test"))


@pytest.mark.parametrize(
    ("rule", "reference", "prediction", "score"),
    [
        (accuracy, "(B) No", "The answer is B.", 1.0),
        (accuracy, "(B) No", "A or B", 0.0),
        (accuracy, "(B) No", "Both", 0.0),
        (exp_similarity, "80%", "about 70 %, or 70%", 0.5),
        (exp_similarity, "80%", "80.0%", 1.0),
        (exp_similarity, "80%", "eighty", 0.0),
        (concordance, "1, 2, 3, 4", "1,2,3,4", 1.0),
        (concordance, "1, 2, 3, 4", "4 3 2 1", 0.0),
        (concordance, "1, 2, 3, 4", "2, 1, 3, 4", 5 / 6),
        (concordance, "1, 2, 3, 4", "1, 2, 3", 0.0),
        (concordance, "1, 2, 3, 4", "1, 2, 3, 3", 0.0),
        (f1, "the Zürich lake", "Zurich", 2 / 3),
        (f1, "the lake", "a", 0.0),
    ],
)
def test_metrics(rule: Any, reference: str, prediction: str, score: float) -> None:
    assert rule(reference, prediction) == pytest.approx(score)


def test_rouge_is_a_geometric_mean() -> None:
    sample = Sample("x", "qmsum", "", "", ("the cat sat on the mat", "dogs bark"))
    scores = ZeroScrollsBenchmark().score(sample, "the cat sat")
    assert scores["rouge"] == pytest.approx(
        (scores["rouge1"] * scores["rouge2"] * scores["rougeL"]) ** (1 / 3)
    )
    assert scores["rouge1"] == pytest.approx(2 / 3)


def test_rows_without_an_answer_are_not_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = ZeroScrollsBenchmark(path=folder(tmp_path), split="test")
    samples = take(benchmark)
    assert len(samples) == 10 and all(benchmark.score(sample, "anything") == {} for sample in samples)
    given = [
        (1, {"id": "a", "prediction": "B", "output": ["A", "B"]}),
        (2, {"id": "b", "prediction": "B", "output": None}),
    ]
    assert [
        benchmark.score(sample, text) for sample, text in benchmark.read_predictions(given, "quality")
    ] == [{"accuracy": 1.0}]
    assert capsys.readouterr().err == "zero_scrolls: 1 rows without an output are not scored\n"


def refused(*arguments: object) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(argument) for argument in arguments])


def test_submission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (records := tmp_path / "run" / "records").mkdir(parents=True)
    rows = [
        {
            "task": task,
            "data": {"id": "id7"},
            "press": press,
            "compression_ratio": 0.5,
            "prediction": f'{press}, "{task}"\n',
        }
        for task in reversed(MAX_NEW_TOKENS)
        for press in ("knorm", "snapkv")
    ]
    (records / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    out = tmp_path / "out.csv"
    refused(tmp_path / "run", out)
    assert (
        "the answers of 2 variants; choose one of: press=snapkv compression_ratio=0.5"
        in capsys.readouterr().err.replace("knorm", "snapkv")
    )
    main([str(tmp_path / "run"), str(out), "press=snapkv", "compression_ratio=0.5"])
    with out.open(newline="") as table:
        assert list(csv.reader(table)) == [
            ["Task", "ID", "Prediction"],
            *([task, "id7", f'snapkv, "{task}"\n'] for task in MAX_NEW_TOKENS),
        ]
    (few := tmp_path / "few.jsonl").write_text('{"task": "qmsum", "id": "x", "prediction": "y"}\n')
    refused(few, out)
    assert "a submission needs gov_report, " in capsys.readouterr().err
    refused()
    refused(out)
    refused(tmp_path / "none.jsonl", out)
    refused(few, out, "task=qmsum")
    assert "a variant has no task; choose by model, press, " in capsys.readouterr().err


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split='train' is not known; choose validation or test"):
        ZeroScrollsBenchmark(split="train")
    with pytest.raises(ValueError, match="max_length=-1 must be positive, or 0 for what"):
        ZeroScrollsBenchmark(max_length=-1)
    with pytest.raises(
        ValueError,
        match=r"zero_scrolls gov_report validation: no gov_report/validation.jsonl or .* put the file there",
    ):
        take(ZeroScrollsBenchmark(path=str(tmp_path)))
    with pytest.raises(ValueError, match="line 1: zero_scrolls has no task 'x'; its tasks are gov_report"):
        list(ZeroScrollsBenchmark().read_predictions([(1, {})], "x"))


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    (rows := tmp_path / "rows").mkdir()
    check_end_to_end(
        "zero_scrolls",
        tmp_path / "results",
        f"benchmark.path={folder(rows)}",
        "benchmark.tasks=[qasper,quality]",
    )
