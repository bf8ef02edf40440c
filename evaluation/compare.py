"""Is press X better than press Y, by how much, at what kept fraction, on which tasks: `python -m evaluation.compare X Y DIR…`.

Paired differences on the same samples, per budget and task, from records alone; p-values adjusted by Holm over all rows printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation import errorbars, significance
from evaluation.records import Record, read_records

SIGNIFICANT = 0.05
"""Level of the verdict, on p-values adjusted by Holm."""


def compare(records: Iterable[Record], press: str, other: str) -> pd.DataFrame:
    """Paired differences `press - other`, 0 to 100, one row per model, benchmark, budget and task.

    Returns:
        Columns model, benchmark, parameters, query_aware, budget, task, n, kept, kept_other, delta, ci_low, ci_high, p_value, p_holm,
        wins, ties, losses, verdict ("better", "worse" or "not distinguishable").

    Raises:
        ValueError: a press has no records, they share no sample at a common budget, a press has several parameter sets at one
            budget, or a sample was asked with different prompts.
    """
    cells: dict[tuple[Any, ...], dict[str, dict[str, Record]]] = defaultdict(lambda: {press: {}, other: {}})
    seen: set[str] = set()
    for record in records:
        seen.add(record.press)
        if record.press not in (press, other) or record.score is None:
            continue
        options = json.dumps(record.benchmark_parameters, sort_keys=True)
        table = (record.model, record.revision, record.dtype, record.benchmark, record.benchmark_version, options, record.query_aware)
        samples = cells[(*table, _budget(record), record.task)][record.press]
        known = samples.setdefault(record.sample_id, record)
        if known is not record and known.press_parameters != record.press_parameters:
            raise ValueError(f"press '{record.press}' has several sets of parameters at {_budget(record)}; give folders with one of them")
    for name in (press, other):
        if name not in seen:
            raise ValueError(f"no records of press '{name}'; these folders hold: {', '.join(sorted(seen)) or 'none'}")
    rows = [_row(key, pair[press], pair[other]) for key, pair in sorted(cells.items()) if pair[press].keys() & pair[other].keys()]
    if not rows:
        raise ValueError(f"'{press}' and '{other}' share no sample at a common budget; run both at the same ratios on the same samples")
    frame = pd.DataFrame(rows)
    frame["p_holm"] = significance.holm(frame["p_value"])
    sure = frame["p_holm"] < SIGNIFICANT
    frame["verdict"] = "not distinguishable"
    frame.loc[sure, "verdict"] = frame.loc[sure, "delta"].map(lambda delta: "better" if delta > 0 else "worse")
    return frame


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: exit code 0, or 2 with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.compare", description="Compare two presses on the same samples.")
    parser.add_argument("press", metavar="X")
    parser.add_argument("other", metavar="Y")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="results folders")
    given = parser.parse_args(arguments)
    try:
        frame = compare(read_records(given.folders), given.press, given.other)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = frame["verdict"].value_counts()
    said = ", ".join(f"{verdict} in {counts.get(verdict, 0)}" for verdict in ("better", "worse", "not distinguishable"))
    print(f"{given.press} against {given.other}, {len(frame)} comparisons: {said} (p < {SIGNIFICANT:g}, Holm).")
    for names, part in frame.groupby(["model", "benchmark", "parameters", "query_aware"], sort=False):
        model, benchmark, _, aware = names
        print(f"\n{benchmark} on {model}{' (query-aware)' if aware else ''}")
        for row in part.to_dict("records"):
            change = f"{row['delta']:+.1f} [{row['ci_low']:+.1f}, {row['ci_high']:+.1f}]"
            kept = f"kept {100 * row['kept']:.1f} % against {100 * row['kept_other']:.1f} %"
            print(f"  {row['budget']:<14} {row['task']:<24} {change:<24} p = {row['p_holm']:.3g}, n = {row['n']}, {kept}: {row['verdict']}")
    return 0


def _budget(record: Record) -> str:
    if record.threshold is not None:
        return f"score ≥ {record.threshold:g}"
    if record.budget_tokens is not None:
        return f"{record.budget_tokens} tokens"
    return f"ratio {record.compression_ratio or 0:g}"


def _row(key: tuple[Any, ...], samples: dict[str, Record], others: dict[str, Record]) -> dict[str, Any]:
    ids = sorted(samples.keys() & others.keys())
    left, right = [samples[name] for name in ids], [others[name] for name in ids]
    hashes = ([record.prompt_hash for record in side] for side in (left, right))
    errorbars.pair(ids, next(hashes), ids, next(hashes))
    scores = (np.array([record.score for record in side], dtype=float) for side in (left, right))
    found = errorbars.difference(next(scores), next(scores), [record.weight for record in left], [record.context_id for record in left])
    kept, kept_other = (sum(record.kept_fraction for record in side) / len(ids) for side in (left, right))
    names = ("model", "revision", "dtype", "benchmark", "version", "parameters", "query_aware", "budget", "task")
    measured = {"delta": 100 * found.mean, "ci_low": 100 * found.low, "ci_high": 100 * found.high, "p_value": found.p_value}
    counts = {"n": found.n, "wins": found.wins, "ties": found.ties, "losses": found.losses}
    return {**dict(zip(names, key, strict=True)), **counts, "kept": kept, "kept_other": kept_other, **measured}


if __name__ == "__main__":
    sys.exit(main())
