"""Is press X better than press Y, by how much, at what kept fraction, on which tasks: `python -m longpress.analysis.compare X Y DIR…`.

Paired differences on the same samples, per budget and task, from records alone; p-values adjusted by Holm
over all rows printed. Where fidelity was measured, also its differences, and how many samples would tell the
two apart by score and by each measure of fidelity. With `all` for Y, every other press on the suite's
average; p-values are then adjusted within each budget, as in `scores.csv`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longpress.analysis.records import BASELINE, FIDELITY, Record, read_records
from longpress.analysis.stats import clusters, intervals, significance
from longpress.analysis.stats.clusters import Clusters
from longpress.analysis.tables.scores import averages
from longpress.arguments import Parser, command, exit_code, points

KEY = ("model", "revision", "dtype", "benchmark", "version", "parameters", "query_aware", "prefill")
"""Columns that name a table."""
MARGIN = 1.0
"""Points that a press may lose and still count as no worse."""
ALL = "all"
"""In place of a press to compare with: every other one."""
NEEDED = tuple(f"needed_{measure}" for measure in ("score", *FIDELITY))
MOVED = tuple(f"{what}_{measure}" for measure in FIDELITY for what in ("delta", "p", "p_holm"))
SIGNIFICANT = 0.05
"""Level of the verdict, on p-values adjusted by Holm."""


def compare(records: Iterable[Record], press: str, other: str, margin: float = MARGIN) -> pd.DataFrame:
    """Paired differences `press - other`, 0 to 100, one row per model, benchmark, budget and task, and one for the suite's average.

    Returns:
        Columns model, benchmark, parameters, query_aware, prefill, budget, task, n, kept, kept_other, delta,
        ci_low, ci_high, p_value, p_holm, wins, ties, losses, verdict ("better", "worse" or "not
        distinguishable"), not_worse (the whole interval lies above -margin); the average, over the tasks that
        both answered, is called `average (<tasks>)` and its p-value adjusted among averages. `needed_score`
        and `needed_<measure>` are samples from which on the difference seen would be found at 5 % with 80 %
        power (`significance.samples_needed`), `delta_<measure>` (nats per token, or a share), `p_<measure>`
        and `p_holm_<measure>` the differences in fidelity; NaN where it is not known.

    Raises:
        ValueError: a press has no records, they share no sample at a common budget, a press has several
            parameter sets at one budget, or a sample was asked with different prompts.
    """
    cells: dict[tuple[Any, ...], dict[str, dict[str, Record]]] = defaultdict(lambda: {press: {}, other: {}})
    seen: set[str] = set()
    for record in records:
        seen.add(record.press)
        if record.press not in (press, other) or record.score is None:
            continue
        options = record.benchmark_text
        mode = record.query_aware, record.prefill
        table = (
            record.model,
            record.revision,
            record.dtype,
            record.benchmark,
            record.benchmark_version,
            options,
            *mode,
        )
        samples = cells[(*table, _budget(record), record.task)][record.press]
        known = samples.setdefault(record.sample_id, record)
        if known is not record and known.press_parameters != record.press_parameters:
            raise ValueError(
                f"press '{record.press}' has several sets of parameters at {_budget(record)}; give folders with one of them"
            )
    for name in (press, other):
        if name not in seen:
            raise ValueError(
                f"no records of press '{name}'; these folders hold: {', '.join(sorted(seen)) or 'none'}"
            )
    rows = [
        _row(key, pair[press], pair[other])
        for key, pair in sorted(cells.items())
        if pair[press].keys() & pair[other].keys()
    ]
    if not rows:
        raise ValueError(
            f"'{press}' and '{other}' share no sample at a common budget; run both at the same ratios on the same samples"
        )
    frame = _adjusted(pd.DataFrame(rows))
    joint = [
        row
        for _, part in frame.groupby([*KEY, "budget"], sort=False)
        if len(part) > 1
        for row in _average(part)
    ]
    if joint:
        frame = pd.concat([_adjusted(pd.DataFrame(joint)), frame], ignore_index=True).sort_values(
            [*KEY, "budget"], kind="stable", ignore_index=True
        )
    frame = frame.drop(columns=["samples", "changes"])
    frame = frame.reindex(columns=[*frame.columns.drop([*NEEDED, *MOVED], errors="ignore"), *NEEDED, *MOVED])
    frame["not_worse"] = significance.non_inferior(frame["ci_low"], margin)
    return _judged(frame)


def compare_all(records: Iterable[Record], press: str, margin: float = MARGIN) -> pd.DataFrame:
    """`press` against every other one with which it shares samples at a budget, the full cache left out.

    Returns:
        As `compare`, with a column `other`: one row per table, budget and press, of the suite's average, or
        of the only task in common; best of the others first. Adjusted by Holm within a table and budget.

    Raises:
        ValueError: as `compare`; or there is no other press.
    """
    held, parts = list(records), []
    for other in sorted({record.press for record in held} - {press, BASELINE}):
        pair = [record for record in held if record.press in (press, other)]
        shared = {
            (record.sample_id, _budget(record), record.press) for record in pair if record.score is not None
        }
        if any((sample, budget, press) in shared for sample, budget, name in shared if name == other):
            parts.append(
                compare(pair, press, other, margin).drop_duplicates([*KEY, "budget"]).assign(other=other)
            )
    if not parts:
        raise ValueError(
            f"no other press shares samples and a budget with '{press}'; these folders hold: {_presses(held)}"
        )
    frame = pd.concat(parts, ignore_index=True).sort_values(
        [*KEY, "budget", "delta", "other"], kind="stable", ignore_index=True
    )
    return _judged(
        pd.concat(
            [_adjusted(part) for _, part in frame.groupby([*KEY, "budget"], sort=False)], ignore_index=True
        )
    )


def _presses(records: Iterable[Record]) -> str:
    return ", ".join(sorted({record.press for record in records})) or "none"


def _adjusted(frame: pd.DataFrame) -> pd.DataFrame:
    """With p-values of the score, and of each measure that has them, adjusted for the rows of the frame."""
    frame = frame.assign(p_holm=significance.holm(frame["p_value"]))
    return frame.assign(
        **{
            f"p_holm_{name}": significance.holm(frame[f"p_{name}"])
            for name in FIDELITY
            if f"p_{name}" in frame
        }
    )


def _judged(frame: pd.DataFrame) -> pd.DataFrame:
    sure = frame["p_holm"] < SIGNIFICANT
    frame["verdict"] = "not distinguishable"
    frame.loc[sure, "verdict"] = frame.loc[sure, "delta"].map(
        lambda delta: "better" if delta > 0 else "worse"
    )
    return frame


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(
        prog="python -m longpress.analysis.compare", description="Compare two presses on the same samples."
    )
    parser.add_argument("press", metavar="X")
    parser.add_argument("other", metavar="Y", help=f"another press, or {ALL}: every other one")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="results folders")
    parser.add_argument(
        "--margin",
        type=points,
        default=MARGIN,
        help="points that X may lose and still count as no worse (%(default)s)",
    )
    given = parser.parse_args(arguments)
    records = list(read_records(given.folders))
    everyone = given.other == ALL and ALL not in {record.press for record in records}
    if everyone:
        frame = compare_all(records, given.press, given.margin)
    else:
        frame = compare(records, given.press, given.other, given.margin).assign(other=given.other)
    counts = frame["verdict"].value_counts()
    said = ", ".join(
        f"{verdict} in {counts.get(verdict, 0)}" for verdict in ("better", "worse", "not distinguishable")
    )
    whom = "every other press" if everyone else given.other
    print(f"{given.press} against {whom}, {len(frame)} comparisons: {said} (p < {SIGNIFICANT:g}, Holm).")
    frame["row"] = frame["other"] if everyone else frame["task"]
    wide = max(24, frame["row"].str.len().max())
    for names, part in frame.groupby(
        ["model", "benchmark", "parameters", "query_aware", "prefill"], sort=False
    ):
        model, benchmark, _, aware, prefill = names
        print(
            f"\n{benchmark} on {model}{' (query-aware)' if aware else ''}{'' if prefill == 'shared' else f' (prefill {prefill})'}"
        )
        for row in part.to_dict("records"):
            change = f"{row['delta']:+.1f} [{row['ci_low']:+.1f}, {row['ci_high']:+.1f}]"
            kept = f"kept {100 * row['kept']:.1f} % against {100 * row['kept_other']:.1f} %"
            said = row["verdict"] + (f", no worse than {given.margin:g} below" if row["not_worse"] else "")
            print(
                f"  {row['budget']:<14} {row['row']:<{wide}} {change:<24} p = {row['p_holm']:.3g}, n = {row['n']}, {kept}: {said}"
            )
        _print_measures(part, wide, everyone)


def _print_measures(part: pd.DataFrame, wide: int, everyone: bool) -> None:
    """Differences in fidelity and the samples needed, of one table; nothing where fidelity was not measured."""
    measures = [name for name in FIDELITY if part[f"needed_{name}"].notna().any()]
    if not measures:
        return
    both = ["score", *measures]

    def put(budget: str, name: str, texts: Iterable[object]) -> None:
        print(f"  {budget:<14} {name:<{wide}} {' '.join(f'{text:>20}' for text in texts)}")

    rows = part.to_dict("records")
    print(
        "\n  difference in fidelity (nats per token, lower is closer; agreement: share, higher is closer), and its p (Holm):"
    )
    put("", "", measures)
    for row in rows:
        put(row["budget"], row["row"], (_moved(row, name) for name in measures))
    print("\n  samples to tell the two apart (5 %, power 80 %) if the difference is as seen:")
    put("", "", both)
    for row in rows:
        put(row["budget"], row["row"], (_count(row[f"needed_{name}"]) for name in both))
    for budget, block in part.groupby("budget", sort=False) if everyone else ():
        known = block[block[[f"needed_{name}" for name in both]].notna().all(axis=1)]
        put(
            budget,
            f"median of {len(known)} pairs",
            (_count(known[f"needed_{name}"].median()) for name in both),
        )
        p_values = [known["p_holm" if name == "score" else f"p_holm_{name}"] for name in both]
        put(budget, "of them told apart here", ((p_value < SIGNIFICANT).sum() for p_value in p_values))


def _moved(row: Mapping[str, Any], measure: str) -> str:
    delta = row[f"delta_{measure}"]
    return "–" if math.isnan(delta) else f"{delta:+.3f} ({row[f'p_holm_{measure}']:.2g})"


def _count(needed: float) -> str:
    return "–" if math.isnan(needed) else "no difference" if math.isinf(needed) else f"{needed:,.0f}"


def _changes(left: Sequence[Record], right: Sequence[Record]) -> dict[str, Clusters]:
    """Paired differences of the score and of every measure that two samples or more have on both sides."""
    changes = {}
    for measure in ("score", *FIDELITY):
        pairs = [
            (getattr(one, measure), getattr(other, measure), one)
            for one, other in zip(left, right, strict=True)
        ]
        known = [
            (ours - theirs, one.weight, one.context_id)
            for ours, theirs, one in pairs
            if ours is not None and theirs is not None
        ]
        if len(known) > 1:
            change, weights, ids = zip(*known, strict=True)
            changes[measure] = clusters.cluster(change, weights, ids, bounded=False)
    return changes


def _needed(cells: Sequence[Mapping[str, Clusters]], shares: Sequence[float]) -> dict[str, float]:
    """Samples, over all tasks, to find the differences of a weighted mean over tasks, and those in fidelity; of measures that all have."""
    needed = {}
    for measure in set.intersection(*map(set, cells)):
        parts = [one[measure] for one in cells]
        mean = sum(share * part.mean for share, part in zip(shares, parts, strict=True))
        error = math.hypot(*(share * part.standard_error for share, part in zip(shares, parts, strict=True)))
        counts = sum(len(part.sums) for part in parts), sum(part.n for part in parts)
        needed[f"needed_{measure}"] = significance.samples_needed(mean, error, *counts)
        if measure in FIDELITY:
            p_value = float(significance.p_values([clusters.joint(parts, list(shares))])[0])
            needed |= {f"delta_{measure}": mean, f"p_{measure}": p_value}
    return needed


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
    clusters.pair(ids, next(hashes), ids, next(hashes))
    ours, theirs = (np.array([record.score for record in side], dtype=float) for side in (left, right))
    change = ours - theirs
    found = intervals.difference(
        ours, theirs, [record.weight for record in left], [record.context_id for record in left]
    )
    kept, kept_other = (sum(record.kept_fraction for record in side) / len(ids) for side in (left, right))
    summed = clusters.cluster(
        change, [record.weight for record in left], [record.context_id for record in left]
    )
    measured = {
        "delta": 100 * found.mean,
        "ci_low": 100 * found.low,
        "ci_high": 100 * found.high,
        "p_value": found.p_value,
    }
    counts = {"n": found.n, "wins": found.wins, "ties": found.ties, "losses": found.losses}
    changes = _changes(left, right)
    return {
        **dict(zip((*KEY, "budget", "task"), key, strict=True)),
        **counts,
        "kept": kept,
        "kept_other": kept_other,
        "samples": summed,
        "changes": changes,
        **measured,
        **_needed([changes], [1.0]),
    }


def _average(part: pd.DataFrame) -> list[dict[str, Any]]:
    """The suite's first average over the tasks of one table and budget, with its own error."""
    tasks, named = averages(str(part["benchmark"].iloc[0]), part["task"])
    share = next(iter(named.values()), {})
    part = part.set_index("task").loc[[task for task in tasks if task in share]]
    if len(part) < 2:
        return []
    shares, cells = np.array([share[task] for task in part.index]), list(part["samples"])
    drawn = [intervals.bootstrap([cell], at)[0] if cell.resampled else None for at, cell in enumerate(cells)]
    known = [weight * one for weight, one in zip(shares, drawn, strict=True) if one is not None]
    inside = [one is not None for one in drawn]
    total = np.sum(known, axis=0) if known else None
    mean, _, low, high = intervals.macro(
        cells, part["ci_low"] / 100, part["ci_high"] / 100, shares, total, inside, paired=True
    )
    p_value = float(significance.p_values([clusters.joint(cells, list(shares))])[0])
    kept, kept_other = (float(shares @ part[name].to_numpy()) for name in ("kept", "kept_other"))
    counts = {name: int(part[name].sum()) for name in ("n", "wins", "ties", "losses")}
    measured = {"delta": 100 * mean, "ci_low": 100 * low, "ci_high": 100 * high, "p_value": p_value}
    first = {name: part[name].iloc[0] for name in (*KEY, "budget")}
    measured |= _needed(list(part["changes"]), list(shares))
    return [
        {
            **first,
            "task": f"average ({len(part)} tasks)",
            **counts,
            "kept": kept,
            "kept_other": kept_other,
            **measured,
        }
    ]


if __name__ == "__main__":
    command(main)
