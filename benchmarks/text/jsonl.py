"""Rows and predictions as the suites write them: JSON lines or CSV, each row with its line number."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

NumberedRow = tuple[int, dict[str, Any]]
"""The number of a line, and the row that stands there."""


def read_rows(path: str | Path) -> Iterator[NumberedRow]:
    r"""Every row of a file.

    A `.csv` file, as BABILong's authors publish, gives its rows with their first line's numbers; empty fields
    are "". Every other file has a JSON object a line, see `json_lines`.

    Raises:
        ValueError: no such file, not UTF-8, or a line that is not a JSON object; names the file and the line.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"no file at {file.resolve()}")
    if file.suffix == ".csv":
        yield from _csv_rows(file)
        return
    with file.open("rb") as lines:
        yield from json_lines(lines, file.name)


def json_lines(lines: Iterable[bytes], name: str) -> Iterator[NumberedRow]:
    r"""Every row among lines of UTF-8, with or without a byte order mark; blank lines are left out.

    Lines end at "\n" only, as an open binary file gives them, since texts contain U+2028 and U+0085.

    Args:
        lines: of the file.
        name: of the file, for errors.

    Raises:
        ValueError: a line is not a JSON object; names the file and the line.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{name}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{name}, line {number}: a {type(row).__name__}, where a JSON object is expected"
            )
        yield number, row


def _csv_rows(file: Path) -> Iterator[NumberedRow]:
    csv.field_size_limit(2**30)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, restval="")
        try:
            number = 2
            for row in reader:
                if None in row:
                    raise ValueError(f"{file.name}, line {number}: more fields than the header names")
                yield number, row
                number = reader.line_num + 1
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{file.name}, line {reader.line_num + 1}: not CSV ({error})") from error
