"""Records of runs that never were, one by one and by the line of a table, and the folders that hold them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longpress.analysis.kept_maps import KeptMap
from longpress.analysis.records import Record, RecordWriter, record_key

PRESSES = [("snapkv", 0.5), ("knorm", 0.5), ("knorm", 0.25)]
"""Presses and ratios of a small sweep."""
ATTACK = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<!-- \u2028 \ud800 &amp; 😀"
)
"""Foreign text that would run in a page which does not escape it."""


def record(
    task: str, at: int, score: float | None, press: str = "none", ratio: float | None = 0.0, **changes: Any
) -> Record:
    """Of sample `at` of a task of an unknown suite, its key made from its content; score None: failed."""
    values: dict[str, Any] = {
        "model": "tiny",
        "benchmark": "unlisted",
        "benchmark_version": "1",
        "task": task,
        "sample_id": f"{task}/{at}",
        "context_id": f"{task}-{at}",
        "press": press,
        "press_parameters": {},
        "compression_ratio": ratio,
        "query_aware": False,
        "metric": "f1",
        "score": score,
        "scores": {} if score is None else {"f1": score},
        "prediction": "text",
        "references": ["a"],
        "kept_fraction": 1 - (ratio or 0),
        "kept_entries": [1],
        "cache_bytes": 50,
        "full_cache_bytes": 100,
        "context_tokens": 10,
        "question_tokens": 2,
        "new_tokens": 4,
        "stop_reason": "eos",
        "prefill_seconds": 1.0,
        "observe_seconds": 0.0,
        "compress_seconds": 0.0,
        "decode_seconds": 0.5,
        "prompt_hash": f"{task}-{at}",
        "error": None if score is not None else "Traceback",
    }
    values |= changes
    content = {name: values[name] for name in values if name not in ("score", "scores", "error")}
    return Record(**{"key": record_key(content), **values})


def ruler_record(key: str = "k", **changes: Any) -> Record:
    """Of RULER, under a key that the test chooses."""
    values: dict[str, Any] = {
        "benchmark": "ruler",
        "task": "vt",
        "at": 0,
        "score": 0.5,
        "metric": "string_match_all",
        "scores": {"string_match_all": 0.5},
        "context_id": "c",
        "prompt_hash": "",
        "kept_fraction": 1.0,
        "kept_entries": [10, [5, 6]],
        "error": None,
    }
    return record(key=key, **values | changes)


def line(
    task: str, values: Sequence[float | None], press: str = "none", ratio: float | None = 0.0, **changes: Any
) -> list[Record]:
    """Records of a task's samples, one a score."""
    return [record(task, at, value, press, ratio, **changes) for at, value in enumerate(values)]


def sweep(
    tasks: Sequence[str], presses: Sequence[tuple[str, float]], n: int = 20, **changes: Any
) -> list[Record]:
    """Random scores of every task under the full cache and every press; higher ratios score less."""
    generator = np.random.default_rng(0)
    rows = []
    for task in tasks:
        for press, ratio in (("none", 0.0), *presses):
            rows += line(task, list(generator.random(n).round(2) * (1 - ratio / 2)), press, ratio, **changes)
    return rows


def kept_map(keys: list[str], text: str = "a needle 😀 in hay", sample: str = "a/0") -> KeptMap:
    """What was kept of a short text, word by word, with a needle in it."""
    words = [match.span() for match in re.finditer(r"\S+\s*", text)]
    counts = {key: np.arange(len(words), dtype=np.int32) for key in keys}
    return KeptMap(text, np.array(words, dtype=np.int32), 4, {sample: [[2, 8]]}, {sample: "where?"}, counts)


def write_records(folder: Path, records: Sequence[Record]) -> Path:
    """Fill a results folder as a run does; the folder."""
    with RecordWriter(folder) as writer:
        for record in records:
            writer.append(record)
    return folder


def write_lines(folder: Path, *lines: str | bytes, name: str = "a") -> None:
    """A record file of lines that may be no records; bytes are written as they are, without a line's end."""
    (folder / "records").mkdir(parents=True, exist_ok=True)
    data = b"".join(line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines)
    (folder / "records" / f"{name}.jsonl").write_bytes(data)
