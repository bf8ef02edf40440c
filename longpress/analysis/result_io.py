"""Results folders: the records of several, and files that are there whole or not at all."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from longpress.analysis.records import Record, read_records, record_files


def read(folders: Sequence[Path]) -> list[Record]:
    """All records under `folders`, each key once; damaged lines are said on stderr.

    Raises:
        ValueError: a folder has no records, or cannot be read.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"no folder at {folder}; give the results folder of a run")
        try:
            if not record_files(folder):
                raise ValueError(
                    f"{folder} has no records (records/*.jsonl); give the results folder of a run"
                )
        except OSError as error:
            raise ValueError(f"{folder} cannot be read: {error.strerror}") from error
    damaged: Counter[Path] = Counter()
    records = list(read_records(folders, damaged))
    if not records:
        raise ValueError(
            f"no line under {', '.join(str(folder / 'records') for folder in folders)} is a record; "
            "run the benchmark again"
        )
    for path, count in damaged.items():
        print(
            f"note: {path}: damaged lines left out: {count}; the command that wrote them answers again",
            file=sys.stderr,
        )
    return records


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` fill a file beside `path`, and put it in its place when it is whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
