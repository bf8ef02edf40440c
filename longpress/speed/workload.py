"""What is measured: rows of RULER, and a grid of presses and ratios, the same for both engines.

Needs neither torch nor kvpress.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from longpress.speed.measured_model import MeasuredModel

PRESSES = ("knorm", "keydiff", "streaming_llm", "snapkv", "tova", "expected_attention", "pyramidkv", "adakv")
"""The eight presses of the grid; adakv is on top of snapkv."""

RATIOS = (0.25, 0.5, 0.75, 0.9)
"""The compression ratios of the grid."""

WIDE_PRESSES = (*PRESSES, "lagkv", "leverage")
"""The ten presses of the wide grid."""

WIDE_RATIOS = (0.1, *RATIOS)
"""The five ratios of the wide grid."""

TASKS = ("niah_single_3", "niah_multikey_2", "vt", "cwe", "qa_1")
"""Of RULER: short and long answers, sentences and lists of words."""


@dataclass(frozen=True)
class Row:
    """One sample, as both engines are given it.

    Attributes:
        task: of RULER.
        context: text that is compressed.
        question: text after it.
        answer_prefix: text that the answer continues.
        max_new_tokens: bound on the answer.
    """

    task: str
    context: str
    question: str
    answer_prefix: str
    max_new_tokens: int


class GridVariant(NamedTuple):
    """A variant by name: "none" at 0, or a press at a ratio."""

    press: str
    ratio: float

    @property
    def label(self) -> str:
        """For people, e.g. "snapkv@0.5"."""
        return f"{self.press}@{self.ratio}"


class Workload(NamedTuple):
    """What one engine measures.

    Attributes:
        model: that answers.
        rows: samples.
        variants: of each row.
    """

    model: MeasuredModel
    rows: Sequence[Row]
    variants: Sequence[GridVariant]

    def save(self, path: Path) -> None:
        """Write it for an engine to read."""
        content = {
            "model": asdict(self.model),
            "rows": [asdict(row) for row in self.rows],
            "variants": [variant._asdict() for variant in self.variants],
        }
        path.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Workload:
        """What `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            MeasuredModel(**content["model"]),
            [Row(**row) for row in content["rows"]],
            [GridVariant(**variant) for variant in content["variants"]],
        )


def grid(presses: Sequence[str] = PRESSES, ratios: Sequence[float] = RATIOS) -> list[GridVariant]:
    """The full cache, then every press at every ratio."""
    return [
        GridVariant("none", 0.0),
        *(GridVariant(press, ratio) for press in presses for ratio in ratios),
    ]


def peer_grid(
    count: int, presses: Sequence[str] = PRESSES, ratios: Sequence[float] = RATIOS
) -> list[GridVariant]:
    """What kvpress is measured on: the full cache, then `count` of the presses once.

    They are spread over the grid, and the ratios take turns.
    """
    chosen = [presses[at * len(presses) // count] for at in range(count)]
    return [
        GridVariant("none", 0.0),
        *(GridVariant(press, ratios[at % len(ratios)]) for at, press in enumerate(chosen)),
    ]
