"""From records to the cells of tables: the samples of every row in every task, and what was measured.

Records that would mix two things in one cell are refused, or stand in tables of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from longpress.analysis.records import FIDELITY, Record, columns
from longpress.analysis.stats.draws import Questions
from longpress.analysis.stats.estimates import Paired, Samples
from longpress.analysis.tables.row_keys import ROW, TABLE, CellKey, Column, RowKey, TableKey, baseline_of

MEASURED = (
    *("evidence_kept", "peak_entries", "cache_bytes", "full_cache_bytes", "context_tokens", "new_tokens"),
    *("prefill_seconds", "observe_seconds", "compress_seconds", "decode_seconds", "cache_bits"),
)
"""Measured columns beside the kept fraction; bytes, tokens and seconds are per sample."""
MEANS = ("kept_fraction", *MEASURED, *FIDELITY)
"""Columns that are means over a cell's samples that did not fail."""


class TaskCell(NamedTuple):
    """What one row of a table did in one task.

    Attributes:
        samples: those that did not fail.
        measured: columns of the frame: the metric, numbers of samples, and `MEANS`.
        paired: differences to the full cache; None where there is nothing to compare with.
    """

    samples: Samples
    measured: dict[str, Any]
    paired: Paired | None = None


def answers_of(records: Iterable[Record], measure: str) -> pd.DataFrame:
    """An entry per record with what tables need of it; measured values of failed samples are NaN."""
    names = [
        *(*TABLE, *ROW, "task", "metric", "sample_id", "drawn", "context_id", "prompt_hash"),
        *("score", "weight", "truncated", *MEANS),
    ]
    read, entries = columns(*(measure if name == "score" else name for name in names)), []
    for record in records:
        failed = record.error is not None or getattr(record, measure) is None
        entries.append([*read(record), failed, not failed and not record.prediction.strip()])
    if not entries:
        raise ValueError("there are no records to make a table of")
    frame = pd.DataFrame(entries, columns=[*names, "failed", "empty"])
    numbers = ["score", "weight", "compression_ratio", "budget_tokens", "threshold", *MEANS]
    frame[numbers] = frame[numbers].astype(float)
    frame["compression_ratio"] = frame["compression_ratio"].round(6)
    if measure != "score":
        frame["metric"] = measure
    frame.loc[frame["failed"], ["score", *MEANS]] = math.nan
    return frame


def cells_of(
    table: TableKey, answers: pd.DataFrame, bounded: bool
) -> tuple[list[RowKey], dict[CellKey, TaskCell]]:
    """The rows of one table in their order, and their cells by task, paired with those of the full cache.

    Args:
        table: named in errors.
        answers: those of `answers_of` that belong to it.
        bounded: whether scores lie in [0, 1].

    Raises:
        ValueError: a sample stands in a cell twice, scores of a cell are of different metrics, or a sample
            was asked with different prompts in a row and the full cache.
    """
    # number the rows, and take the answers apart by row and task
    answers, keys = _with_rows(answers)
    cells: dict[CellKey, TaskCell] = {}
    for cell, part in _split(answers):
        label = f"{table.model}, {table.benchmark}/{cell.column.name}, press {keys[cell.row].press}"
        cells[cell] = TaskCell(_samples(part, label, bounded), _measured(part))

    # pair every row with the full cache
    baselines = [baseline_of(row, keys) for row in range(len(keys))]
    for cell, held in cells.items():
        baseline = cells.get(CellKey(baselines[cell.row], cell.column))
        if baselines[cell.row] != cell.row and baseline is not None:
            cells[cell] = held._replace(paired=held.samples.minus(baseline.samples))
    return keys, cells


def _with_rows(answers: pd.DataFrame) -> tuple[pd.DataFrame, list[RowKey]]:
    """The answers of one table with the number of their row, sorted by row, task and sample; and the keys."""
    fields = [answers[name].astype(object).where(answers[name].notna(), None) for name in ROW]
    of_answer = [RowKey(*values) for values in zip(*fields, strict=True)]
    keys = sorted(set(of_answer), key=lambda key: key.order)
    number = {key: row for row, key in enumerate(keys)}
    numbered = answers.assign(row=[number[key] for key in of_answer], failed=answers["failed"].astype(int))
    return numbered.sort_values(["row", "task", "sample_id", "drawn"]), keys


def _split(answers: pd.DataFrame) -> Iterator[tuple[CellKey, dict[str, Any]]]:
    """Cells as arrays by column; the answers are sorted by row, task and sample."""
    arrays = {name: answers[name].to_numpy() for name in answers.columns if name not in (*TABLE, *ROW)}
    row, task = arrays["row"], arrays["task"].astype(str)
    starts = [0, *(np.flatnonzero((row[1:] != row[:-1]) | (task[1:] != task[:-1])) + 1), len(row)]
    for begin, end in pairwise(starts):
        cell = CellKey(int(row[begin]), Column(str(task[begin])))
        yield cell, {name: array[begin:end] for name, array in arrays.items()}


def _samples(part: Mapping[str, Any], label: str, bounded: bool) -> Samples:
    """The samples of a cell that did not fail; of several answers to one, their mean.

    Raises:
        ValueError: an answer stands there twice, or scores are of different metrics.
    """
    good = part["failed"] == 0
    ids, metrics = part["sample_id"].astype(str), set(part["metric"][good])
    same = ids[1:] == ids[:-1]
    twice = (part["drawn"][1:] == part["drawn"][:-1]) | (part["prompt_hash"][1:] != part["prompt_hash"][:-1])
    repeated = np.flatnonzero(same & twice)
    if len(repeated):
        raise ValueError(
            f"{label}: sample '{ids[repeated[0]]}' was answered twice with different prompts or references; "
            "these records come from different benchmark options: keep one results folder for each"
        )
    if len(metrics) > 1:
        raise ValueError(
            f"{label}: scores of different metrics ({', '.join(sorted(metrics))}) cannot be averaged; "
            "rescore the records"
        )
    questions = Questions.of(ids[good])
    return Samples(
        label,
        ids=ids[good][questions.first],
        hashes=part["prompt_hash"][good].astype(str)[questions.first],
        values=questions.means(part["score"][good]),
        weights=part["weight"][good][questions.first],
        contexts=part["context_id"][good].astype(str)[questions.first],
        bounded=bounded,
    )


def _measured(part: Mapping[str, Any]) -> dict[str, Any]:
    """The measured columns of a cell, and its counts of samples."""
    good = part["failed"] == 0
    questions = Questions.of(part["sample_id"][good])
    means = {}
    for name in MEANS:
        known = part[name][good & ~np.isnan(part[name])]
        means[name] = float(known.mean()) if len(known) else math.nan
    return {
        "metric": str(part["metric"][good][0] if good.any() else part["metric"][0]),
        "n": len(questions.first),
        "answers_least": int(min(questions.answers, default=0)),
        "answers_most": int(max(questions.answers, default=0)),
        "n_failed": int((~good).sum()),
        "n_empty": int(part["empty"].sum()),
        "n_truncated": int(part["truncated"].sum()),
        "n_contexts": len(set(part["context_id"][good])),
        **means,
    }
