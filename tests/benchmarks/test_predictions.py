"""`longpress score`: official prediction files in, scores out, one sentence where something is wrong."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.ruler.prompts import TASKS
from benchmarks.text.jsonl import read_rows
from benchmarks.text.sources import file_rows
from longpress.catalogue import benchmarks

Score = Callable[..., int]
OFFICIAL = Path(__file__).parent / "data" / "ruler" / "official"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def predictions(task: str, part: float) -> list[dict[str, Any]]:
    lines = (OFFICIAL / task / "validation.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    return [
        {**row, "pred": "\u2028 ".join(row["outputs"][: round(part * len(row["outputs"]))]), "others": {}}
        for row in rows
    ]


def test_one_task(tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "vt.jsonl", predictions("vt", 0.6) + predictions("vt", 0))
    assert score("ruler/vt", file) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tasks"] == {"vt": {"string_match_all": 30.0, "n": 4, "empty": 2}}
    assert result["averages"] == {"average": None}  # twelve tasks are missing


def test_all_tasks_in_one_file(tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"task": task, "outputs": ["a", "b", "c"], "pred": "c b" if number else "b"}
        for task in TASKS
        for number in range(2)
    ]
    assert score("ruler", write(tmp_path / "all.jsonl", rows)) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tasks"]["fwe"] == {"string_match_all": 50.0, "n": 2, "empty": 0}
    assert result["tasks"]["qa_1"] == {"string_match_part": 100.0, "n": 2, "empty": 0}
    assert result["averages"]["average"] == round((11 * 50 + 2 * 100) / 13, 2)


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        (["rular/vt"], "", "there is no benchmark 'rular'; did you mean ruler? existing: "),
        (["ruler/vt"], '{"pred": "x", "outputs": ["x"]}\n{"pred"', "file.jsonl, line 2: not JSON"),
        (["ruler/vt"], '\n\n{"answer": "x"}\n', "file.jsonl, line 3: no field 'pred'"),
        (["ruler/vt"], "", "holds no prediction"),
        (["ruler/vt"], "\ufeff[]", "file.jsonl, line 1: a list"),
        (
            ["ruler/vtt"],
            '{"pred": "x", "outputs": ["x"]}',
            "line 1: ruler has no task 'vtt'; its tasks are niah_single_1",
        ),
        (["niah"], '{"pred": "x"}', "file.jsonl, line 1: the length ''"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    arguments: list[str],
    content: str,
    message: str,
    tmp_path: Path,
    score: Score,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (file := tmp_path / "file.jsonl").write_text(content, encoding="utf-8")
    assert score(*arguments, str(file)) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1


def test_missing_and_binary_files(tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]) -> None:
    assert score("ruler/vt", str(tmp_path / "none.jsonl")) == 2
    (file := tmp_path / "file.jsonl").write_bytes(b"\xff\xfe\x00")
    assert score("ruler/vt", str(file)) == 2
    errors = capsys.readouterr().err
    assert "no file at" in errors and "file.jsonl, line 1: not JSON" in errors


def test_usage(score: Score, capsys: pytest.CaptureFixture[str]) -> None:
    assert score() == 2
    assert "BENCHMARK[/TASK], FILE" in capsys.readouterr().err
    assert score("--help") == 0
    printed = capsys.readouterr().out
    assert "usage: longpress score" in printed and "niah, ruler" in " ".join(printed.split())


def test_the_package_is_the_same_command(
    tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "vt.jsonl", predictions("vt", 0.6))
    for arguments in (["ruler/vt", file], ["rular", file], ["ruler/vt", str(tmp_path / "none.jsonl")], []):
        code = score(*arguments)
        printed = capsys.readouterr()
        with nullcontext() if code == 0 else pytest.raises(SystemExit, match=str(code)):
            main(arguments)
        of_package = capsys.readouterr()
        assert of_package.out == printed.out
        if arguments:  # argparse adds its usage to what it refuses
            assert of_package.err == printed.err


def test_found_by_their_files_and_folders() -> None:
    found = benchmarks()
    assert found["ruler"].class_name == "RulerBenchmark" and found["niah"].class_name == "NiahBenchmark"
    assert not {"base", "text", "score_command", "__main__"} & set(found)


def test_command_needs_neither_torch_nor_the_hub(tmp_path: Path) -> None:
    file = write(tmp_path / "vt.jsonl", predictions("vt", 1))
    code = (
        "import sys, runpy; sys.argv = ['benchmarks', 'ruler/vt', sys.argv[1]]\n"
        "try: runpy.run_module('benchmarks', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'wonderwords', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code, file], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tasks"]["vt"]["string_match_all"] == 100.0


def test_csv_predictions_are_read(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    file.write_text(
        ',target,output,question\n0,kitchen,"The kitchen.\nYes, it",Where is Mary?\n1,hall,,Where is John?\n',
        encoding="utf-8",
    )
    rows = list(read_rows(file))
    assert [(number, row["output"]) for number, row in rows] == [(2, "The kitchen.\nYes, it"), (4, "")]
    file.write_text("a,b\n1,2,3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: more fields"):
        list(read_rows(file))


def test_long_fields_of_csv_files_are_read_wherever_rows_are(tmp_path: Path) -> None:
    """Python's own limit is 131,072 characters, and a setting of the whole process."""
    file, text = tmp_path / "rows.csv", "word, and " * 20_000
    with file.open("w", encoding="utf-8", newline="") as lines:
        table = csv.writer(lines)
        table.writerows([["context", "answer"], [text, "x"]])
    csv.field_size_limit(131_072)
    assert file_rows(file) == [{"context": text, "answer": "x"}]
    csv.field_size_limit(131_072)
    assert [row for _, row in read_rows(file)] == file_rows(file)
