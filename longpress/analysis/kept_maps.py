"""Which tokens each variant keeps, for the first samples of a task: a side file that the report shades contexts with.

One JSON line per context that was read, in `kept_maps/<writer>.jsonl` beside the records, written like them.
Counts and character spans are numbers packed by zlib in base64, so that nothing is executed on reading; a 2k
context under 33 variants takes about 50 kB.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longpress.analysis.records import lines_of, packed_or_not

if TYPE_CHECKING:
    from benchmarks.base import Sample
    from longpress.pipeline.prefill import CompressedContext

LARGEST = 2**31
"""Bytes that one packed list may unfold to: a damaged file must not fill the memory."""


@dataclass(frozen=True)
class KeptMap:
    """One context as the model read it.

    Attributes:
        text: the context, in query-aware runs with the question.
        spans: (T, 2) characters [start, end) of every token in `text`; empty at the chat template's tokens.
        entries: KV entries of one token in the full cache: compressed layers x KV heads.
        evidence: per sample id, the character spans in which the answer stands.
        questions: per sample id, what was asked.
        counts: per record key, (T,) how many layers and heads keep each token.
    """

    text: str
    spans: NDArray[np.int32]
    entries: int
    evidence: Mapping[str, Sequence[Sequence[int]]]
    questions: Mapping[str, str]
    counts: Mapping[str, NDArray[np.int32]]

    def to_json(self) -> str:
        """One line; keys that share a map share its bytes."""
        maps: dict[str, list[str]] = {}
        for key, counts in self.counts.items():
            maps.setdefault(_pack(counts), []).append(key)
        row = {
            "schema": 1,
            "text": self.text,
            "spans": _pack(self.spans.ravel()),
            "entries": self.entries,
            "evidence": self.evidence,
            "questions": self.questions,
            "maps": [{"keys": keys, "counts": packed} for packed, keys in maps.items()],
        }
        return json.dumps(row)

    @classmethod
    def from_json(cls, line: str) -> KeptMap:
        """Inverse of `to_json`.

        Raises:
            ValueError: not such a line.
        """
        try:
            row: dict[str, Any] = json.loads(line)
            spans = _unpack(row["spans"]).reshape(-1, 2)
            counts = {
                str(key): values
                for one in row["maps"]
                for values in [_unpack(one["counts"])]
                for key in one["keys"]
            }
            if row["schema"] != 1 or any(len(one) != len(spans) for one in counts.values()):
                raise ValueError("another schema, or a map of another length than its context")
            evidence = {
                str(name): [[int(start), int(end)] for start, end in one]
                for name, one in row["evidence"].items()
            }
            questions = {str(name): str(text) for name, text in row["questions"].items()}
            return cls(str(row["text"]), spans, int(row["entries"]), evidence, questions, counts)
        except (KeyError, TypeError, AttributeError, zlib.error, RecursionError) as error:
            raise ValueError(f"not a kept map: {error}") from None


def kept_map(
    text: str,
    spans: Sequence[tuple[int, int]],
    samples: Sequence[Sample],
    kept: Mapping[str, CompressedContext],
) -> KeptMap:
    """The map of a context: characters of its tokens, the samples that ask about it, and what the variant of each record kept."""
    any_kept = next(iter(kept.values()))
    heads = any_kept.entries()
    entries = sum(len(heads[index]) for index in any_kept.observed)
    full = np.full(len(spans), entries, dtype=np.int32)
    counts = {key: full if one.kept_by is None else one.kept_by.numpy() for key, one in kept.items()}
    evidence = {sample.id: [list(span) for span in sample.evidence] for sample in samples}
    questions = {sample.id: sample.question for sample in samples}
    return KeptMap(
        text, np.array(spans, dtype=np.int32).clip(0).reshape(-1, 2), entries, evidence, questions, counts
    )


def append(path: Path, kept: KeptMap) -> None:
    """Write one line to `path`, making its folder.

    Raises:
        ValueError: the disk is full, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(kept.to_json() + "\n")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); free space, or run with kept_maps=0"
        ) from error


def read_kept_maps(folders: Iterable[Path]) -> Iterator[KeptMap]:
    """Every readable line under `folder/kept_maps`, packed by gzip or not; torn ones are skipped.

    Raises:
        ValueError: a file cannot be read.
    """
    for folder in folders:
        for path in packed_or_not(folder / "kept_maps"):
            for line in lines_of(path):
                try:
                    yield KeptMap.from_json(line.decode("utf-8"))
                except ValueError:
                    continue


def _pack(numbers: NDArray[np.int32]) -> str:
    return base64.b64encode(zlib.compress(numbers.astype("<i4").tobytes(), 6)).decode("ascii")


def _unpack(text: str) -> NDArray[np.int32]:
    unfolding = zlib.decompressobj()
    data = unfolding.decompress(base64.b64decode(text, validate=True), LARGEST)
    if not unfolding.eof or len(data) % 4:
        raise ValueError("not a whole list of numbers")
    return np.frombuffer(data, "<i4").astype(np.int32)
