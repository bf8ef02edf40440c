"""One JSON line per (sample, variant): the only thing a run produces; everything else is made from it.

A line is appended when its answer is known, each process to a file of its own
(`records/<host>-<pid>-<random>.jsonl`), so any number of processes may fill one folder. A torn last line is
skipped, and its sample is done again. What is done is decided by content: `Record.key` hashes everything that
can change the answer or the score, so a resume is a set difference.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import secrets
import socket
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from longpress.analysis.record_checks import SURROGATE, Check, checks_of, with_writable

SCHEMA = 1
"""Version of the fields below; a record with a newer one is refused."""

BASELINE = "none"
"""Name of the press that keeps everything: the full-cache row of every table."""

LARGEST = 2**63
"""Every number that a record may hold is smaller than this."""

FIDELITY = {
    **dict.fromkeys(("reference_nll", "reference_kl", "answer_nll", "answer_kl"), False),
    **dict.fromkeys(("reference_agreement", "answer_agreement"), True),
}
"""Fields that say how far a press moves the model, and whether they lie in [0, 1].

Those that do are agreement (higher is closer); the others are nats (lower is closer).
"""

NAMES = (
    *("model", "revision", "dtype", "benchmark", "benchmark_version", "task", "sample_id", "press", "metric"),
    *("press_parameters", "benchmark_parameters", "generation_parameters"),
)
"""Fields whose text stands in tables."""

_BREAKS = re.compile("[\x85\u2028\u2029\ud800-\udfff]")
"""Characters that some readers take for a line break, and lone surrogates, which UTF-8 cannot hold."""


class NewerRecordError(ValueError):
    """A record was written by a newer version of longpress: skipping it would drop results silently."""


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
    """Name of the press in tables: its catalogue name or choice, "none" for the full cache.

    With `@4bit` where the cache is quantised.
    """
    press_parameters: dict[str, Any]
    """All fields of the press except its budget, nested presses included."""
    compression_ratio: float | None
    """Requested fraction of entries removed, rounded to 6 decimals; None of a budget of another kind."""
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
    """Measured: `cache_bytes` / `full_cache_bytes`.

    That is the share of entries kept, or of their bytes, where channels leave too; layers left whole count
    as they are.
    """
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
    outgrew_rope: bool = False
    """Whether the answer took the text beyond the original window of a model with LongRoPE.

    It was written on with the rotary frequencies of its prompt, where `generate` may read everything again.
    """
    dtype: str = "float32"
    revision: str = ""
    """Revision or content hash of the model."""
    prompt_hash: str = ""
    """Hash of context + question + answer prefix; paired differences are refused where it differs."""
    error: str | None = None
    """Traceback of a sample that failed."""
    evidence_kept: float | None = None
    """Share of the evidence tokens kept, over layers and heads; None where the suite knows no evidence."""
    budget_tokens: int | None = None
    """Requested absolute budget, where the variant is defined by one."""
    threshold: float | None = None
    """Requested lowest score, where the variant is defined by one."""
    cache_bits: int | None = None
    """Bits of a stored number of the context's cache, where it is quantised."""
    state_bytes: int | None = None
    """Bytes of states of fixed size (linear attention, state spaces), which no press changes.

    None in records of older versions, as the next.
    """
    kept_fraction_with_state: float | None = None
    """Measured share of all that the model remembers of the context.

    (`cache_bytes` + `state_bytes`) / (`full_cache_bytes` + `state_bytes`); `kept_fraction` is of keys and
    values alone, comparable with papers.
    """
    final_cache_bytes: int | None = None
    """Bytes of the whole cache (context, question and answer) after the last token read.

    None in records of older versions, as the next two.
    """
    peak_cache_bytes: int | None = None
    """The most of them at any step of decoding, after what the press dropped in that step."""
    mean_cache_bytes: float | None = None
    """Their mean over the steps."""
    joint_tokens: int = 0
    """Last tokens of the context that were read with the question, uncompressed.

    That is where one token of the whole prompt stands across the joint of the two.
    """
    prefill: str = "shared"
    """How the context was read.

    "shared": one exact prefill for all variants; "chunked/N": compressed after every N tokens, each variant
    by itself.
    """
    peak_entries: int | None = None
    """Measured: most entries (over all layers and heads) in the cache while the context was read."""
    reference_nll: float | None = None
    """Negative log-likelihood of the reference answer, nats per token.

    None, as in the next six, where fidelity was not measured.
    """
    reference_kl: float | None = None
    """Divergence KL(full cache || press) of next-token distributions along that answer, nats per token."""
    reference_agreement: float | None = None
    """Share of its tokens at which press and full cache find the same token most likely."""
    answer_nll: float | None = None
    """The same three along what the full cache wrote."""
    answer_kl: float | None = None
    answer_agreement: float | None = None
    fidelity_seconds: float | None = None
    """Share of the time that reading these answers took."""
    data: dict[str, Any] = field(default_factory=dict)
    """Provenance of the sample: source, revision, haystack, seed."""
    seed: int = 0
    benchmark_parameters: dict[str, Any] = field(default_factory=dict)
    """Options of the benchmark that shape its prompts (length, seed, source), without `tasks`.

    Records of different ones stand in different tables.
    """
    generation_parameters: dict[str, Any] = field(default_factory=dict)
    """How answers were generated, where not greedily and as in the suite: sampling, thinking, system prompt.

    Records of different ones stand in different tables.
    """
    thought: str = ""
    """What the model thought before it answered; it is not part of the prediction."""
    thinking_tokens: int = 0
    """Tokens of the thought, which `new_tokens` includes."""
    thought_end: str = ""
    """"closed" by the model, "limit": closed at max_thinking_tokens, "open": the answer ended within it.

    Empty where there was no thought.
    """
    sampling_seed: int | None = None
    """Of the numbers with which the answer was drawn; None of a greedy one."""
    draw: int | None = None
    """Which of the answers to this question, drawn with this seed, it is; from 0."""
    schema: int = SCHEMA

    @cached_property
    def press_text(self) -> str:
        """`press_parameters` as JSON with sorted keys."""
        return json.dumps(self.press_parameters, sort_keys=True) if self.press_parameters else "{}"

    @cached_property
    def benchmark_text(self) -> str:
        """`benchmark_parameters` as JSON with sorted keys."""
        return json.dumps(self.benchmark_parameters, sort_keys=True) if self.benchmark_parameters else "{}"

    @cached_property
    def generation_text(self) -> str:
        """`generation_parameters` as JSON with sorted keys."""
        return json.dumps(self.generation_parameters, sort_keys=True) if self.generation_parameters else "{}"

    @property
    def drawn(self) -> str:
        """Which of several answers to a question this is, as text; empty of a greedy one."""
        return "" if self.draw is None else f"seed {self.sampling_seed}, draw {self.draw}"

    def to_json(self) -> str:
        """One line without a line break; NaN and infinity are refused (a NaN is an error, never a score).

        Raises:
            ValueError: a number is not finite.
        """
        line = json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)
        return _BREAKS.sub(lambda match: f"\\u{ord(match.group()):04x}", line)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Inverse of `to_json`. Unknown fields are ignored, missing ones take their default.

        Raises:
            NewerRecordError: a record written by a newer version.
            ValueError: not a record: no JSON, a field missing, of another type, or out of range.
        """
        try:
            row = json.loads(line)
        except RecursionError:
            raise ValueError("not a record: nested too deeply") from None
        if not isinstance(row, dict) or type(row.get("schema")) is not int:
            raise ValueError("a record is a JSON object with a schema")
        if row["schema"] > SCHEMA:
            raise NewerRecordError(
                f"record schema {row['schema']} is not known here (up to {SCHEMA}); update longpress"
            )
        if SURROGATE.search(line):
            row = with_writable(row, NAMES)
        checks = _checks()
        try:
            record = cls(**{name: row[name] for name in checks if name in row})
        except TypeError as error:
            raise ValueError(f"not a record: {error}") from None
        for (name, value), check in zip(record.__dict__.items(), checks.values(), strict=True):
            if not check.holds(value):
                raise ValueError(f"not a record: {name}={value!r}")
        return record


def columns(*names: str) -> Callable[[Record], tuple[Any, ...]]:
    """Reads these fields of a record in order, as tables hold them: options are JSON with sorted keys."""
    texts = {
        "press_parameters": "press_text",
        "benchmark_parameters": "benchmark_text",
        "generation_parameters": "generation_text",
    }
    return attrgetter(*(texts.get(name, name) for name in names))


@cache
def _checks() -> dict[str, Check]:
    return checks_of(Record, LARGEST)


def record_key(parts: Mapping[str, Any]) -> str:
    """Content hash (32 hex digits) of everything that determines an answer and its score.

    The order of `parts` does not matter.
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()  # unbuffered: nothing is left that could fail now

    def append(self, record: Record) -> None:
        """Write one line, and hand it to the operating system.

        A killed process loses at most the line it was writing.

        Raises:
            ValueError: the disk is full or the folder cannot be written; lines written before stay.
        """
        line = (record.to_json() + "\n").encode()
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab", buffering=0)
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise ValueError(
                f"{self.path} cannot be written ({error.strerror}); what was written before is kept: "
                "free space, then run the command again"
            ) from error


def record_files(folder: Path) -> list[Path]:
    """Files of records of a results folder, sorted: as runs write them, or packed for keeping."""
    return packed_or_not(folder / "records")


def packed_or_not(folder: Path) -> list[Path]:
    """Files of JSON lines in a folder, sorted: `*.jsonl`, and `*.jsonl.gz` packed by gzip."""
    return sorted(path for pattern in ("*.jsonl", "*.jsonl.gz") for path in folder.glob(pattern))


def read_records(folders: Iterable[Path], damaged: Counter[Path] | None = None) -> Iterator[Record]:
    """Every readable record of results folders, once per key.

    A success is preferred to a failure, then the first written.

    Lines that do not parse (a torn last line, a corrupt one) are skipped: their samples count as not done.

    Args:
        folders: of results.
        damaged: counts the lines skipped, per file.

    Raises:
        NewerRecordError: a record comes from a newer version of longpress; the message names its file.
        ValueError: a file cannot be read.
    """
    records: dict[str, Record] = {}
    skipped: Counter[Path] = Counter() if damaged is None else damaged
    for folder in folders:
        for path in record_files(folder):
            for line in lines_of(path):
                record = _parse(line, path)
                if record is None:
                    skipped[path] += 1
                elif record.key not in records or (records[record.key].error and not record.error):
                    records[record.key] = record
    yield from records.values()


def lines_of(path: Path) -> Iterator[bytes]:
    """Lines of a file, unpacked where it is packed.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _parse(line: bytes, path: Path) -> Record | None:
    try:
        return Record.from_json(line.decode("utf-8"))
    except NewerRecordError as error:
        raise NewerRecordError(f"{path}: {error}") from None
    except ValueError:
        return None
