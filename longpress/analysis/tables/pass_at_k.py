"""pass@k: the chance that at least one of k answers to a question is right, from the answers that were drawn.

From records alone, where several answers to a question were drawn and each is right or wrong. Every question
counts once, whatever the number of its answers, and errors are clustered as in the table of scores. pass@1 is
the mean score.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from longpress.analysis.records import Record
from longpress.analysis.stats.draws import pass_at
from longpress.analysis.tables.averages import headline
from longpress.analysis.tables.grid import MISSING, Grid
from longpress.analysis.tables.row_keys import RowKey, TableKey, rows_in, tables_in, tells_mode
from longpress.analysis.tables.scores import scores

RENAMED = {"score": "pass_at_k"}
"""Columns of `scores` that are called otherwise here."""
COLUMNS = (
    *("model", "benchmark", "benchmark_version", "task", "aggregate", "press", "press_parameters"),
    *("compression_ratio", "budget_tokens", "threshold", "prefill", "kept_fraction", "query_aware"),
    *("k", "n", "n_contexts", "pass_at_k", "se", "ci_low", "ci_high"),
    *("delta", "delta_se", "delta_ci_low", "delta_ci_high", "p_value", "p_holm", "n_common"),
    *("dtype", "revision", "benchmark_parameters", "generation_parameters"),
)
"""Columns of the frame, as in `scores`.

`n` is the number of questions with at least k answers; `p_holm` is adjusted within a k.
"""
NOTE = (
    "pass@k: chance that at least one of k answers to a question is right (unbiased estimator of Chen et al. "
    "2021), mean over questions ± standard error clustered by question; in brackets the questions that have "
    "so many answers, where they are not all."
)
"""What stands below tables of pass@k."""


def pass_at_k(records: Sequence[Record], seed: int = 0) -> pd.DataFrame:
    """An entry per row, task or average, and k (powers of two up to the most answers), with `COLUMNS`.

    Empty where no question has several answers, and without rows whose scores are not all 0 or 1.
    """
    parts = []
    questions = _questions(records)
    most = max(map(len, questions), default=1)
    for k in (2**power for power in range(most.bit_length())) if most > 1 else ():
        part = scores([_at(k, answers) for answers in questions if len(answers) >= k], seed)
        parts.append(part.rename(columns=RENAMED).assign(k=k)[list(COLUMNS)])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def pass_at_k_grids(frame: pd.DataFrame) -> dict[TableKey, Grid]:
    """A table per table of scores: rows by k, of the first average or the only task."""
    return {key: _grid(part) for key, part in tables_in(frame)} if len(frame) else {}


def _questions(records: Sequence[Record]) -> list[list[Record]]:
    """Per row of a table and question, its scored answers; rows with a score between 0 and 1 are left out."""
    rows: dict[tuple[TableKey, RowKey], dict[tuple[str, str], list[Record]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in records:
        if record.score is not None:
            of_row = rows[TableKey.of(record), RowKey.of(record)]
            of_row[record.task, record.sample_id].append(record)
    kept = [
        of_row
        for of_row in rows.values()
        if all(record.score in (0, 1) for answers in of_row.values() for record in answers)
    ]
    return [answers for of_row in kept for answers in of_row.values()]


def _at(k: int, answers: Sequence[Record]) -> Record:
    """One record for a question, whose score is its pass@k."""
    right = sum(record.score == 1 for record in answers)
    kept = sum(record.kept_fraction for record in answers) / len(answers)
    return replace(
        answers[0],
        score=pass_at(len(answers), right, k),
        kept_fraction=kept,
        sampling_seed=None,
        draw=None,
    )


def _grid(part: pd.DataFrame) -> Grid:
    """A row per row of one table, a column per k."""
    tell_mode, sizes = tells_mode(part), sorted({int(k) for k in part["k"]})
    shown = part[part["task"] == headline(part)]
    rows = []
    for key, entries in rows_in(shown).items():
        most = max(int(entry["n"]) for entry in entries)
        cells = {int(entry["k"]): _cell(entry, most) for entry in entries}
        row = [key.label(tell_mode), key.budget or MISSING, str(most)]
        rows.append([*row, *(cells.get(k, MISSING) for k in sizes)])
    return Grid(["press", "budget", "questions", *(f"pass@{k}" for k in sizes)], rows)


def _cell(entry: Mapping[str, Any], most: int) -> str:
    if math.isnan(entry["pass_at_k"]):
        return MISSING
    text = f"{entry['pass_at_k']:.1f}"
    text += f" ± {entry['se']:.1f}" if entry["se"] > 0 else ""
    return text if int(entry["n"]) == most else f"{text} ({int(entry['n'])})"
