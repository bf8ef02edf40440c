"""HELMET: prompts, draws that equal those of `datasets`, the cut, metrics."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.base import Sample
from benchmarks.helmet import TASKS, HelmetBenchmark, cut_end, parse_label
from benchmarks.helmet.prompts import balanced, permutation
from benchmarks.text.token_counts import Window
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.end_to_end import check_end_to_end
from tests.support.suite_laws import check, prompt, take

CTXS = [{"title": "Bob", "text": "Bob lives in Paris."}, {"title": "Ann", "text": "Ann lives in Rome."}]


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def folder(path: Path) -> str:
    write(
        path / "json_kv/test_k105_dep6.jsonl",
        [
            {
                "context": '{"k": "v-1"}',
                "question": "k",
                "answer": "v-1",
                "num_kvs": 1,
                "demos": [["a", "b"], ["c", "d"], ["e", "f"]],
            }
        ]
        * 3,
    )
    for name, answer in {
        "multikey_2": ["71"],
        "multikey_3": ["ab-1"],
        "multivalue": ["71", "72", "73"],
    }.items():
        row = {
            "context": f"One of the numbers for x is {' and '.join(answer)}.",
            "query": "x",
            "type_needle_v": "numbers",
            "answer": answer,
        }
        write(path / f"ruler/niah_{name}/validation_8192.jsonl", [row] * 2)
    for name, depth in {
        "nq-dev-multikilt_1000_k50": 6,
        "triviaqa-dev-multikilt_1000_k50": 6,
        "hotpotqa-dev-multikilt_1000_k50": 3,
        "popqa_test_1000_k50": 6,
    }.items():
        rows = [
            {
                "id": f"q{at % 2}",
                "question": f"Where {at % 2}?",
                "answers": ["in Paris", "Paris"],
                "ctxs": CTXS,
                "s_pop": 10,
            }
            for at in range(4)
        ]
        write(path / f"kilt/{name}_dep{depth}.jsonl", rows)
        demos = [{**row, "id": f"d{at}", "question": f"Demo {at}?"} for at, row in enumerate(rows)]
        write(
            path / f"kilt/{name.replace('-dev', '-train').replace('k50', 'k3')}_dep{depth}.jsonl",
            demos + demos,
        )
    for name, labels in {
        "trec_coarse": 6,
        "trec_fine": 50,
        "banking77": 77,
        "clinic150": 151,
        "nlu": 68,
    }.items():
        write(
            path / f"icl/{name}/train.jsonl",
            [{"text": f"text {at}", "label": at % labels} for at in range(2 * labels)],
        )
        write(path / f"icl/{name}/test.jsonl", [{"text": f"test {at}", "label": at} for at in range(3)])
    return str(path)


def test_laws(tmp_path: Path) -> None:
    benchmark = HelmetBenchmark(path=folder(tmp_path), tasks=TASKS)
    samples = take(benchmark)
    check(
        benchmark,
        samples,
        lambda sample: ", ".join(sample.references) if "niah" in sample.task else sample.references[0],
    )
    assert {sample.task for sample in samples} == set(TASKS) and len(take(benchmark, 1)) == len(TASKS)
    for sample in samples:
        assert bool(sample.evidence) == (sample.task in TASKS[:4]) and sample.stop == (
            () if sample.task in TASKS[:4] else ("\n",)
        )


def test_prompts(tmp_path: Path) -> None:
    prompts = {
        sample.task: prompt(sample) for sample in take(HelmetBenchmark(path=folder(tmp_path), tasks=TASKS), 1)
    }
    assert prompts["json_kv"] == (
        '{"k": "v-1"}\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n'
        "Key: a\nCorresponding value: b\n\nKey: c\nCorresponding value: d\n\nKey: k\nCorresponding value:"
    )
    assert prompts["ruler_niah_mv"] == (
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the numbers afterwards.\nOne of the numbers for x is 71 and 72 and 73.\n"
        "What are all the special magic numbers for x mentioned in the provided text?\n"
        "The special magic numbers for x mentioned in the provided text are"
    )
    documents = "Document (Title: Bob): Bob lives in Paris.\n\nDocument (Title: Ann): Ann lives in Rome."
    assert prompts["nq"].startswith(
        "Use the given documents to write a concise and short answer to the question. "
        "Write your answer in the following format:\n"
        f"Answer: [answer]\n\n{documents}\n\nQuestion: Demo "
    )
    assert prompts["nq"].endswith(f"?\nAnswer: in Paris\n\n{documents}\n\nQuestion: Where 0?\nAnswer:")
    assert prompts["nq"].count("Demo") == 2
    assert (
        prompts["nlu"].endswith("\n\ntest 0\nlabel:") and prompts["nlu"].count("label: ") == 511
    )  # 510 examples and the instruction


def test_order_is_that_of_datasets() -> None:
    from datasets import Dataset

    assert Dataset.from_dict({"at": list(range(20))}).shuffle(seed=42)["at"][:] == permutation(20, 42)


def test_balance() -> None:
    rows = [{"text": str(at), "label": at % 3} for at in range(7)]
    drawn = balanced(rows, 8, 1)
    assert (
        sorted(row["label"] for row in drawn[:3]) == [0, 1, 2] == sorted(row["label"] for row in drawn[3:6])
        and len(drawn) == 8
    )
    assert drawn == balanced(rows, 8, 1) != balanced(rows, 8, 2)


def test_cut() -> None:
    def window(size: int) -> Window:
        return Window(byte_tokenizer(), size, 0, chat_template=False)

    assert cut_end("head", "0123456789", "tail", "", window(15), "row 0") == "0123456"
    assert cut_end("head", "0123456789", "tail", "", window(18), "row 0") == "0123456789"
    with pytest.raises(
        ValueError, match="row 0: instruction, examples and question do not fit into 8 tokens with an answer"
    ):
        cut_end("head", "0123456789", "tail", "", window(8), "row 0")


@pytest.mark.parametrize(
    ("task", "references", "prediction", "score"),
    [
        ("nq", ("the Eiffel Tower", "Paris"), "Eiffel tower!", 1.0),
        ("nq", ("Paris",), "Rome", 0.0),
        ("ruler_niah_mv", ("71", "72"), "only 72", 0.5),
        ("nlu", ("12",), " 12\n\nmore", 1.0),
        ("nlu", ("12",), "Label: 12", 1.0),
        ("nlu", ("12",), "121", 0.0),
    ],
)
def test_score(task: str, references: tuple[str, ...], prediction: str, score: float) -> None:
    assert list(HelmetBenchmark().score(Sample("x", task, "", "", references), prediction).values()) == [
        score
    ]
    assert parse_label("x") == "x"


def test_predictions_and_what_is_wrong(tmp_path: Path) -> None:
    rows = [(1, {"output": "Paris", "answer": [["Paris"]]}), (2, {"output": None, "answer": "x"})]
    assert [sample.references for sample, _ in HelmetBenchmark().read_predictions(rows, "nq")] == [("Paris",)]
    assert set(HelmetBenchmark().averages()) == {"average", "recall", "rag"}
    with pytest.raises(ValueError, match="line 1: helmet has no task 'x'"):
        list(HelmetBenchmark().read_predictions(rows, "x"))
    with pytest.raises(ValueError, match="length=4096 is not known; choose one of 8192"):
        HelmetBenchmark(length=4096)
    with pytest.raises(ValueError, match=r"helmet: no path; set benchmark\.path"):
        take(HelmetBenchmark())
    with pytest.raises(
        ValueError,
        match=r"helmet json_kv: no file at .*test_k105_dep6.jsonl; path must be the suite's unpacked data",
    ):
        take(HelmetBenchmark(path=str(tmp_path)))


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    (rows := tmp_path / "rows").mkdir()
    check_end_to_end("helmet", tmp_path / "results", f"benchmark.path={folder(rows)}")
