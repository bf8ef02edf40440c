"""Output that nobody reads to its end, as with `… | head -2`, ends a command without a word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "longbench-smollm2"
SIGPIPE = 128 + 13
"""Exit code of such a command in a shell."""
COMMANDS = {
    "compare": ["-m", "longpress", "compare", "kvzip", "all", str(RESULTS)],
    "catalogue": ["-m", "longpress", "ls"],
    "help": ["evaluate.py", "--help"],
}


def unread(arguments: list[str], unbuffered: str = "") -> tuple[int, str]:
    """Exit code and stderr of a command whose output has no reader."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        around = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=around, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "at the first line"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_leaves_gets_no_traceback(name: str, unbuffered: str) -> None:
    assert unread(COMMANDS[name], unbuffered) == (SIGPIPE, "")


def test_tables_are_whole_where_nobody_reads_what_is_printed(tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "records", tmp_path / "records")
    assert unread(["-m", "longpress", "tables", "--no-plots", str(tmp_path)], "1") == (
        SIGPIPE,
        "",
    )
    assert {"scores.csv", "costs.csv", "table.md", "table.tex", "report.html"} <= {
        path.name for path in tmp_path.iterdir()
    }
