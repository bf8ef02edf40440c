"""What compression costs, from records alone: seconds beside the prefill, seconds per token, and bytes.

One prefill serves all presses of a run, and its time includes what they observed; `prefill_seconds` here is
the rest: the prefill that a model without presses would need. A press's own time is what it observes in the
prefill plus, per ratio, selecting and applying; extra passes over the context (KVzip and kin) are part of
selecting and shared by the ratios of a run. Rows are decoded in batches, so `seconds_per_token` is a row's
share of its batch. `peak_cache_bytes` is the cache of one answer at its largest: context, question and what
was written.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from longpress.analysis.records import BASELINE, Record, columns
from longpress.analysis.tables.grid import MISSING, Grid
from longpress.analysis.tables.row_keys import (
    ROW,
    TABLE,
    TableKey,
    is_ratio,
    parameter_labels,
    rows_in,
    tables_in,
    tells_mode,
)

SIZES = ("context_tokens", "cache_bytes", "full_cache_bytes", "peak_cache_bytes")
"""Columns that are means over samples."""
SPENT = ("prefill_seconds", "observe_seconds", "compress_seconds")
"""Seconds that records state of a context."""
SECONDS = (*SPENT, "overhead", "seconds_per_token")
"""Columns that are medians over samples: a machine that pauses now and then does not move them."""
COLUMNS = (
    *("model", "benchmark", "press", "press_parameters", "compression_ratio", "budget_tokens", "threshold"),
    *("query_aware", "prefill", "n", "context_tokens", *SECONDS),
    *("full_cache_bytes", "cache_bytes", "peak_cache_bytes"),
    *("benchmark_version", "dtype", "revision", "benchmark_parameters", "generation_parameters"),
)
"""Columns of the frame, per sample; `overhead` is (observe_seconds + compress_seconds) / prefill_seconds."""
ORDER = ("press_parameters", "query_aware", "prefill", "compression_ratio", "budget_tokens", "threshold")
"""Columns by which the rows of one press are sorted."""
NOTE = (
    "Per context; seconds are medians, bytes means. share: observing and selecting at one ratio, in percent "
    "of the prefill alone; ms/token: a row's share of its batch; after a budget: what is left of the cache, "
    "in brackets its peak while the answer was written."
)
"""What the columns of cost tables mean."""


def costs(records: Iterable[Record]) -> pd.DataFrame:
    """An entry per row of the tables, the full cache first, failed samples left out."""
    measured = (*SIZES, *SPENT, "decode_seconds", "new_tokens")
    names = [*TABLE, *ROW, "context_id", *measured]
    read = columns(*names)
    answers = pd.DataFrame([read(record) for record in records if record.error is None], columns=names)
    numbers = [*measured, "compression_ratio", "budget_tokens", "threshold"]
    answers[numbers] = answers[numbers].astype(float)

    # take what presses observed out of the prefill that they shared: the time of one pass, to the last digit
    one_pass = [*TABLE, "query_aware", "context_id", "prefill_seconds"]
    once = answers.drop_duplicates([*one_pass, "press", "press_parameters"])
    observed = once.groupby(one_pass)["observe_seconds"].sum().rename("observed").reset_index()
    answers = answers.merge(observed, on=one_pass)
    answers["prefill_seconds"] -= answers.pop("observed")

    # what each press adds, and what a token costs
    added = answers["observe_seconds"] + answers["compress_seconds"]
    answers["overhead"] = added / answers["prefill_seconds"].replace(0, np.nan)
    answers["seconds_per_token"] = answers["decode_seconds"] / answers["new_tokens"].replace(0, np.nan)

    # average over the samples of a row
    rows = answers.groupby([*TABLE, *ROW], dropna=False, sort=False)
    frame = rows[list(SIZES)].mean()
    frame[list(SECONDS)] = rows[list(SECONDS)].median()
    frame["n"] = rows.size()
    frame = frame.reset_index()

    # name the rows, and sort them
    presses = list(zip(frame["press"], frame["press_parameters"], strict=True))
    labels = parameter_labels(presses)
    frame["press_parameters"] = [labels[press] for press in presses]
    frame["budget_tokens"] = frame["budget_tokens"].astype("Int64")
    frame["is_press"] = frame["press"] != BASELINE
    frame = frame.sort_values([*TABLE, "is_press", "press", *ORDER])
    return frame.reindex(columns=list(COLUMNS)).reset_index(drop=True)


def cost_grids(frame: pd.DataFrame) -> dict[TableKey, Grid]:
    """Cost tables of a frame of `costs`, by the table they belong to."""
    return {key: _grid(part) for key, part in tables_in(frame)}


def _grid(part: pd.DataFrame) -> Grid:
    """A row per press of one table; bytes in MiB, those after a budget with their peak in brackets."""
    # per press its entries by budget
    of_press: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    tell_mode = tells_mode(part)
    for key, entries in rows_in(part).items():
        of_press[key.label(tell_mode)][key.budget] = entries[-1]
    known = {budget for of_budget in of_press.values() for budget in of_budget} - {"", MISSING}
    budgets = sorted(known, key=lambda budget: (not is_ratio(budget), budget))

    heads = ["press", "prefill s", "observe s", "select s", "share", "ms/token", "cache MiB"]
    rows = []
    for label, of_budget in of_press.items():
        mean = pd.DataFrame(list(of_budget.values()))[[*SECONDS, "full_cache_bytes"]].mean()
        share = MISSING if "" in of_budget else _number(100 * mean["overhead"], "{:.1f} %")
        texts = [
            *(_number(mean[name], "{:.2f}") for name in SPENT),
            *(share, _number(1000 * mean["seconds_per_token"], "{:.1f}")),
            *(_mebibytes(mean["full_cache_bytes"]), *(_after(of_budget.get(budget)) for budget in budgets)),
        ]
        rows.append([label, *texts])
    return Grid([*heads, *(f"after {budget}" for budget in budgets)], rows)


def _after(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return MISSING
    peak = _mebibytes(entry["peak_cache_bytes"])
    return _mebibytes(entry["cache_bytes"]) + ("" if peak == MISSING else f" ({peak})")


def _mebibytes(value: float) -> str:
    return _number(value / 2**20, "{:.1f}")


def _number(value: float, form: str) -> str:
    return MISSING if math.isnan(value) else form.format(value)
