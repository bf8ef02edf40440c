"""MATH-500 and AIME 2025: the last box, what counts as equal, prompts and rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.aime25 import Aime25Benchmark, integer
from benchmarks.base import Benchmark, Sample
from benchmarks.math500 import Math500Benchmark, normalize
from benchmarks.text.boxed_answers import last_boxed
from tests.support.end_to_end import check_end_to_end
from tests.support.suite_laws import check, prompt, take

PROBLEMS = [
    {
        "problem": "What is $1/2 + 1$?",
        "answer": "\\frac{3}{2}",
        "subject": "Algebra",
        "level": 1,
        "unique_id": "made/1",
    },
    {
        "problem": "Which {set}?",
        "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
        "subject": "Geometry",
        "level": 2,
        "unique_id": "made/2",
    },
    {
        "problem": "Which word?",
        "answer": "\\text{odd}",
        "subject": "Algebra",
        "level": 3,
        "unique_id": "made/3",
    },
]
INTEGERS = [
    {"index": 0, "question": "One?", "true_answer": "70"},
    {"index": 1, "question": "Two?", "true_answer": "005"},
]


def rows(path: Path, made: list[dict[str, Any]]) -> str:
    (file := path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in made), encoding="utf-8"
    )
    return str(file)


@pytest.mark.parametrize("style", ["boxed", "r_kv", "lighteval"])
@pytest.mark.parametrize(("kind", "made"), [(Math500Benchmark, PROBLEMS), (Aime25Benchmark, INTEGERS)])
def test_laws(kind: type[Any], made: list[dict[str, Any]], style: str, tmp_path: Path) -> None:
    benchmark = kind(path=rows(tmp_path, made), prompt=style)
    samples = take(benchmark)
    check(benchmark, samples, lambda sample: f"First \\boxed{{0}}, so $\\boxed{{{sample.references[0]}}}$.")
    assert take(benchmark, 1) == samples[:1] and len(samples) == len(made)
    for sample, row in zip(samples, made, strict=True):
        assert (row.get("problem") or row["question"]) in prompt(sample) and "boxed{" in prompt(sample)
        assert benchmark.score(sample, sample.references[0]) == {"accuracy": 1, "boxed": 0}  # a bare answer
    assert samples[0].max_new_tokens == 32768 and take(benchmark, window=1000)[0].max_new_tokens < 1000


def test_prompts(tmp_path: Path) -> None:
    path = rows(tmp_path, PROBLEMS)
    [boxed, r_kv, lighteval] = [
        take(Math500Benchmark(path=path, prompt=style), 1)[0] for style in ("boxed", "r_kv", "lighteval")
    ]
    assert (
        prompt(boxed)
        == "What is $1/2 + 1$?\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert prompt(r_kv).startswith(
        "You are given a math problem.\n\nProblem: What is $1/2 + 1$?\n\n You need"
    )
    assert prompt(lighteval).endswith("before answering.\n\nWhat is $1/2 + 1$?\n")


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("", None),
        ("70", None),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1} \\boxed{2", "1"),  # cut by the limit of tokens
        ("\\fbox{a}", "a"),
        ("\\boxed{}", ""),
        ("\\boxed {x}", "x"),
        ("boxed{1}", None),
    ],
)
def test_last_boxed(text: str, box: str | None) -> None:
    assert last_boxed(text) == box


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("\\dfrac12", "\\frac{1}{2}"),
        ("0.5", "\\frac12"),
        ("1/2", "\\tfrac{1}{2}"),
        ("\\frac1{72}", "\\frac{1}{72}"),
        (".5", "0.5"),
        ("x = 5", "5"),
        ("\\text{ odd }", "odd"),
        ("10\\%", "10"),
        ("\\$5", "5"),
        ("90^\\circ", "90"),
        ("5\\text{ cm}", "5"),
        ("\\left(1, 2\\right)", "(1,2)"),
        ("\\sqrt3", "\\sqrt{3}"),
        ("1,\\!000", "1,000"),
        ("$7$", "7"),
    ],
)
def test_equal_formulas(left: str, right: str) -> None:
    assert normalize(left) == normalize(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [("1", "2"), ("\\frac{1}{2}", "\\frac{2}{1}"), ("xyz = 5", "xzy = 5"), ("(1,2)", "[1,2]"), ("-5", "5")],
)
def test_different_formulas(left: str, right: str) -> None:
    assert normalize(left) != normalize(right)


def test_integers() -> None:
    texts = ("070", "$70$", " 1,000 ", "0", "000", "-7", "7.0", "", "٣", "\\$5")
    assert [integer(text) for text in texts] == [
        "70", "70", "1000", "0", "0", None, None, None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("benchmark", [Math500Benchmark(), Aime25Benchmark()])
def test_predictions(benchmark: Benchmark) -> None:
    given = [
        (1, {"prediction": "so \\boxed{70}", "answer": 70}),
        (2, {"output": "", "answer": "70"}),
        (3, {"response": ["70"], "answer": "70"}),
    ]
    scores = [benchmark.score(sample, text) for sample, text in benchmark.read_predictions(given, None)]
    assert [score["accuracy"] for score in scores] == [1, 0, 1] and [score["boxed"] for score in scores] == [
        1,
        0,
        0,
    ]
    with pytest.raises(ValueError, match="line 4: no field 'prediction' or"):
        list(benchmark.read_predictions([(4, {"answer": "70"})], None))
    with pytest.raises(ValueError, match="has no task 'algebra'"):
        list(benchmark.read_predictions([], "algebra"))


@pytest.mark.parametrize("kind", [Math500Benchmark, Aime25Benchmark])
def test_what_is_wrong_is_said(kind: type[Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompt='cot' is not known; choose one of boxed, r_kv, lighteval"):
        kind(prompt="cot")
    with pytest.raises(ValueError, match="max_new_tokens=0 must be at least 1"):
        kind(max_new_tokens=0)
    with pytest.raises(
        ValueError,
        match=r"no (test|aime25).jsonl or .* in .*; put the file there, or leave path empty to download it",
    ):
        take(kind(path=str(tmp_path)))
    with pytest.raises(ValueError, match="row 0: no field 'answer' or 'true_answer'; its fields are problem"):
        take(kind(path=rows(tmp_path, [{"problem": "x"}])))
    with pytest.raises(ValueError, match="leaves no room for an answer in the model's window of 7 tokens"):
        take(kind(path=rows(tmp_path, PROBLEMS if kind is Math500Benchmark else INTEGERS)), window=7)
    assert (
        Sample("x", "math500", "", "", ()).references == ()
        and kind().score(Sample("x", "t", "", "", ()), "1")["accuracy"] == 0
    )


@pytest.mark.slow
def test_math500_end_to_end(tmp_path: Path) -> None:
    where = f"benchmark.path={rows(tmp_path, PROBLEMS)}"
    check_end_to_end("math500", tmp_path / "results", where, "benchmark.max_new_tokens=16")


@pytest.mark.slow
def test_aime25_end_to_end(tmp_path: Path) -> None:
    where = f"benchmark.path={rows(tmp_path, INTEGERS)}"
    check_end_to_end("aime25", tmp_path / "results", where, "benchmark.max_new_tokens=16")
