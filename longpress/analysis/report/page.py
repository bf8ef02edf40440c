"""Write `report.html`, one page that opens offline, from records alone.

Numbers are the strings of the tables (`markdown.score_cell`, `markdown.difference_cell`). Everything that
came from a model or a data set travels as JSON inside the page, "<" escaped, and is shown as text; the page's
own script and style are named by hash in its content security policy, so nothing else can run.
`report.samples` bounds answers and contexts; the page says so.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from longpress.analysis.arguments import add_folders, add_out, folder_to_write
from longpress.analysis.kept_maps import read_kept_maps
from longpress.analysis.records import Record
from longpress.analysis.report.overview import finite, overview
from longpress.analysis.report.samples import samples
from longpress.analysis.result_io import read, write_whole
from longpress.analysis.tables import costs, fidelity, pass_at_k
from longpress.analysis.tables.grid import MISSING, Grid
from longpress.analysis.tables.layout import LayoutRow, TableLayout, layouts
from longpress.analysis.tables.markdown import difference_cell, score_cell
from longpress.analysis.tables.row_keys import TableKey
from longpress.analysis.tables.scores import scores

DRAWN = {"score": "score", "low": "ci_low", "high": "ci_high", "delta": "delta", "kept": "kept_fraction"}
"""Numbers of a cell that the page draws and sorts by, and the columns of the frame that they are."""


class _Grids(NamedTuple):
    """Texts that the page shows beside the scores: their name, a grid per table, and what they mean."""

    name: str
    of_table: Mapping[TableKey, Grid]
    note: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_folders(parser)
    add_out(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write the page, and print where it is.

    Raises:
        ValueError: a folder has no records, or cannot be read or written; or several folders and no `--out`.
    """
    folder = folder_to_write(arguments.folders, arguments.out)
    records = read(arguments.folders)
    frame, spent, moved = scores(records), costs.costs(records), fidelity.fidelity(records)
    text, target = page(frame, records, arguments.folders, spent, moved), folder / "report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"the report cannot be written to {folder}: {error.strerror}") from error
    print(target)


def page(
    frame: pd.DataFrame,
    records: Sequence[Record],
    folders: Sequence[Path],
    spent: pd.DataFrame,
    moved: pd.DataFrame,
    passed: pd.DataFrame | None = None,
) -> str:
    """The whole page.

    Args:
        frame: of `scores`.
        records: those it was made of.
        folders: searched for kept maps.
        spent: of `costs`.
        moved: of `fidelity`; empty where it was not measured.
        passed: of `pass_at_k`; by default that of the records.
    """
    # what the page's script reads
    tables = layouts(frame)
    held, contexts, note = samples(tables, records, read_kept_maps(folders))
    passed = pass_at_k.pass_at_k(records) if passed is None else passed
    beside = (
        _Grids("pass@k", pass_at_k.pass_at_k_grids(passed), pass_at_k.NOTE),
        _Grids("fidelity to the full cache", fidelity.fidelity_grids(moved), fidelity.NOTE),
        _Grids("cost", costs.cost_grids(spent), costs.NOTE),
    )
    data = {
        "views": [_table(table, beside) for table in tables],
        "overview": [overview(table) for table in tables],
        "samples": held,
        "note": note,
        "counts": {"records": len(records), "failed": sum(record.error is not None for record in records)},
    }
    blocks = [_block("data", data)]
    blocks += [_block(f"context-{place}", context) for place, context in enumerate(contexts)]

    # the page itself, and the policy under which nothing but its own script and style runs
    folder = files("longpress.analysis.report")
    template, style, script = (
        folder.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"POLICY": policy, "STYLE": style, "SCRIPT": script, "DATA": "\n".join(blocks)}
    for name, text in parts.items():  # data last, so that nothing in it is taken for a mark
        template = template.replace(f"@@{name}@@", text)
    return template


def _table(table: TableLayout, beside: Sequence[_Grids]) -> dict[str, Any]:
    """One table of scores, and the tables beside it."""
    metrics = {entry["task"]: entry["metric"] for row in table.rows for entry in row.cells.values()}
    grids = [
        {"name": name, "heads": grid.heads, "rows": grid.rows, "note": note}
        for name, of_table, note in beside
        if (grid := of_table.get(table.key)) is not None
    ]
    return {
        "title": table.title,
        "columns": table.columns,
        "averages": table.averages,
        "metrics": metrics,
        "lines": [_row(row, table.columns) for row in table.rows],
        "grids": grids,
    }


def _row(row: LayoutRow, columns: Sequence[str]) -> dict[str, Any]:
    """A row: its texts, the kept fraction as a number, and its cells."""
    return {
        "press": row.press,
        "budget": row.budget,
        "kept": row.kept,
        "keptValue": None if row.kept == MISSING else float(row.kept.split()[0]),
        "n": row.samples,
        "baseline": row.is_baseline,
        "cells": {column: _cell(row.cells[column]) for column in columns if column in row.cells},
    }


def _cell(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Texts of a cell as tables have them, its interval, and the numbers for drawing and sorting."""
    known = not math.isnan(entry["score"])
    interval = f"{entry['ci_low']:.1f} to {entry['ci_high']:.1f}" if known else MISSING
    return {
        "text": score_cell(entry),
        "difference": difference_cell(entry),
        "interval": interval,
        "n": int(entry["n"]),
        **{name: finite(entry[column]) for name, column in DRAWN.items()},
    }


def _block(name: str, data: Any) -> str:
    """JSON that no browser reads as markup.

    "<", ">" and "&" stand as escapes, and every other character is ASCII.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _hash(text: str) -> str:
    """As a content security policy names a script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
