"""LongBench v2: the official prompt, cut and extraction; judged predictions; failed rows; divisions."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.base import Sample
from benchmarks.longbench_v2 import LongbenchV2Benchmark, extract
from benchmarks.score_command import score_file
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.end_to_end import check_end_to_end
from tests.support.suite_laws import check, prompt, take

JUDGED = Path(__file__).parent / "data" / "longbench_v2" / "judged_predictions.json"
TEMPLATE = (  # prompts/0shot.txt
    "Please read the following text and answer the question below.\n\n<text>\n$DOC$\n</text>\n\n"
    "What is the correct answer to this question: $Q$\n"
    "Choices:\n(A) $C_A$\n(B) $C_B$\n(C) $C_C$\n(D) $C_D$\n\n"
    'Format your response as follows: "The correct answer is (insert answer here)".'
)
ROWS = [
    {
        "_id": f"id{number}",
        "domain": "Single-Document QA",
        "sub_domain": "Legal",
        "difficulty": difficulty,
        "length": length,
        "question": f" Which {{answer}} is it, {number}? \n",
        "choice_A": "one ",
        "choice_B": "two",
        "choice_C": "both $Q$",
        "choice_D": "none",
        "answer": "ABCD"[number],
        "context": "\n " + "A long text {context}. " * 20 + f"{number}\n",
    }
    for number, (difficulty, length) in enumerate(
        (("easy", "short"), ("hard", "short"), ("hard", "medium"), ("easy", "long"))
    )
]


def made(path: Path, name: str = "data.json", **options: Any) -> LongbenchV2Benchmark:
    lines = json.dumps(ROWS) if name.endswith("json") else "".join(json.dumps(row) + "\n" for row in ROWS)
    (path / name).write_text(lines, encoding="utf-8")
    return LongbenchV2Benchmark(path=str(path), **options)


def official(row: dict[str, str]) -> str:
    fields = {
        "$DOC$": "context",
        "$Q$": "question",
        **{f"$C_{letter}$": f"choice_{letter}" for letter in "ABCD"},
    }
    return re.sub(r"\$\w+\$", lambda gap: row[fields[gap[0]]].strip(), TEMPLATE)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_laws(tmp_path: Path, name: str) -> None:
    benchmark = made(tmp_path, name)
    samples = take(benchmark)
    check(benchmark, samples, lambda sample: f"**The correct answer is ({sample.references[0]})**")
    check(benchmark, samples, lambda sample: f"The correct answer is {sample.references[0]}.")
    assert take(benchmark, 2) == samples[:2] and [sample.id for sample in samples] == [
        f"overall/id{at}" for at in range(4)
    ]


def test_prompt_is_the_official_one(tmp_path: Path) -> None:
    for sample, row in zip(take(made(tmp_path)), ROWS, strict=True):
        assert prompt(sample) == official(row)
        assert sample.chat_template and sample.max_new_tokens == 128 and not sample.truncated
        assert sample.metadata["max_length"] == 120_000 and sample.metadata["domain"] == "Single-Document QA"


@pytest.mark.parametrize("limit", [700, 701])
def test_the_whole_prompt_is_cut_in_its_middle(tmp_path: Path, limit: int) -> None:
    tokenizer = byte_tokenizer()
    for sample, row in zip(made(tmp_path, max_length=limit).samples(tokenizer, 10**6), ROWS, strict=True):
        tokens = tokenizer.encode(official(row))
        assert (
            prompt(sample) == tokenizer.decode(tokens[: limit // 2] + tokens[-limit // 2 :])
            and sample.truncated
        )
    small = next(made(tmp_path).samples(tokenizer, 800))
    assert small.metadata["max_length"] == 800 - 128 - 2  # <user> and <assistant>
    with pytest.raises(
        ValueError, match=r"longbench_v2, row 0: the question takes \d+ tokens, and 100 are kept"
    ):
        next(made(tmp_path, max_length=200).samples(tokenizer, 10**6))


@pytest.mark.parametrize(
    ("response", "letter", "alone"),
    [
        ("The correct answer is (B)", "B", "B"),
        ("The **correct** answer is **B**.", "B", "B"),
        ("The correct answer is A, no: The correct answer is (C)", "C", "C"),
        ("The correct answer is Both", "B", None),
        ("The correct answer is (Both", None, None),
        ("The correct answer is E", None, None),
        ("the correct answer is (A)", None, None),
        ("", None, None),
    ],
)
def test_extraction(response: str, letter: str | None, alone: str | None) -> None:
    assert extract(response) == (letter, alone)
    sample = Sample("x", "overall", "", "", ("B",), metadata={"difficulty": "easy", "length": "long"})
    scores = LongbenchV2Benchmark().score(sample, response)
    right = float(letter == "B")
    assert list(scores) == ["accuracy", "accuracy_letter_alone", "answered", "accuracy_easy", "accuracy_long"]
    assert scores["accuracy"] == scores["accuracy_easy"] == scores["accuracy_long"] == right
    assert scores["accuracy_letter_alone"] == float(alone == "B") and scores["answered"] == float(
        letter is not None
    )


def test_judged_predictions(tmp_path: Path) -> None:
    rows = json.loads(JUDGED.read_text(encoding="utf-8"))["rows"]
    (file := tmp_path / "file.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )

    def mean(chosen: list[dict[str, Any]]) -> float:
        return round(100 * sum(row["judge"] for row in chosen) / len(chosen), 2)

    overall = score_file(LongbenchV2Benchmark(), None, str(file))["tasks"]["overall"]
    assert (overall["n"], overall["accuracy"]) == (60, mean(rows))
    assert overall["answered"] == round(100 * sum(row["pred"] in "ABCD" for row in rows) / 60, 2) < 100
    assert overall["accuracy_hard"] == mean([row for row in rows if row["difficulty"] == "hard"])
    assert "accuracy_long" not in overall  # no long row: not 0
    hard = score_file(LongbenchV2Benchmark(), "hard", str(file))["tasks"]["hard"]
    assert hard["accuracy"] == overall["accuracy_hard"] and hard["n"] == sum(
        row["difficulty"] == "hard" for row in rows
    )


def test_responses_are_read_again_and_failures_are_wrong() -> None:
    benchmark, facts = LongbenchV2Benchmark(), {"difficulty": "easy", "length": "short"}
    rows = [
        {"response": "The correct answer is (B)", "pred": "B", "answer": "B", "judge": True, **facts},
        {"response": "The correct answer is (B)", "answer": "A", **facts},
        {"pred": "D", "answer": "D", **facts},
        {"pred": None, "answer": "D", **facts},
        {"pred": None, "judge": False, **facts},
        {"error": "timeout", **facts},
        {"response": "", "answer": "A", **facts},
    ]
    scored = [
        benchmark.score(sample, text)["accuracy"]
        for sample, text in benchmark.read_predictions(enumerate(rows), None)
    ]
    assert scored == [1, 0, 1, 0, 0, 0, 0]
    for row, message in (
        ({"answer": "A"}, "line 4: the field 'pred' is missing"),
        ({"pred": "A"}, "line 4: no field 'answer' or 'judge'"),
    ):
        with pytest.raises(ValueError, match=message):
            list(benchmark.read_predictions([(4, row)], None))


def test_divisions(tmp_path: Path) -> None:
    benchmark = made(tmp_path, tasks=("hard", "easy"))
    assert [sample.id for sample in take(benchmark)] == ["hard/id1", "hard/id2", "easy/id0", "easy/id3"]
    assert [sample.id for sample in take(benchmark, 1)] == ["hard/id1", "easy/id0"]
    assert list(benchmark.averages()) == ["mean_of_columns"] and list(LongbenchV2Benchmark().averages()) == [
        "average"
    ]
    assert [sample.id for sample in take(made(tmp_path, tasks=("short",)))] == ["short/id0", "short/id1"]
    assert "accuracy_hard" not in benchmark.score(take(benchmark)[0], "")


def test_rows_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(repository: str, config: str | None, **options: Any) -> list[dict[str, Any]]:
        asked.append((repository, config, options))
        return ROWS

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("benchmarks.text.sources.hub_commit", lambda repository, revision: "abc")
    samples = list(LongbenchV2Benchmark().samples(byte_tokenizer(), 10**6, 1))
    assert asked == [("zai-org/LongBench-v2", None, {"split": "train", "revision": "abc"})]
    assert (
        samples[0].metadata["revision"] == "abc" and samples[0].metadata["source"] == "zai-org/LongBench-v2"
    )


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longbench_v2 has no task 'tiny'"):
        LongbenchV2Benchmark(tasks=("tiny",))
    with pytest.raises(ValueError, match="tasks short, hard overlap; choose overall"):
        LongbenchV2Benchmark(tasks=("short", "hard"))
    with pytest.raises(ValueError, match="max_length=-5 must be positive"):
        LongbenchV2Benchmark(max_length=-5)
    with pytest.raises(
        ValueError, match=r"longbench_v2: no data.jsonl or train.jsonl in .*; put the file there"
    ):
        take(LongbenchV2Benchmark(path=str(tmp_path)))
    (tmp_path / "data.json").write_text(json.dumps([{**ROWS[0], "answer": "E"}]))
    with pytest.raises(ValueError, match="row 0: the answer 'E' is not one of A, B, C, D"):
        take(LongbenchV2Benchmark(path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"data.json has no row of long"):
        take(LongbenchV2Benchmark(path=str(tmp_path), tasks=("long",)))


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    (rows := tmp_path / "rows").mkdir()
    check_end_to_end("longbench_v2", tmp_path / "results", f"benchmark.path={made(rows).path}")
