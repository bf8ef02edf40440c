"""What is measured: rows of RULER and the grid of presses and ratios, the same for both engines. Needs neither torch nor kvpress."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from longpress.speed.subject import Subject

PRESSES = ("knorm", "keydiff", "streaming_llm", "snapkv", "tova", "expected_attention", "pyramidkv", "adakv")
"""The eight presses of the grid; adakv is on top of snapkv."""

RATIOS = (0.25, 0.5, 0.75, 0.9)

WIDE = (*PRESSES, "lagkv", "leverage"), (0.1, *RATIOS)
"""Presses and ratios of the wide grid: ten at five."""

TASKS = ("niah_single_3", "niah_multikey_2", "vt", "cwe", "qa_1")
"""Short and long answers, sentences and word lists."""


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


@dataclass(frozen=True)
class Point:
    """A variant by name: "none" at 0, or a press at a ratio."""

    press: str
    ratio: float


def grid(presses: Sequence[str] = PRESSES, ratios: Sequence[float] = RATIOS) -> list[Point]:
    """The full cache, then every press at every ratio."""
    return [Point("none", 0.0), *(Point(press, ratio) for press in presses for ratio in ratios)]


def peer_grid(many: int, presses: Sequence[str] = PRESSES, ratios: Sequence[float] = RATIOS) -> list[Point]:
    """The full cache, then so many of the presses once, spread over the grid, the ratios taking turns: what kvpress is measured on."""
    chosen = [presses[at * len(presses) // many] for at in range(many)]
    return [Point("none", 0.0), *(Point(press, ratios[at % len(ratios)]) for at, press in enumerate(chosen))]


def save(path: Path, subject: Subject, rows: Sequence[Row], points: Sequence[Point]) -> None:
    """Write model, rows and variants for an engine to read."""
    written = {
        "subject": asdict(subject),
        "rows": [asdict(row) for row in rows],
        "points": [asdict(point) for point in points],
    }
    path.write_text(json.dumps(written), encoding="utf-8")


def load(path: Path) -> tuple[Subject, list[Row], list[Point]]:
    """Read what `save` wrote."""
    written = json.loads(path.read_text(encoding="utf-8"))
    return (
        Subject(**written["subject"]),
        [Row(**row) for row in written["rows"]],
        [Point(**point) for point in written["points"]],
    )
