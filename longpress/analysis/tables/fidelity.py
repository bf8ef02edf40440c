"""How far presses move the model, from records alone: means, error bars and paired differences of the measures in `FIDELITY`.

Negative log-likelihoods and divergences are in nats per token, lower is closer to the full cache; agreement
is a share, higher is closer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from longpress.analysis.records import FIDELITY, Record
from longpress.analysis.result_io import write_whole
from longpress.analysis.tables.costs import Grid
from longpress.analysis.tables.layout import MISSING, line_budget, line_label
from longpress.analysis.tables.markdown import grid
from longpress.analysis.tables.row_keys import LINE
from longpress.analysis.tables.scores import POINTS, TABLE, averages, scores

RENAMED = {"score": "value", "metric": "measure"}
COLUMNS = (
    *(
        "model",
        "benchmark",
        "benchmark_version",
        "task",
        "aggregate",
        "press",
        "press_parameters",
        "compression_ratio",
        "budget_tokens",
    ),
    *(
        "threshold",
        "prefill",
        "kept_fraction",
        "query_aware",
        "measure",
        "n",
        "n_contexts",
        "value",
        "se",
        "ci_low",
        "ci_high",
        "delta",
        "delta_se",
    ),
    *(
        "delta_ci_low",
        "delta_ci_high",
        "p_value",
        "p_holm",
        "n_common",
        "dtype",
        "revision",
        "benchmark_parameters",
    ),
)
"""Columns of the frame, as in `scores`; `delta` is the paired difference to the full cache, `p_holm` adjusted within a measure."""


def fidelity(records: Sequence[Record], seed: int = 0) -> pd.DataFrame:
    """A row per line, task or average, and measure, with `COLUMNS`; empty where nothing was measured."""
    parts = []
    for measure in FIDELITY:
        known = [record for record in records if getattr(record, measure) is not None]
        if known:
            part = scores(known, seed, measure)
            part[list(POINTS)] /= 100  # a share or nats, no percent
            parts.append(part.rename(columns=RENAMED)[list(COLUMNS)])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def write(folder: Path, frame: pd.DataFrame) -> None:
    """Write `fidelity.csv`, `fidelity.parquet` and `fidelity.md`; nothing from an empty frame."""
    if len(frame):
        write_whole(
            folder / "fidelity.csv",
            lambda path: frame.to_csv(path, index=False, float_format="%.10g", lineterminator="\n"),
        )
        write_whole(folder / "fidelity.parquet", lambda path: frame.to_parquet(path, index=False))
        write_whole(folder / "fidelity.md", lambda path: path.write_text(markdown(frame), encoding="utf-8"))


def markdown(frame: pd.DataFrame) -> str:
    """`fidelity.md`: per table and line the averages over tasks ± standard error, the full cache first."""
    parts = []
    for names, part in frame.groupby(list(TABLE), sort=False):
        keys = dict(zip(TABLE, names, strict=True))
        heading = f"## Fidelity, {keys['benchmark']} on {keys['model']} ({keys['dtype']}), {shown_task(part)}"
        parts.append(f"{heading}\n\n{grid(*_grid(part))}")
    return "\n\n".join([*parts, NOTE]) + "\n"


def fidelity_grids(frame: pd.DataFrame) -> dict[tuple[Any, ...], Grid]:
    """Heads and rows of `fidelity.md`, by the `TABLE` they belong to."""
    return {names: _grid(part) for names, part in frame.groupby(list(TABLE), sort=False)}


def _grid(part: pd.DataFrame) -> Grid:
    """A row per line of one table, the averages over its tasks (or its only task) as text."""
    chosen, modes = part[part["task"] == shown_task(part)], part["query_aware"].nunique()
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in chosen.to_dict("records"):
        lines.setdefault(repr([row[name] for name in LINE]), []).append(row)
    rows = []
    for of_line in lines.values():
        press, parameters, ratio, budget, aware, threshold, prefill = (of_line[0][name] for name in LINE)
        label = line_label(press, parameters, aware and modes > 1, prefill)
        start = [label, line_budget(press, ratio, budget, threshold) or MISSING]
        cells = {row["measure"]: _cell(row) for row in of_line}
        kept = f"{100 * of_line[0]['kept_fraction']:.1f} %"
        rows.append(
            [*start, kept, str(of_line[0]["n"]), *(cells.get(measure, MISSING) for measure in FIDELITY)]
        )
    return ["press", "budget", "kept", "n", *FIDELITY], rows


NOTE = (
    "Along the reference answer and along what the full cache wrote: nll, negative log-likelihood in nats per token; kl, divergence of the "
    "next-token distribution from the full cache's in nats per token; agreement, share of tokens at which both find the same token most "
    "likely. ± clustered standard error. Presses that act while an answer is written have none."
)


def shown_task(part: pd.DataFrame) -> str:
    """The first average of a table, or its only task."""
    tasks, shares = averages(str(part["benchmark"].iloc[0]), part.loc[~part["aggregate"], "task"].unique())
    return next(iter(shares), tasks[0])


def _cell(row: Mapping[str, Any]) -> str:
    if math.isnan(row["value"]):
        return MISSING
    return f"{row['value']:.3f} ± {row['se']:.3f}" if row["se"] > 0 else f"{row['value']:.3f}"
