"""The sample browser of `report.html`: which answers the page holds, and the contexts that it shades."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from longpress.analysis.kept_maps import KeptMap
from longpress.analysis.records import BASELINE, Record, columns
from longpress.analysis.tables.layout import MISSING, View, line_budget, line_label
from longpress.analysis.tables.row_keys import LINE, differing
from longpress.analysis.tables.scores import TABLE, table_of

ANSWERS = 6000
"""Answers that the page holds; of more, the first samples of every task, those with kept maps before all."""
CONTEXT_BYTES = 6 * 2**20
"""Bytes of contexts and kept maps that the page holds."""
CHARACTERS = 2000
"""Of an answer or a reference; longer ones are cut, which is marked."""

_Sample = tuple[int, str, str]
"""Number of the view, task, sample id."""


class _Contexts:
    """The kept maps that fit into the page, each once, by their place in it."""

    def __init__(self, maps: Iterable[KeptMap]) -> None:
        self.maps = list(maps)
        self.of_key = {key: at for at, one in enumerate(self.maps) for key in one.counts}
        self.held: list[dict[str, Any]] = []
        self.space = CONTEXT_BYTES
        self._places: dict[int, int | None] = {}

    @property
    def left_out(self) -> int:
        return sum(place is None for place in self._places.values())

    def place(self, key: str) -> int | None:
        """Where the page has the context of a record; None where there is no map of it, or no space for it."""
        at = self.of_key.get(key)
        if at is None:
            return None
        if at not in self._places:
            one = self.maps[at]
            size = (
                len(one.text)
                + 6 * one.spans.size
                + 4 * _kind(one.entries).itemsize * sum(map(len, one.counts.values())) // 3
            )
            self._places[at] = len(self.held) if size <= self.space else None
            if size <= self.space:
                self.space -= size
                self.held.append(_context(one))
        return self._places[at]


def samples(
    frame: pd.DataFrame, shown: Sequence[View], records: Sequence[Record], kept: Iterable[KeptMap]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """Samples with their answers, the contexts they name by index, and a sentence on what was left out."""
    contexts = _Contexts(kept)
    keys = [(table_of(record), _line_key(record)) for record in records]
    places = _places(frame, keys)
    order = [{(line.press, line.budget): at for at, line in enumerate(view.lines)} for view in shown]
    groups: dict[_Sample, list[tuple[int, Record]]] = {}
    for record, (table, line) in zip(records, keys, strict=True):
        view, named = places[table]
        groups.setdefault((view, record.task, record.sample_id), []).append(
            (order[view][named[line]], record)
        )
    chosen = _chosen(groups, contexts)
    result, answers = [], 0
    for name in sorted(chosen, key=lambda name: (name[0], shown[name[0]].columns.index(name[1]))):
        held = sorted(groups[name], key=lambda pair: pair[0])
        references = [
            _cut(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False))
            for one in held[0][1].references
        ]
        rows = [{"line": line, **_answer(record, contexts.place(record.key))} for line, record in held]
        result.append(
            {"view": name[0], "task": name[1], "id": name[2], "references": references, "answers": rows}
        )
        answers += len(rows)
    if answers == len(records):
        note = f"All {len(records):,} answers are here."
    else:
        note = f"{answers:,} of {len(records):,} answers are here: the first {len(chosen):,} of {len(groups):,} samples, task by task."
    left = contexts.left_out
    return (
        result,
        contexts.held,
        note
        + (f" {left} context{'s are' if left > 1 else ' is'} left out for want of space." if left else ""),
    )


def _chosen(groups: Mapping[_Sample, Sequence[tuple[int, Record]]], contexts: _Contexts) -> list[_Sample]:
    """As many samples as the page holds: the first of every task, then the second of every task, and so on."""
    of_task: dict[tuple[int, str], list[_Sample]] = {}
    for name in groups:
        of_task.setdefault(name[:2], []).append(name)
    mapped = {name: any(one.key in contexts.of_key for _, one in held) for name, held in groups.items()}
    for names in of_task.values():
        names.sort(key=lambda name: (not mapped[name], len(name[2]), name[2]))
    rounds = [
        names[at]
        for at in range(max(map(len, of_task.values())))
        for names in of_task.values()
        if at < len(names)
    ]
    chosen: list[_Sample] = []
    answers = 0
    for name in rounds:
        answers += len(groups[name])
        if chosen and answers > ANSWERS:
            break
        chosen.append(name)
    return chosen


def _answer(record: Record, place: int | None) -> dict[str, Any]:
    failed = record.error is not None
    score = "failed" if failed else MISSING if record.score is None else f"{100 * record.score:.1f}"
    text = (record.error or "").strip().rsplit("\n", 1)[-1] if failed else record.prediction
    return {
        "score": score,
        "failed": failed,
        "answer": _cut(text),
        "context": place,
        "key": None if place is None else record.key,
    }


def _places(
    frame: pd.DataFrame, keys: Iterable[tuple[tuple[Any, ...], tuple[Any, ...]]]
) -> dict[tuple[Any, ...], tuple[int, dict[tuple[Any, ...], tuple[str, str]]]]:
    """Per table key its number among the views, and the label and budget of each of its lines by `_line_key`."""
    numbers = {names: at for at, (names, _) in enumerate(frame.groupby(list(TABLE), sort=False))}
    lines: dict[tuple[Any, ...], set[tuple[Any, ...]]] = {}
    for table, line in keys:
        lines.setdefault(table, set()).add(line)
    result = {}
    for table, held in lines.items():
        modes = {key[4] for key in held}
        labels: dict[tuple[str, str], str] = {}
        for press in {key[0] for key in held}:
            texts = sorted({key[1] for key in held if key[0] == press})
            labels |= {
                (press, text): label
                for text, label in zip(texts, differing([json.loads(text) for text in texts]), strict=True)
            }
        named = {
            key: (
                line_label(key[0], labels[key[:2]], key[4] and len(modes) > 1, key[6]),
                line_budget(key[0], key[2], key[3], key[5]),
            )
            for key in held
        }
        result[table] = (numbers[table], named)
    return result


def _line_key(record: Record) -> tuple[Any, ...]:
    press, parameters, ratio, *others = _LINE(record)
    return press, parameters, None if ratio is None or press == BASELINE else round(ratio, 6), *others


_LINE = columns(*LINE)


def _context(kept: KeptMap) -> dict[str, Any]:
    """What the page shades: text, token spans and counts, in JavaScript's units (UTF-16) and byte order."""
    units = np.concatenate(
        [[0], np.cumsum([1 + (ord(character) > 0xFFFF) for character in kept.text])]
    ).astype("<u4")
    last, kind = len(kept.text), _kind(kept.entries)
    counts = {
        key: _bytes(values.clip(0, np.iinfo(kind).max).astype(kind)) for key, values in kept.counts.items()
    }
    evidence = {
        name: [[int(units[min(start, last)]), int(units[min(end, last)])] for start, end in one]
        for name, one in kept.evidence.items()
    }
    spans = _bytes(units[kept.spans.clip(0, last)].ravel())
    return {
        "text": kept.text,
        "spans": spans,
        "entries": kept.entries,
        "width": kind.itemsize,
        "evidence": evidence,
        "questions": kept.questions,
        "counts": counts,
    }


def _kind(entries: int) -> np.dtype[Any]:
    """The narrowest numbers that count to `entries`."""
    return np.dtype("u1" if entries < 256 else "<u2")


def _bytes(numbers: Any) -> str:
    return base64.b64encode(numbers.tobytes()).decode("ascii")


def _cut(text: str) -> str:
    return (
        text
        if len(text) <= CHARACTERS
        else f"{text[:CHARACTERS]} […{len(text) - CHARACTERS:,} more characters]"
    )
