"""The sample browser of `report.html`: which answers the page holds, and the contexts that it shades."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import numpy as np

from longpress.analysis.kept_maps import KeptMap
from longpress.analysis.records import Record
from longpress.analysis.tables.grid import MISSING
from longpress.analysis.tables.layout import TableLayout
from longpress.analysis.tables.row_keys import RowKey, TableKey, parameter_labels

ANSWERS = 6000
"""So many answers stand in the page; of more, those to the first samples of every task."""
CONTEXT_BYTES = 6 * 2**20
"""So many bytes of contexts and kept maps stand in the page."""
CHARACTERS = 2000
"""An answer or a reference is cut after so many characters, which is marked."""


class _SampleKey(NamedTuple):
    """A sample of the page: number of its table, task, and id."""

    table: int
    task: str
    id: str


class _Answer(NamedTuple):
    """What one row of a table answered: number of the row, and the record."""

    row: int
    record: Record


class _Contexts:
    """The kept maps that fit into the page, each once, by their place in it."""

    def __init__(self, maps: Iterable[KeptMap]) -> None:
        self.maps = list(maps)
        self.of_key = {key: number for number, kept in enumerate(self.maps) for key in kept.counts}
        self.held: list[dict[str, Any]] = []
        self.space = CONTEXT_BYTES
        self._places: dict[int, int | None] = {}

    @property
    def left_out(self) -> int:
        """How many were asked for and did not fit."""
        return sum(place is None for place in self._places.values())

    def place(self, key: str) -> int | None:
        """Where the page has the context of a record; None where there is no map of it, or no space."""
        number = self.of_key.get(key)
        if number is None:
            return None
        if number not in self._places:
            kept = self.maps[number]
            size = _size(kept)
            fits = size <= self.space
            self._places[number] = len(self.held) if fits else None
            if fits:
                self.space -= size
                self.held.append(_context(kept))
        return self._places[number]


def samples(
    tables: Sequence[TableLayout], records: Sequence[Record], kept: Iterable[KeptMap]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """Samples with their answers, the contexts they name by index, and a sentence on what was left out."""
    contexts = _Contexts(kept)
    answers_to = _grouped(tables, records)
    chosen = _chosen(answers_to, contexts)

    result, n_answers = [], 0
    for sample in sorted(chosen, key=lambda key: (key.table, tables[key.table].columns.index(key.task))):
        answers = sorted(answers_to[sample], key=lambda answer: (answer.row, answer.record.drawn))
        references = answers[0].record.references
        result.append(
            {
                "view": sample.table,
                "task": sample.task,
                "id": sample.id,
                "references": [_cut(one if isinstance(one, str) else _json(one)) for one in references],
                "answers": [_shown(answer, contexts.place(answer.record.key)) for answer in answers],
            }
        )
        n_answers += len(answers)

    if n_answers == len(records):
        note = f"All {len(records):,} answers are here."
    else:
        note = (
            f"{n_answers:,} of {len(records):,} answers are here: the first {len(chosen):,} of "
            f"{len(answers_to):,} samples, task by task."
        )
    if contexts.left_out:
        are = "s are" if contexts.left_out > 1 else " is"
        note += f" {contexts.left_out} context{are} left out for want of space."
    return result, contexts.held, note


def _grouped(tables: Sequence[TableLayout], records: Sequence[Record]) -> dict[_SampleKey, list[_Answer]]:
    """The answers to each sample, with the rows of the tables that they stand in."""
    numbers = {table.key: number for number, table in enumerate(tables)}
    rows = [{row.key: number for number, row in enumerate(table.rows)} for table in tables]
    keys = [(numbers[TableKey.of(record)], RowKey.of(record)) for record in records]

    # rows of tables are named by the compact labels of their parameters
    presses: list[set[tuple[str, str]]] = [set() for _ in tables]
    for table, key in keys:
        presses[table].add((key.press, key.press_parameters))
    labels = [parameter_labels(of_table) for of_table in presses]

    answers: dict[_SampleKey, list[_Answer]] = defaultdict(list)
    for record, (table, key) in zip(records, keys, strict=True):
        named = key._replace(press_parameters=labels[table][key.press, key.press_parameters])
        sample = _SampleKey(table, record.task, record.sample_id)
        answers[sample].append(_Answer(rows[table][named], record))
    return dict(answers)


def _chosen(answers_to: Mapping[_SampleKey, Sequence[_Answer]], contexts: _Contexts) -> list[_SampleKey]:
    """As many samples as the page holds: the first of every task, then the second of each, and so on."""
    mapped = {
        sample: any(answer.record.key in contexts.of_key for answer in answers)
        for sample, answers in answers_to.items()
    }

    # in each task those with kept maps first, then by number
    of_task: dict[tuple[int, str], list[_SampleKey]] = defaultdict(list)
    for sample in answers_to:
        of_task[sample.table, sample.task].append(sample)
    for held in of_task.values():
        held.sort(key=lambda sample: (not mapped[sample], len(sample.id), sample.id))

    chosen: list[_SampleKey] = []
    n_answers = 0
    for sample in chain.from_iterable(zip_longest(*of_task.values())):
        if sample is None:
            continue
        n_answers += len(answers_to[sample])
        if chosen and n_answers > ANSWERS:
            break
        chosen.append(sample)
    return chosen


def _shown(answer: _Answer, place: int | None) -> dict[str, Any]:
    """An answer as the page shows it; of a failure the last line of its traceback."""
    record, failed = answer.record, answer.record.error is not None
    score = "failed" if failed else MISSING if record.score is None else f"{100 * record.score:.1f}"
    text = (record.error or "").strip().rsplit("\n", 1)[-1] if failed else record.prediction
    notes = [record.drawn] if record.drawn else []
    if record.thought_end:
        notes.append(f"behind a thought of {record.thinking_tokens:,} tokens ({record.thought_end})")
    text = f"({', '.join(notes)}) {text}" if notes else text
    return {
        "line": answer.row,
        "score": score,
        "failed": failed,
        "answer": _cut(text),
        "context": place,
        "key": None if place is None else record.key,
    }


def _context(kept: KeptMap) -> dict[str, Any]:
    """What the page shades: text, token spans and counts, in JavaScript's units (UTF-16) and byte order."""
    lengths = [1 + (ord(character) > 0xFFFF) for character in kept.text]
    units = np.concatenate([[0], np.cumsum(lengths)]).astype("<u4")  # (characters + 1,)
    last, number = len(kept.text), _number_type(kept.entries)
    largest = np.iinfo(number).max
    return {
        "text": kept.text,
        "spans": _bytes(units[kept.spans.clip(0, last)].ravel()),
        "entries": kept.entries,
        "width": number.itemsize,
        "evidence": {
            sample: [[int(units[min(start, last)]), int(units[min(end, last)])] for start, end in spans]
            for sample, spans in kept.evidence.items()
        },
        "questions": kept.questions,
        "counts": {
            key: _bytes(counts.clip(0, largest).astype(number)) for key, counts in kept.counts.items()
        },
    }


def _size(kept: KeptMap) -> int:
    """About how many bytes `_context` takes in the page; numbers stand there in base64."""
    n_counts = sum(map(len, kept.counts.values()))
    return len(kept.text) + 6 * kept.spans.size + 4 * _number_type(kept.entries).itemsize * n_counts // 3


def _number_type(entries: int) -> np.dtype[Any]:
    """The narrowest numbers that count to `entries`."""
    return np.dtype("u1" if entries < 256 else "<u2")


def _bytes(numbers: Any) -> str:
    return base64.b64encode(numbers.tobytes()).decode("ascii")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    """The text, or its beginning where it is long, which is marked."""
    left_out = len(text) - CHARACTERS
    return text if left_out <= 0 else f"{text[:CHARACTERS]} […{left_out:,} more characters]"
