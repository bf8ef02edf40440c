"""Prediction files that are broken get one sentence and exit code 2.

Values of odd types never give a traceback, nor a score outside 0 to 100.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from longpress.catalogue import benchmarks

GOOD = {
    "aime25": {"prediction": "70", "answer": "70"},
    "babilong/qa1": {"target": "garden", "output": "garden", "question": "Where is Mary?"},
    "helmet/json_kv": {"output": "a", "answer": ["a"]},
    "infinitebench/passkey": {"prediction": "5", "ground_truth": ["5"]},
    "longbench/qasper": {"pred": "a", "answers": ["a"], "all_classes": None, "length": 5},
    "longbench_v2": {"pred": "A", "answer": "A", "difficulty": "easy", "length": "short"},
    "loogle/longdep_qa": {"llm_output": ["a"], "output": ["a"]},
    "math500": {"prediction": "1", "answer": "1"},
    "niah/1024": {"model_response": "a", "needle": "The thing is a", "depth_percent": 0},
    "ruler/vt": {"pred": "a", "outputs": ["a"], "input": "x"},
    "scbench/scbench_kv": {"prediction": "a", "ground_truth": "a", "turn_idx": 0},
    "zero_scrolls/qasper": {"prediction": "a", "output": "a"},
}
"""A row of each suite's official predictions file."""
OPTIONAL = {"all_classes", "length", "difficulty", "needle", "depth_percent", "input", "turn_idx"}
MAY_LACK = {("helmet/json_kv", "output"), ("zero_scrolls/qasper", "output")}
"""Fields without which a row is left out, because the suites' own files have such rows."""
BROKEN = {
    "empty": b"",
    "blank": b"\n\n  \n",
    "binary": bytes(range(256)) * 4,
    "not UTF-8": b'{"pred": "\xff\xfe"}\n',
    "a list": b"[1, 2]\n",
    "a number": b"5\n",
    "null": b"null\n",
    "text": b'"pred"\n',
    "torn": b'{"pred": "a", "outp',
    "nested": b"[" * 100_000,
    "no fields": b"{}\n",
    "other fields": b'{"completely": "different"}\n',
}
VALUES = [None, 5, -1.5, True, "", [], {}, [None], [[1]], [{}], {"a": [1]}, "\ud800", float("nan"), 10**400]


Run = Callable[[str, Path], tuple[int, str, str]]
"""Benchmark and file -> exit code, and what was printed on stdout and stderr."""


@pytest.fixture
def run(score: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Run:
    def scored(name: str, file: Path) -> tuple[int, str, str]:
        code = score(name, file)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return scored


def is_one_sentence(printed: str) -> bool:
    return printed.startswith("error: ") and len(printed.splitlines()) == 1 and 20 < len(printed) < 4000


def test_a_row_of_every_benchmark_is_known() -> None:
    assert {name.partition("/")[0] for name in GOOD} == set(benchmarks())


@pytest.mark.parametrize("name", GOOD)
def test_the_row_itself_is_scored(name: str, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "predictions.jsonl"
    file.write_text(json.dumps(GOOD[name]) + "\n")
    code, out, err = run(name, file)
    assert code == 0, err
    assert [task["n"] for task in json.loads(out)["tasks"].values()] == [1]


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("name", GOOD)
def test_a_broken_file_gets_one_sentence(name: str, broken: str, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "predictions.jsonl"
    file.write_bytes(BROKEN[broken])
    code, out, err = run(name, file)
    assert (code, out) == (2, "")
    assert is_one_sentence(err), err


@pytest.mark.parametrize("name", GOOD)
def test_a_broken_second_line_is_named(name: str, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "predictions.jsonl"
    file.write_bytes(json.dumps(GOOD[name]).encode() + b"\n" + BROKEN["torn"])
    code, out, err = run(name, file)
    assert (code, out) == (2, "")
    assert is_one_sentence(err), err
    assert "predictions.jsonl, line 2" in err


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (name, field)
        for name, row in GOOD.items()
        for field in row
        if field not in OPTIONAL and (name, field) not in MAY_LACK
    ],
)
def test_a_row_that_lacks_a_field_is_refused(name: str, field: str, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "predictions.jsonl"
    file.write_text(json.dumps({key: value for key, value in GOOD[name].items() if key != field}) + "\n")
    code, out, err = run(name, file)
    assert (code, out) == (2, "")
    assert is_one_sentence(err), err
    assert "line 1" in err


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, row in GOOD.items() for field in row])
def test_any_value_of_a_field_is_scored_or_refused(name: str, field: str, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "predictions.jsonl"
    for value in VALUES:
        file.write_text(json.dumps({**GOOD[name], field: value}) + "\n")
        code, out, err = run(name, file)
        if code == 0:
            for task in json.loads(out)["tasks"].values():
                assert all(0 <= number <= 100 for number in task.values()), (value, out)
        else:
            assert code == 2
            assert not out
            assert is_one_sentence(err.split("not scored\n")[-1]), (value, err)


@pytest.mark.parametrize(
    "name",
    [
        "nosuch",
        "ruler/nosuch",
        "longbench/nosuch",
        "../ruler",
        "",
        "/",
        "base",
        "ruler/vt/x",
        "os",
        "__main__",
    ],
)
def test_an_unknown_benchmark_or_task_gets_one_sentence(name: str, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "predictions.jsonl"
    file.write_text(json.dumps(GOOD["ruler/vt"]) + "\n")
    code, out, err = run(name, file)
    assert (code, out) == (2, "")
    assert is_one_sentence(err), err


@pytest.mark.parametrize("place", ["", "nosuch.jsonl", "\0", "x" * 5000])
@pytest.mark.parametrize("name", ["ruler/vt", "longbench_v2", "scbench/scbench_kv"])
def test_no_file_gets_one_sentence(name: str, place: str, tmp_path: Path, run: Run) -> None:
    code, out, err = run(name, tmp_path / place)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
