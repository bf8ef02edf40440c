"""One JSON line per (sample, variant): the only thing a run produces; everything else is made from it.

A line is appended when its answer is known, each process to a file of its own (`records/<host>-<pid>-<random>.jsonl`), so any number
of processes may fill one folder. A torn last line is skipped, and its sample is done again. What is done is decided by
content: `Record.key` hashes everything that can change the answer or the score, so a resume is a set difference.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCHEMA = 1
"""Version of the fields below; a folder with a newer one is refused."""

BASELINE = "none"
"""Name of the press that keeps everything: the full-cache row of every table."""


@dataclass(frozen=True)
class Record:
    """What happened to one sample under one variant (press and budget)."""

    key: str
    """`record_key(...)` of everything that determines the answer and its score."""
    model: str
    benchmark: str
    benchmark_version: str
    """Version of prompts and scorer."""
    task: str
    sample_id: str
    context_id: str
    """Content hash of the context; samples that share it form one cluster for standard errors."""
    press: str
    """Catalogue name of the press; "none" is the full cache."""
    press_parameters: dict[str, Any]
    """All fields of the press except its budget, nested presses included."""
    compression_ratio: float | None
    """Requested fraction of entries removed, rounded to 6 decimals; None where the budget is given otherwise."""
    query_aware: bool
    """Whether the question was seen while compressing."""
    metric: str
    """Name of the headline metric."""
    score: float | None
    """Headline metric in [0, 1]; None if the sample failed (`error`)."""
    scores: dict[str, float]
    """All metrics of the benchmark, each in [0, 1]."""
    prediction: str
    references: list[Any]
    kept_fraction: float
    """Measured: kept entries / (layers x KV heads x context tokens), layers left whole counted as they are."""
    kept_entries: list[int | list[int]]
    """Measured kept entries per layer; a list over KV heads where heads differ."""
    cache_bytes: int
    """Bytes of the kept keys and values of the context."""
    full_cache_bytes: int
    """Bytes of all keys and values of the context."""
    context_tokens: int
    question_tokens: int
    new_tokens: int
    stop_reason: str
    """"eos", "stop_string", "length" or "error"."""
    prefill_seconds: float
    """Of the context's one prefill, shared by all variants."""
    observe_seconds: float
    """Share of the prefill that this press spent observing."""
    compress_seconds: float
    """Selecting and applying, this variant alone."""
    decode_seconds: float
    """Question pass and decoding: the batch's time divided by rows alive, step by step."""
    weight: float = 1.0
    """Weight of the sample in its task's mean."""
    truncated: bool = False
    """Whether the context was cut to fit."""
    dtype: str = "float32"
    revision: str = ""
    """Revision or content hash of the model."""
    prompt_hash: str = ""
    """Hash of context + question + answer prefix; paired differences are refused where it differs."""
    error: str | None = None
    """Traceback of a sample that failed."""
    evidence_kept: float | None = None
    """Share of the evidence tokens kept, averaged over layers and heads; None where the suite knows no evidence."""
    budget_tokens: int | None = None
    """Requested absolute budget, where the variant is defined by one."""
    data: dict[str, Any] = field(default_factory=dict)
    """Provenance of the sample: source, revision, haystack, seed."""
    seed: int = 0
    schema: int = SCHEMA

    def to_json(self) -> str:
        """One line without a line break; NaN and infinity are refused (a NaN is an error, never a score).

        Raises:
            ValueError: a number is not finite.
        """
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Inverse of `to_json`. Unknown fields are ignored, missing ones take their default.

        Raises:
            ValueError: not a record, or one written by a newer version.
        """
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("a record is a JSON object")
        if not isinstance(row.get("schema"), int) or row["schema"] > SCHEMA:
            raise ValueError(f"record schema {row.get('schema')!r} is not known here (up to {SCHEMA}); update longpress")
        try:
            record = cls(**{name.name: row[name.name] for name in fields(cls) if name.name in row})
        except TypeError as error:
            raise ValueError(f"not a record: {error}") from None
        if record.score is not None and not (isinstance(record.score, int | float) and 0 <= record.score <= 1 and math.isfinite(record.score)):
            raise ValueError(f"score {record.score!r} does not lie in [0, 1]")
        return record


def record_key(parts: Mapping[str, Any]) -> str:
    """Content hash (32 hex digits) of everything that determines an answer and its score; the order of `parts` does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str).encode()).hexdigest()[:32]


class RecordWriter:
    """Appends records to a file of its own under `folder/records`, one flushed line each."""

    def __init__(self, folder: Path) -> None:
        """Open nothing yet: a run with nothing to do leaves no empty file."""
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}.jsonl"
        self.path = folder / "records" / "".join(c if c.isalnum() or c in "-._" else "_" for c in name)
        self._file: Any = None

    def __enter__(self) -> Self:
        """Use as a context manager so that the file is closed."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def append(self, record: Record) -> None:
        """Write one line and hand it to the operating system: a killed process loses at most the line it was writing."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
        self._file.write(record.to_json() + "\n")
        self._file.flush()


def read_records(folders: Iterable[Path]) -> Iterator[Record]:
    """Every readable record under `folder/records`, once per key: a success is preferred to a failure, then the first written.

    Lines that do not parse (a torn last line, a corrupt one) are skipped: their samples count as not done.

    Raises:
        ValueError: a record comes from a newer version of longpress.
    """
    seen: dict[str, Record] = {}
    for folder in folders:
        for path in sorted((folder / "records").glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                record = _parse(line)
                if record is not None and (record.key not in seen or (seen[record.key].error and not record.error)):
                    seen[record.key] = record
    yield from seen.values()


def _parse(line: str) -> Record | None:
    if not line.strip():
        return None
    try:
        return Record.from_json(line)
    except ValueError as error:
        if "update longpress" in str(error):
            raise
        return None
