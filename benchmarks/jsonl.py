"""JSON lines with their numbers: rows and predictions as the suites write them, and one clear sentence where a file is broken."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Yield `(line number, row)` for every line that is not blank; lines end at "\n" only, since texts contain U+2028 and U+0085.

    A `.csv` file, as BABILong's authors publish, gives its rows with their first line's numbers; empty fields
    are "".

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
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"{file.name}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"{file.name}, line {number}: a {type(row).__name__}, where a JSON object is expected"
                )
            yield number, row


def _csv_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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
