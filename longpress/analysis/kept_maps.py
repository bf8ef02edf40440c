"""Which tokens each variant keeps of some contexts: files beside the records, for the report to shade.

One JSON line per context that was read, in `kept_maps/<writer>.jsonl`, written as records are. Counts and
character spans are numbers packed by zlib in base64, so that nothing is executed on reading; a 2k context
under 33 variants takes about 50 kB.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longpress.analysis.records import lines_of, packed_or_not

SCHEMA = 1
"""Version of the lines below; lines of another one are not read."""
LARGEST = 2**31
"""So many bytes one packed list may unfold to: a damaged file must not fill the memory."""


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
        keys_of: dict[str, list[str]] = defaultdict(list)
        for key, counts in self.counts.items():
            keys_of[_pack(counts)].append(key)
        row = {
            "schema": SCHEMA,
            "text": self.text,
            "spans": _pack(self.spans.ravel()),
            "entries": self.entries,
            "evidence": self.evidence,
            "questions": self.questions,
            "maps": [{"keys": keys, "counts": packed} for packed, keys in keys_of.items()],
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
            if row["schema"] != SCHEMA:
                raise ValueError(f"schema {row['schema']} is not known here")

            # the context: its tokens, and what was asked about it
            spans = _unpack(row["spans"]).reshape(-1, 2)
            questions = {str(sample): str(text) for sample, text in row["questions"].items()}
            evidence = {
                str(sample): [[int(start), int(end)] for start, end in held]
                for sample, held in row["evidence"].items()
            }

            # what was kept of it: records that share a map share its bytes
            counts: dict[str, NDArray[np.int32]] = {}
            for packed in row["maps"]:
                numbers = _unpack(packed["counts"])
                if len(numbers) != len(spans):
                    raise ValueError("a map is of another length than its context")
                counts |= dict.fromkeys(map(str, packed["keys"]), numbers)
            return cls(str(row["text"]), spans, int(row["entries"]), evidence, questions, counts)
        except (KeyError, TypeError, AttributeError, zlib.error, RecursionError) as error:
            raise ValueError(f"not a kept map: {error}") from None


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
    """Numbers as text."""
    return base64.b64encode(zlib.compress(numbers.astype("<i4").tobytes(), 6)).decode("ascii")


def _unpack(text: str) -> NDArray[np.int32]:
    """Inverse of `_pack`.

    Raises:
        ValueError: not whole, or larger than `LARGEST`.
    """
    unfolding = zlib.decompressobj()
    data = unfolding.decompress(base64.b64decode(text, validate=True), LARGEST)
    if not unfolding.eof or len(data) % 4:
        raise ValueError("not a whole list of numbers")
    return np.frombuffer(data, "<i4").astype(np.int32)
