"""`report.html`: one page that opens offline, from records alone: `python -m longpress.analysis.report.page DIR…` needs no model.

Numbers are the strings of the tables (`markdown.score_cell`, `markdown.difference_cell`). Everything that
came from a model or a data set travels as JSON inside the page, "<" escaped, and is shown as text; the page's
own script and style are named by hash in its content security policy, so nothing else can run.
`report_samples` bounds answers and contexts; the page says so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from longpress.analysis.kept_maps import read_kept_maps
from longpress.analysis.records import Record
from longpress.analysis.report.samples import samples
from longpress.analysis.result_io import read, write_whole
from longpress.analysis.stats.multiple_testing import exceeds
from longpress.analysis.tables import costs, fidelity
from longpress.analysis.tables.costs import Grid, cost_grids
from longpress.analysis.tables.fidelity import fidelity_grids
from longpress.analysis.tables.layout import MISSING, SIGNIFICANT, Line, View, views
from longpress.analysis.tables.markdown import difference_cell, score_cell
from longpress.analysis.tables.scores import scores
from longpress.arguments import Parser, command, exit_code

HALF = 0.5
"""The compression ratio that the overview recommends a press for; the nearest one that was run, if it was not."""


def page(
    frame: pd.DataFrame,
    records: Sequence[Record],
    folders: Sequence[Path],
    spent: pd.DataFrame,
    moved: pd.DataFrame,
) -> str:
    """The whole page.

    Args:
        frame: of `scores`.
        records: those it was made of.
        folders: searched for kept maps.
        spent: of `costs`.
        moved: of `fidelity`; empty where it was not measured.
    """
    shown = views(frame)
    held, contexts, note = samples(frame, shown, records, read_kept_maps(folders))
    more = [
        ("fidelity to the full cache", fidelity_grids(moved), fidelity.NOTE),
        ("cost", cost_grids(spent), costs.NOTE),
    ]
    data = {
        "views": [_view(view, more) for view in shown],
        "overview": [_overview(view) for view in shown],
        "samples": held,
        "note": note,
        "counts": {"records": len(records), "failed": sum(record.error is not None for record in records)},
    }
    blocks = [_block("data", data), *(_block(f"context-{at}", one) for at, one in enumerate(contexts))]
    folder = files("longpress.analysis.report")
    template, style, script = (
        folder.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    parts = {"POLICY": policy, "STYLE": style, "SCRIPT": script, "DATA": "\n".join(blocks)}
    for name, text in parts.items():  # data last, so that nothing in it is taken for a mark
        template = template.replace(f"@@{name}@@", text)
    return template


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(
        prog="python -m longpress.analysis.report.page",
        description="Write report.html from records; needs no model.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="results folders; the first receives the page"
    )
    folders = parser.parse_args(arguments).folders
    records = read(folders)
    text = page(scores(records), records, folders, costs.costs(records), fidelity.fidelity(records))
    target = folders[0] / "report.html"
    try:
        write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"the report cannot be written to {folders[0]}: {error.strerror}") from error
    print(target)


def _view(view: View, more: Sequence[tuple[str, Mapping[tuple[Any, ...], Grid], str]]) -> dict[str, Any]:
    lines = []
    for line in view.lines:
        cells = {column: _cell(line.cells[column]) for column in view.columns if column in line.cells}
        kept = float(line.kept.split()[0]) if line.kept != MISSING else None
        start = {
            "press": line.press,
            "budget": line.budget,
            "kept": line.kept,
            "keptValue": kept,
            "n": line.samples,
        }
        lines.append({**start, "baseline": line.is_baseline, "cells": cells})
    metrics = {row["task"]: row["metric"] for line in view.lines for row in line.cells.values()}
    grids = [
        {"name": name, "heads": of[view.names][0], "rows": of[view.names][1], "note": note}
        for name, of, note in more
        if view.names in of
    ]
    return {
        "title": view.title,
        "columns": view.columns,
        "averages": view.averages,
        "metrics": metrics,
        "lines": lines,
        "grids": grids,
    }


def _cell(row: Mapping[str, Any]) -> dict[str, Any]:
    """Texts of a cell as tables have them, its interval, and the numbers for drawing and sorting."""
    known = not math.isnan(row["score"])
    interval = f"{row['ci_low']:.1f} to {row['ci_high']:.1f}" if known else MISSING
    numbers = {name: _number(row[column]) for name, column in _DRAWN.items()}
    return {
        "text": score_cell(row),
        "difference": difference_cell(row),
        "interval": interval,
        "n": int(row["n"]),
        **numbers,
    }


_DRAWN = {"score": "score", "low": "ci_low", "high": "ci_high", "delta": "delta", "kept": "kept_fraction"}


def _overview(view: View) -> dict[str, Any]:
    """Per budget and column: the lines from the best on, those that failed, and what the lead over the second is worth.

    `start` is the budget that the page opens with: the compression ratio nearest to one half.
    """
    blocks: dict[tuple[str, bool], list[int]] = {}
    for at, line in enumerate(view.lines):
        if not line.is_baseline:
            blocks.setdefault((line.budget, _first(line)["query_aware"]), []).append(at)
    mixed = len({aware for _, aware in blocks}) > 1
    budgets, distances = [], {}
    for at, ((budget, aware), block) in enumerate(blocks.items()):
        ratio = _number(_first(view.lines[block[0]])["compression_ratio"])
        if ratio is not None:
            distances[at] = abs(ratio - HALF), ratio
        label = budget + (" (query-aware)" if mixed and aware else "")
        budgets.append({"label": label, "ratio": ratio, "columns": _columns(view, block)})
    full = next((at for at, line in enumerate(view.lines) if line.is_baseline), None)
    return {
        "budgets": budgets,
        "start": min(distances, key=lambda at: distances[at], default=0),
        "full": full,
    }


def _first(line: Line) -> Mapping[str, Any]:
    return next(iter(line.cells.values()))


def _columns(view: View, block: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Per column the lines of a budget by number, best first: `ranked`, those that keep `over` their budget, those that `failed`.

    `lead`, `p` and `sure` say what the first is ahead of the second; `level` are those that no test tells
    from the first (None where
    that was not tested: `families` tests it in the first average).
    """
    result: dict[str, dict[str, Any]] = {}
    for column in view.columns:
        cells = {at: view.lines[at].cells[column] for at in block if column in view.lines[at].cells}
        known = sorted(
            (at for at, row in cells.items() if not math.isnan(row["score"])),
            key=lambda at: -cells[at]["score"],
        )
        fair = [
            at
            for at in known
            if not exceeds(cells[at]["kept_fraction"], _number(cells[at]["compression_ratio"]))
        ] or known
        result[column] = {
            "ranked": fair,
            "over": [at for at in known if at not in fair],
            "failed": [at for at, row in cells.items() if math.isnan(row["score"]) and row["n_failed"]],
            **(_certainty(cells, fair) if fair else {}),
        }
    return result


def _certainty(cells: Mapping[int, Mapping[str, Any]], ranked: Sequence[int]) -> dict[str, Any]:
    best = cells[ranked[0]]
    tested = not math.isnan(best["p_behind"])
    level = [at for at in ranked[1:] if not cells[at]["p_behind"] < SIGNIFICANT] if tested else None
    if math.isnan(best["p_lead"]):
        return {"lead": None, "level": level}
    return {
        "lead": f"{best['lead']:+.1f}",
        "p": f"{best['p_lead']:.2g}",
        "sure": bool(best["p_lead"] < SIGNIFICANT),
        "level": level,
    }


def _number(value: Any) -> float | None:
    return None if pd.isna(value) or not math.isfinite(value) else round(float(value), 4)


def _block(name: str, data: Any) -> str:
    """JSON that no browser reads as markup: "<", ">" and "&" stand as escapes, and every other character is ASCII."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


if __name__ == "__main__":
    command(main)
