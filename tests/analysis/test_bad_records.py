"""Record files damaged anywhere make no wrong table and no traceback, and what is left out is said."""

import gzip
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from longpress.analysis.records import Record, read_records
from tests.support.made_up_records import ruler_record, write_lines

TEXTS = (
    "key",
    "model",
    "benchmark",
    "benchmark_version",
    "task",
    "sample_id",
    "context_id",
    "press",
    "metric",
    "prediction",
    "stop_reason",
)
COUNTS = (
    *("cache_bytes", "full_cache_bytes"),
    *("context_tokens", "question_tokens", "joint_tokens", "new_tokens"),
)
SECONDS = ("prefill_seconds", "observe_seconds", "compress_seconds", "decode_seconds")
BAD = {
    **{
        key: [None, 5, True, ["x"], {"x": 1}]
        for key in (*TEXTS, "thought", "thought_end", "dtype", "revision", "prompt_hash", "prefill")
    },
    **{key: [None, "5", True, -1, 1.5, float("nan"), 2**70, [1]] for key in COUNTS},
    **{
        key: [None, "5", True, -0.1, float("nan"), float("inf"), 10**400, [1]]
        for key in (*SECONDS, "weight", "kept_fraction")
    },
    **{
        key: [None, "x", 5, [1]]
        for key in ("press_parameters", "benchmark_parameters", "generation_parameters", "data")
    },
    **{key: [None, 0, "yes", []] for key in ("query_aware", "truncated", "outgrew_rope")},
    **{
        key: ["5", True, -1, 1.5, [1]]
        for key in (
            *("final_cache_bytes", "peak_cache_bytes", "budget_tokens"),
            *("cache_bits", "peak_entries", "draw", "thinking_tokens", "state_bytes"),
        )
    },
    "compression_ratio": ["0.5", True, -0.1, 1.0, float("nan"), [0.5]],
    "score": ["0.5", True, -0.1, 1.1, float("nan"), [0.5]],
    "scores": [None, 0.5, [0.5], {"m": "x"}, {"m": 1.5}, {"m": True}, {"m": float("nan")}, {"m": None}],
    "references": [None, "a", 5, {"a": 1}],
    "kept_entries": [None, "x", 5, ["x"], [1.5], [-1], [[1, "x"]], [True], [{}]],
    "error": [5, True, ["x"], {}],
    **{key: ["x", True, -0.1, 1.1, float("nan")] for key in ("evidence_kept", "kept_fraction_with_state")},
    "threshold": ["x", True, float("nan"), float("inf"), [1]],
    **{key: ["x", True, -1, float("nan")] for key in ("mean_cache_bytes", "fidelity_seconds")},
    **{
        key: ["x", True, -1, float("nan")]
        for key in ("reference_nll", "reference_kl", "answer_nll", "answer_kl")
    },
    **{key: ["x", True, -0.1, 1.1, float("nan")] for key in ("reference_agreement", "answer_agreement")},
    "seed": [None, "x", True, 1.5, 2**70],
    "sampling_seed": ["x", True, 1.5, 2**70],
    "schema": [None, "1", True, 1.0, 0, -1],
}
CASES = [(name, value) for name, values in BAD.items() for value in values]
COMMANDS: dict[str, Callable[[Path], list[object]]] = {
    "tables": lambda folder: [folder, "--no-plots"],
    "compare": lambda folder: ["none", "knorm", folder],
    "rescore": lambda folder: [folder, f"{folder}-new"],
}
"""Arguments of the commands that read records of a folder."""
Run = Callable[[str, Path], tuple[int, str]]
"""Gives exit code and stderr of a command, given the folder."""


@pytest.fixture
def run(exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Run:
    def command(name: str, folder: Path) -> tuple[int, str]:
        code = exit_code(name, *COMMANDS[name](folder))
        return code, capsys.readouterr().err

    return command


def rows() -> list[dict]:
    made = [
        ruler_record(f"{press}{n}", press=press, sample_id=f"vt/{n}", context_id=f"c{n}")
        for press in ("none", "knorm")
        for n in range(3)
    ]
    return [json.loads(record.to_json()) for record in made]


def is_one_sentence(printed: str) -> bool:
    return printed.startswith("error: ") and len(printed.splitlines()) == 1 and len(printed) > 20


def test_every_field_is_damaged_in_turn() -> None:
    assert set(BAD) == {field.name for field in fields(Record)}


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}={str(value)[:12]}" for name, value in CASES])
def test_a_damaged_field_is_no_record_and_its_neighbours_are_read(
    name: str, value: object, tmp_path: Path, run: Run
) -> None:
    good = rows()
    write_lines(tmp_path / "one", *map(json.dumps, [*good[:2], {**good[2], name: value}, *good[3:]]))
    assert [record.key for record in read_records([tmp_path / "one"])] == [
        row["key"] for row in [*good[:2], *good[3:]]
    ]
    write_lines(tmp_path / "all", *(json.dumps({**row, name: value}) for row in good))
    for command in COMMANDS:
        code, err = run(command, tmp_path / "all")
        assert code == 2, command
        assert is_one_sentence(err), (command, err)
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] in (["one", "all"], ["all", "one"])
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["records"]


def test_a_damaged_line_is_said_and_the_table_is_that_of_the_others(tmp_path: Path, run: Run) -> None:
    good = [json.dumps(row) for row in rows()]
    write_lines(tmp_path / "whole", *good[:5])
    write_lines(
        tmp_path / "torn",
        *good[:3],
        good[3].replace('"score": 0.5', '"score": 5'),
        good[3],
        good[4],
        good[5][:-9].encode(),
    )
    assert run("tables", tmp_path / "whole") == (0, "")
    code, err = run("tables", tmp_path / "torn")
    assert code == 0
    damaged = tmp_path / "torn" / "records" / "a.jsonl"
    assert err == (f"note: {damaged}: damaged lines left out: 2; the command that wrote them answers again\n")
    assert (tmp_path / "torn" / "scores.csv").read_text() == (tmp_path / "whole" / "scores.csv").read_text()


FILES = {
    "empty": b"",
    "binary": bytes(range(256)) * 50,
    "no newline": b"{" * 1000,
    "newer": json.dumps({**rows()[0], "schema": 2}).encode(),
    "nested": b'{"a":' * 100_000,
    "another program's": b'{"pred": "a", "outputs": ["b"]}\n' * 5,
    "UTF-16": json.dumps(rows()[0]).encode("utf-16"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "content", [*FILES, "folder", "file", "nothing", "torn gzip", "no gzip", "dangling link"]
)
def test_what_holds_no_record_gets_one_sentence(command: str, content: str, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "results"
    if content != "nothing":
        (folder / "records").mkdir(parents=True)
    if content in FILES:
        (folder / "records" / "a.jsonl").write_bytes(FILES[content])
    elif content == "folder":
        (folder / "records" / "a.jsonl").mkdir()
    elif content == "file":
        (folder / "records").rmdir()
        (folder / "records").write_text("x")
    elif content == "torn gzip":
        lines = "\n".join(map(json.dumps, rows())).encode()
        (folder / "records" / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:-20])
    elif content == "no gzip":
        (folder / "records" / "a.jsonl.gz").write_bytes(b"not packed")
    elif content == "dangling link":
        (folder / "records" / "a.jsonl").symlink_to(tmp_path / "nowhere")
    code, err = run(command, folder)
    assert code == 2
    assert is_one_sentence(err), err


NAMES = ("key", "model", "benchmark", "task", "sample_id", "press")


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("text", ["\ud800", "\0", "a\nb", ""])
def test_a_name_that_cannot_stand_in_a_table_is_no_record(
    name: str, text: str, tmp_path: Path, run: Run
) -> None:
    write_lines(tmp_path / "results", *(json.dumps({**row, name: text}) for row in rows()))
    code, err = run("tables", tmp_path / "results")
    if text == "\ud800" and name in (
        "model",
        "benchmark",
        "benchmark_version",
        "task",
        "metric",
    ):  # what was measured is not lost
        assert (code, err) == (0, "")
        assert "?" in (tmp_path / "results" / "scores.csv").read_text()
    elif name in ("prediction", "stop_reason") or (text == "" and name not in NAMES):
        assert (code, err) == (0, "")
    else:
        assert code == 2
        assert is_one_sentence(err), err


ODD = ["<script>alert(1)</script>", "a|b&%$#_{}~^\\", "../../../etc/x", "x" * 40]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("text", ODD)
def test_any_name_makes_a_table(name: str, text: str, tmp_path: Path, run: Run) -> None:
    changed = [
        {**row, name: text + (row[name] if name in ("key", "sample_id", "press") else "")} for row in rows()
    ]
    write_lines(tmp_path / "results", *map(json.dumps, changed))
    code, err = run("tables", tmp_path / "results")
    assert code == 0, err
    assert "<script>alert" not in (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


DRAWN = ("model", "benchmark", "task", "metric", "press")
"""Names that plots show."""


@pytest.mark.parametrize("text", [*ODD, "a$b$", r"$\frac{"])
def test_any_name_is_drawn(text: str, tmp_path: Path, exit_code: Callable[..., int]) -> None:
    changed = [
        {**row, **{name: text for name in DRAWN if (name, row[name]) != ("press", "none")}} for row in rows()
    ]
    write_lines(tmp_path / "results", *map(json.dumps, changed))
    assert exit_code("tables", tmp_path / "results") == 0
    assert list((tmp_path / "results").glob("*.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
