"""Say whether press X is better than press Y, by how much, and on which tasks.

Paired differences on the same samples, per budget and task, from records alone; p-values are adjusted by Holm
over all that is printed. Where fidelity was measured, also its differences, and how many samples would tell
the two apart by score and by each measure of fidelity. With `all` for Y, every other press on the suite's
average; p-values are then adjusted within each budget, as in `scores.csv`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from longpress.analysis.arguments import add_folders, add_margin
from longpress.analysis.records import FIDELITY
from longpress.analysis.result_io import read
from longpress.analysis.stats.significance import SIGNIFICANT
from longpress.analysis.tables.comparison import MARGIN, compare, compare_all
from longpress.analysis.tables.grid import MISSING
from longpress.analysis.tables.row_keys import parameters_text

ALL = "all"
"""Given in place of a press to compare with, this means every other one."""
VERDICTS = ("better", "worse", "not distinguishable")
"""What can be said of a difference."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("press", metavar="X", help="the press in question")
    parser.add_argument("other", metavar="Y", help=f"another press, or {ALL}: every other one")
    add_folders(parser)
    add_margin(parser, MARGIN, "points that X may lose and still count as no worse")


def run(arguments: argparse.Namespace) -> None:
    """Print the comparison.

    Raises:
        ValueError: a folder has no records, or the two cannot be compared.
    """
    records = read(arguments.folders)
    everyone = arguments.other == ALL and ALL not in {record.press for record in records}
    if everyone:
        frame = compare_all(records, arguments.press, arguments.margin)
    else:
        frame = compare(records, arguments.press, arguments.other, arguments.margin)
    frame["row"] = frame["other"] if everyone else frame["task"]

    # the verdicts in one sentence
    counts = frame["verdict"].value_counts()
    said = ", ".join(f"{verdict} in {counts.get(verdict, 0)}" for verdict in VERDICTS)
    whom = "every other press" if everyone else arguments.other
    print(f"{arguments.press} against {whom}, {len(frame)} comparisons: {said} (p < {SIGNIFICANT:g}, Holm).")

    # one by one, table by table
    width = max(24, frame["row"].str.len().max())
    named = ["model", "benchmark", "benchmark_parameters", "generation_parameters", "query_aware", "prefill"]
    for (model, benchmark, _, generation, query_aware, prefill), part in frame.groupby(named, sort=False):
        mode = " (query-aware)" if query_aware else ""
        mode += "" if prefill == "shared" else f" (prefill {prefill})"
        mode += "" if generation == "{}" else f" ({', '.join(parameters_text(generation))})"
        print(f"\n{benchmark} on {model}{mode}")
        for entry in part.to_dict("records"):
            print(_sentence(entry, width, arguments.margin))
        _print_fidelity(part, width, everyone)


def _sentence(entry: Mapping[str, Any], width: int, margin: float) -> str:
    """One comparison: the difference, its p-value, samples, kept fractions and verdict."""
    change = f"{entry['delta']:+.1f} [{entry['ci_low']:+.1f}, {entry['ci_high']:+.1f}]"
    kept = f"kept {100 * entry['kept']:.1f} % against {100 * entry['kept_other']:.1f} %"
    verdict = entry["verdict"] + (f", no worse than {margin:g} below" if entry["not_worse"] else "")
    return (
        f"  {entry['budget']:<14} {entry['row']:<{width}} {change:<24} "
        f"p = {entry['p_holm']:.3g}, n = {entry['n']}, {kept}: {verdict}"
    )


def _print_fidelity(part: pd.DataFrame, width: int, everyone: bool) -> None:
    """Differences in fidelity and the samples needed, of one table; nothing where it was not measured."""
    measures = [name for name in FIDELITY if part[f"needed_{name}"].notna().any()]
    if not measures:
        return
    both = ["score", *measures]

    def put(budget: str, name: str, texts: Iterable[object]) -> None:
        print(f"  {budget:<14} {name:<{width}} {' '.join(f'{text:>20}' for text in texts)}")

    entries = part.to_dict("records")
    print(
        "\n  difference in fidelity (nats per token, lower is closer; agreement: share, higher is closer), "
        "and its p (Holm):"
    )
    put("", "", measures)
    for entry in entries:
        put(entry["budget"], entry["row"], (_moved(entry, name) for name in measures))
    print("\n  samples to tell the two apart (5 %, power 80 %) if the difference is as seen:")
    put("", "", both)
    for entry in entries:
        put(entry["budget"], entry["row"], (_count(entry[f"needed_{name}"]) for name in both))

    # of many presses also the median, and how many are told apart already
    for budget, block in part.groupby("budget", sort=False) if everyone else ():
        known = block[block[[f"needed_{name}" for name in both]].notna().all(axis=1)]
        medians = (_count(known[f"needed_{name}"].median()) for name in both)
        put(budget, f"median of {len(known)} pairs", medians)
        p_values = [known["p_holm" if name == "score" else f"p_holm_{name}"] for name in both]
        put(budget, "of them told apart here", ((p_value < SIGNIFICANT).sum() for p_value in p_values))


def _moved(entry: Mapping[str, Any], measure: str) -> str:
    delta = entry[f"delta_{measure}"]
    return MISSING if math.isnan(delta) else f"{delta:+.3f} ({entry[f'p_holm_{measure}']:.2g})"


def _count(needed: float) -> str:
    if math.isnan(needed):
        return MISSING
    return "no difference" if math.isinf(needed) else f"{needed:,.0f}"
