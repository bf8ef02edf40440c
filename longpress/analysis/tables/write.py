"""Rebuild tables, plots and the report from the records of one or several runs.

Writes `scores.csv`, `scores.parquet`, `costs.csv`, `table.md`, `table.tex` and `report.html`, where fidelity
was measured also `fidelity.csv`, `fidelity.parquet` and `fidelity.md`, where several answers to a question
were drawn also `pass_at_k.csv`, and prints the tables. Where
matplotlib is installed, plots too: `ranking`, `curves`, `pareto`, `fidelity` and `heatmap` as .png and .pdf.
One folder is rebuilt in place, or into another one (`--out`); several are merged, a record that stands in
more than one counts once, and none is changed.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from longpress.analysis.arguments import add_folders, add_margin, add_out, folder_to_write
from longpress.analysis.plots.draw import available, draw
from longpress.analysis.report.page import page
from longpress.analysis.result_io import read, write_whole
from longpress.analysis.tables import fidelity
from longpress.analysis.tables.costs import cost_grids, costs
from longpress.analysis.tables.latex import latex
from longpress.analysis.tables.layout import layouts
from longpress.analysis.tables.markdown import MARGIN, markdown, terminal
from longpress.analysis.tables.pass_at_k import pass_at_k, pass_at_k_grids
from longpress.analysis.tables.scores import GENERATED, scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_folders(parser)
    add_out(parser)
    add_margin(parser, MARGIN, "points of loss that count as lossless")
    parser.add_argument("--no-plots", action="store_true", help="write no plots (they need matplotlib)")


def run(arguments: argparse.Namespace) -> None:
    """Write the tables, and print them.

    Raises:
        ValueError: as `write_tables`.
    """
    plots = not arguments.no_plots
    if plots and not available():
        print("note: no plots: install matplotlib with: pip install 'longpress[plots]'", file=sys.stderr)
    with _without_collector():
        write_tables(arguments.folders, arguments.out, margin=arguments.margin, plots=plots)


def write_tables(
    folders: Sequence[Path], out: Path | None = None, *, margin: float = MARGIN, plots: bool = False
) -> pd.DataFrame:
    """Write the tables of all records under `folders` into `out`, and print them.

    Args:
        folders: of results; several are merged, and none of them is changed.
        out: folder, made if missing; None: the only folder itself.
        margin: points of loss that count as lossless.
        plots: whether to draw as well, if matplotlib is installed.

    Returns:
        The frame of `scores`, as it is written.

    Raises:
        ValueError: a folder has no records, or cannot be read or written; several folders and no `out`; or
            records cannot stand in one table.
    """
    target = folder_to_write(folders, out)
    records = read(folders)

    # everything is made before anything is written
    frame, spent, moved = scores(records), costs(records), fidelity.fidelity(records)
    passed = pass_at_k(records)
    report = page(frame, records, folders, spent, moved, passed)
    files = {**_score_files(frame, spent, passed, report, margin), **_fidelity_files(moved)}
    if len(passed):
        files["pass_at_k.csv"] = lambda path: _write_csv(passed, path, "%.10g")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, write in files.items():
            write_whole(target / name, write)
        if plots and available():
            draw(frame, records, target, moved)
    except OSError as error:
        raise ValueError(f"the tables cannot be written to {target}: {error.strerror}") from error
    print(terminal(frame, shutil.get_terminal_size((120, 24)).columns, margin))
    return _told(frame)


def _score_files(
    frame: pd.DataFrame, spent: pd.DataFrame, passed: pd.DataFrame, report: str, margin: float
) -> dict[str, Callable[[Path], Any]]:
    """What writes each file, by its name."""
    grids, passes = cost_grids(spent), pass_at_k_grids(passed)
    return {
        "scores.csv": lambda path: _write_csv(frame, path, "%.10g"),
        "costs.csv": lambda path: _write_csv(spent, path, "%.6g"),
        "scores.parquet": lambda path: _told(frame).to_parquet(path, index=False),
        "table.md": lambda path: path.write_text(markdown(frame, grids, margin, passes), encoding="utf-8"),
        "table.tex": lambda path: path.write_text(latex(layouts(frame), grids), encoding="utf-8"),
        "report.html": lambda path: path.write_text(report, encoding="utf-8"),
    }


def _fidelity_files(moved: pd.DataFrame) -> dict[str, Callable[[Path], Any]]:
    """What writes each file, by its name; none where fidelity was not measured."""
    if not len(moved):
        return {}
    return {
        "fidelity.csv": lambda path: _write_csv(moved, path, "%.10g"),
        "fidelity.parquet": lambda path: _told(moved).to_parquet(path, index=False),
        "fidelity.md": lambda path: path.write_text(fidelity.markdown(moved), encoding="utf-8"),
    }


def _write_csv(frame: pd.DataFrame, path: Path, numbers: str) -> None:
    _told(frame).to_csv(path, index=False, float_format=numbers, lineterminator="\n", encoding="utf-8")


def _told(frame: pd.DataFrame) -> pd.DataFrame:
    """Without columns of generated answers where all are greedy ones, which have nothing to tell there."""
    greedy = bool((frame["generation_parameters"] == "{}").all())
    return frame.drop(columns=list(GENERATED), errors="ignore") if greedy else frame


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python's collector of cycles away: records live to the end, and it would walk them all anew."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
