"""How far presses move the model: means, intervals and paired differences of the measures in `FIDELITY`.

From records alone. Negative log-likelihoods and divergences are in nats per token, lower is closer to the
full cache; agreement is a share, higher is closer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from longpress.analysis.records import FIDELITY, Record
from longpress.analysis.tables.averages import headline
from longpress.analysis.tables.grid import MISSING, Grid, markdown_table
from longpress.analysis.tables.row_keys import TableKey, rows_in, tables_in, tells_mode
from longpress.analysis.tables.scores import POINTS, scores

RENAMED = {"score": "value", "metric": "measure"}
"""Columns of `scores` that are called otherwise here."""
COLUMNS = (
    *("model", "benchmark", "benchmark_version", "task", "aggregate", "press", "press_parameters"),
    *("compression_ratio", "budget_tokens", "threshold", "prefill", "kept_fraction", "query_aware"),
    *("measure", "n", "n_contexts", "value", "se", "ci_low", "ci_high"),
    *("delta", "delta_se", "delta_ci_low", "delta_ci_high", "p_value", "p_holm", "n_common"),
    *("dtype", "revision", "benchmark_parameters", "generation_parameters"),
)
"""Columns of the frame, as in `scores`.

`delta` is the paired difference to the full cache, `p_holm` adjusted within a measure.
"""
NOTE = (
    "Along the reference answer and along what the full cache wrote: nll, negative log-likelihood in nats "
    "per token; kl, divergence of the next-token distribution from the full cache's in nats per token; "
    "agreement, share of tokens at which both find the same token most likely. ± clustered standard error. "
    "Presses that act while an answer is written have none."
)
"""What stands below tables of fidelity."""


def fidelity(records: Sequence[Record], seed: int = 0) -> pd.DataFrame:
    """An entry per row, task or average, and measure, with `COLUMNS`; empty where nothing was measured."""
    parts = []
    for measure in FIDELITY:
        known = [record for record in records if getattr(record, measure) is not None]
        if known:
            part = scores(known, seed, measure)
            part[list(POINTS)] /= 100  # a share or nats, no percent
            parts.append(part.rename(columns=RENAMED)[list(COLUMNS)])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def markdown(frame: pd.DataFrame) -> str:
    """`fidelity.md`: per table and row the averages over tasks ± standard error, the full cache first."""
    parts = []
    for key, part in tables_in(frame):
        heading = f"## Fidelity, {key.benchmark} on {key.model} ({key.dtype}), {headline(part)}"
        parts.append(f"{heading}\n\n{markdown_table(_grid(part))}")
    return "\n\n".join([*parts, NOTE]) + "\n"


def fidelity_grids(frame: pd.DataFrame) -> dict[TableKey, Grid]:
    """The tables of `fidelity.md`."""
    return {key: _grid(part) for key, part in tables_in(frame)}


def _grid(part: pd.DataFrame) -> Grid:
    """A row per row of one table, the averages over its tasks (or its only task) as text."""
    tell_mode, rows = tells_mode(part), []
    for key, entries in rows_in(part[part["task"] == headline(part)]).items():
        cells = {entry["measure"]: _cell(entry) for entry in entries}
        kept, n = f"{100 * entries[0]['kept_fraction']:.1f} %", str(entries[0]["n"])
        measured = [cells.get(measure, MISSING) for measure in FIDELITY]
        rows.append([key.label(tell_mode), key.budget or MISSING, kept, n, *measured])
    return Grid(["press", "budget", "kept", "n", *FIDELITY], rows)


def _cell(entry: Mapping[str, Any]) -> str:
    if math.isnan(entry["value"]):
        return MISSING
    return f"{entry['value']:.3f} ± {entry['se']:.3f}" if entry["se"] > 0 else f"{entry['value']:.3f}"
