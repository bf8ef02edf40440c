"""BABILong: prompts, the set logic of the score and its oddities, official predictions."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.babilong import TASKS, BabilongBenchmark, prompts
from benchmarks.babilong.evidence import find_facts
from benchmarks.base import Sample
from benchmarks.score_command import score_file
from tests.support.end_to_end import check_end_to_end
from tests.support.suite_laws import check, prompt, take

OFFICIAL = Path(__file__).parent / "data" / "babilong" / "predictions.jsonl"
STORY = (
    "It rained. Mary went to the kitchen. John moved to the office. All was still.\n"
    "Mary journeyed to the garden. It snowed."
)
ROWS: dict[str, list[dict[str, str]]] = {
    "qa1": [
        {"input": STORY, "question": "Where is Mary? ", "target": "garden"},
        {"input": STORY, "question": "Where is John? ", "target": "office"},
    ],
    "qa4": [
        {
            "input": "The office is west of the garden. Wind.",
            "question": "What is the garden east of?",
            "target": "office",
        }
    ],
    "qa5": [
        {"input": "Fred gave the milk to Bill. Rain.", "question": "Who gave the milk?", "target": "Fred"}
    ],
    "qa8": [
        {
            "input": "Mary got the milk there. Mary took the apple there.",
            "question": "What is Mary carrying?",
            "target": "milk,apple",
        }
    ],
}


def folder(path: Path, length: str = "1k") -> str:
    (path / length).mkdir()
    for task, rows in ROWS.items():
        (path / length / f"{task}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    return str(path)


def made(path: Path, **options: Any) -> BabilongBenchmark:
    return BabilongBenchmark(**{"path": folder(path), "length": "1k", "tasks": tuple(ROWS), **options})


def test_laws(tmp_path: Path) -> None:
    benchmark = made(tmp_path)
    samples = take(benchmark)
    check(benchmark, samples, lambda sample: f"It is {' and '.join(sample.references[0].split(','))}.")
    assert take(benchmark, 1) == [sample for sample in samples if sample.id.endswith("/0")]
    assert [sample.id for sample in samples][:2] == ["qa1/0", "qa1/1"] and samples[0].context_id == samples[
        1
    ].context_id


def test_prompt_is_the_official_one(tmp_path: Path) -> None:
    template = (  # prompts.py
        "{instruction}\n\n{examples}\n\n{post_prompt}\n\n"
        "<context>\n{context}\n</context>\n\nQuestion: {question}"
    )
    for sample in take(made(tmp_path)):
        row = ROWS[sample.task][int(sample.id.split("/")[1])]
        filled = template.format(
            **prompts()["prompts"][sample.task], context=row["input"].strip(), question=row["question"]
        )
        assert prompt(sample) == filled.strip()
        assert sample.max_new_tokens == 20 and sample.chat_template


def test_evidence(tmp_path: Path) -> None:
    found = [[sample.context[start:end] for start, end in sample.evidence] for sample in take(made(tmp_path))]
    assert found == [
        ["Mary journeyed to the garden."],
        ["John moved to the office."],
        ["The office is west of the garden."],
        ["Fred gave the milk to Bill."],
        [],
    ]
    assert find_facts("qa5", "Fred gave the milk to Bill.", "Why?", "Bill") == ()


def test_official_predictions() -> None:
    benchmark = BabilongBenchmark()
    rows = [json.loads(line) for line in OFFICIAL.read_text(encoding="utf-8").split("\n") if line]
    scored = [
        benchmark.score(sample, output)
        for sample, output in benchmark.read_predictions(enumerate(rows, start=1), None)
    ]
    assert [score["accuracy"] for score in scored] == [float(row["correct"]) for row in rows]
    assert len(rows) == 120
    result = score_file(benchmark, None, str(OFFICIAL))
    assert {task: result["tasks"][task]["n"] for task in ("qa1", "qa2", "qa3")} == {
        "qa1": 40,
        "qa2": 40,
        "qa3": 40,
    }
    assert result["averages"]["qa1-qa5"] is None  # two tasks are missing


@pytest.mark.parametrize(
    ("task", "question", "target", "output", "official", "repaired"),
    [
        ("qa1", "Where is Mary?", "garden", "GARDEN", 1, 1),
        ("qa1", "Where is Mary?", "garden", "garden or office", 0, 0),
        ("qa1", "Where is Mary?", "garden", "The garden. Not the office", 1, 1),
        (
            "qa1",
            "Where is Mary?",
            "kitchen",
            "Kitchen\nQuestion: where is the garden",
            0,
            1,
        ),  # never cut at "Question"
        ("qa1", "Where is Mary?", "kitchen", "kitchen<context>garden", 1, 1),
        (
            "qa3",
            "Where was the apple before the office?",
            "garden",
            "Before the office it was in the garden",
            1,
            1,
        ),
        ("qa7", "How many?", "none", "none", 0, 1),  # "none" contains "one"
        ("qa7", "How many?", "one", "one", 1, 1),
        ("qa8", "What is Mary carrying?", "apple,milk", "milk, apple", 1, 1),
        ("qa8", "What is Mary carrying?", "apple,milk", "milk", 0, 0),
        ("qa8", "What is Mary carrying?", "apple,milk", "milk, apple, football", 0, 0),
        ("qa19", "How do you go?", "n,e", "n,e", 1, 1),
    ],
)
def test_score(task: str, question: str, target: str, output: str, official: int, repaired: int) -> None:
    sample = Sample("x", task, "", question, (target,), metadata={"question": question})
    assert BabilongBenchmark().score(sample, output) == {"accuracy": official, "accuracy_repaired": repaired}


def test_every_label_is_its_own_answer() -> None:
    benchmark = BabilongBenchmark()
    for task in TASKS:
        for label in prompts()["labels"][task]:
            scores = benchmark.score(Sample("x", task, "", "?", (label,)), label)
            assert scores["accuracy_repaired"] == 1 and scores["accuracy"] == (
                (task, label) != ("qa7", "none")
            )


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no task 'qa11'; its tasks are qa1, .* qa10$"):
        BabilongBenchmark(tasks=("qa11",))
    with pytest.raises(ValueError, match="length='3k' is not known"):
        BabilongBenchmark(length="3k")
    with pytest.raises(ValueError, match=r"babilong qa2 1k: no 1k/qa2.jsonl or .* in .*; put the file there"):
        take(made(tmp_path, tasks=("qa2",)))
    with pytest.raises(
        ValueError, match=r"row 0, takes \d+ tokens, the model's window has 100, .* choose a shorter length"
    ):
        take(BabilongBenchmark(path=str(tmp_path), length="1k", tasks=("qa1",)), window=100)
    with pytest.raises(ValueError, match="line 3: no field 'question'"):
        list(BabilongBenchmark().read_predictions([(3, {"target": "office", "output": None})], "qa1"))
    row = {"target": "office", "output": None, "question": "?"}
    assert [output for _, output in BabilongBenchmark().read_predictions([(1, row)], "qa1")] == [""]
    with pytest.raises(
        ValueError, match="line 1: no field 'task'; name the task on the command line: babilong/TASK"
    ):
        list(BabilongBenchmark().read_predictions([(1, row)], None))


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    (rows := tmp_path / "rows").mkdir()
    check_end_to_end(
        "babilong",
        tmp_path / "results",
        f"benchmark.path={folder(rows)}",
        "benchmark.length=1k",
        "benchmark.tasks=[qa1,qa4]",
    )
