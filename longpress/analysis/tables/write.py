"""Tables of scores for people and for papers, from records alone: `python -m longpress.analysis.tables.write DIR…` needs no model.

Writes `scores.csv`, `scores.parquet`, `costs.csv`, `table.md`, `table.tex` and `report.html` into the first
folder, where fidelity was measured also `fidelity.csv`, `fidelity.parquet` and `fidelity.md`, and prints the
tables. Where matplotlib is installed, plots too (see `longpress.analysis.plots.draw`). Several folders are
merged: a record that stands in more than one counts once.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from longpress.analysis.plots.draw import available, draw
from longpress.analysis.report.page import page
from longpress.analysis.result_io import read, write_whole
from longpress.analysis.tables import fidelity
from longpress.analysis.tables.costs import cost_grids, costs
from longpress.analysis.tables.latex import latex
from longpress.analysis.tables.layout import views
from longpress.analysis.tables.markdown import MARGIN, markdown, terminal
from longpress.analysis.tables.scores import scores
from longpress.arguments import Parser, command, exit_code, points


def report(folders: Sequence[Path], margin: float = MARGIN, plots: bool = False) -> pd.DataFrame:
    """Write the tables of all records under `folders` into the first folder, and print them.

    Args:
        folders: of results.
        margin: points of loss that count as lossless.
        plots: whether to draw as well, if matplotlib is installed.

    Returns:
        The frame of `scores`.

    Raises:
        ValueError: a folder has no records, or cannot be read or written; or records cannot stand in one
            table.
    """
    records = read(folders)
    frame = scores(records)
    spent, moved = costs(records), fidelity.fidelity(records)
    try:
        _write(folders[0], frame, spent, page(frame, records, folders, spent, moved), margin)
        fidelity.write(folders[0], moved)
        if plots and available():
            draw(frame, records, folders[0], moved)
    except OSError as error:
        raise ValueError(f"the tables cannot be written to {folders[0]}: {error.strerror}") from error
    print(terminal(frame, shutil.get_terminal_size((120, 24)).columns, margin))
    return frame


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(
        prog="python -m longpress.analysis.tables.write",
        description="Rebuild the tables from records; needs no model.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="results folders; the first receives the tables"
    )
    parser.add_argument(
        "--margin",
        type=points,
        default=MARGIN,
        help="points of loss that count as lossless (default: %(default)s)",
    )
    parser.add_argument("--no-plots", action="store_true", help="write no plots (they need matplotlib)")
    given = parser.parse_args(arguments)
    report(given.folders, given.margin, plots=not given.no_plots)


def _write(folder: Path, frame: pd.DataFrame, spent: pd.DataFrame, page: str, margin: float) -> None:
    """Each file whole or not at all, whatever other processes write at the same time."""
    grids = cost_grids(spent)
    files: dict[str, Callable[[Path], Any]] = {
        "scores.csv": lambda path: frame.to_csv(
            path, index=False, float_format="%.10g", lineterminator="\n", encoding="utf-8"
        ),
        "costs.csv": lambda path: spent.to_csv(
            path, index=False, float_format="%.6g", lineterminator="\n", encoding="utf-8"
        ),
        "scores.parquet": lambda path: frame.to_parquet(path, index=False),
        "table.md": lambda path: path.write_text(markdown(frame, grids, margin), encoding="utf-8"),
        "table.tex": lambda path: path.write_text(latex(views(frame), grids), encoding="utf-8"),
        "report.html": lambda path: path.write_text(page, encoding="utf-8"),
    }
    for name, write in files.items():
        write_whole(folder / name, write)


if __name__ == "__main__":
    # what the command reads lives to its end: the collector would only walk it all again and again
    gc.disable()
    command(main)
