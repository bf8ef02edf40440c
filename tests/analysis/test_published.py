"""What is published under results/ is what its records say, to the digit, in every form."""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from longpress.analysis.records import read_records
from longpress.analysis.report.page import page
from longpress.analysis.tables.costs import costs
from longpress.analysis.tables.fidelity import fidelity, markdown
from longpress.analysis.tables.grid import MISSING
from longpress.analysis.tables.latex import escape
from longpress.analysis.tables.layout import layouts
from longpress.analysis.tables.markdown import difference_cell, score_cell
from longpress.analysis.tables.scores import scores
from tests.support.documents import PUBLISHED, ROOT

LARGEST = 5 * 2**20
"""So many bytes a folder may hold, so that a clone stays small."""


def test_something_is_published() -> None:
    assert {"ruler-2k-smollm2", "longbench-smollm2"} <= {folder.name for folder in PUBLISHED}


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_numbers_come_from_the_records_and_agree_in_every_form(folder: Path) -> None:
    records = list(read_records([folder]))
    frame, csv = scores(records), pd.read_csv(folder / "scores.csv")
    assert len(frame) == len(csv)
    for name in ("score", "ci_low", "ci_high", "delta", "p_value", "kept_fraction", "n"):
        assert frame[name].to_numpy(dtype=float) == pytest.approx(
            csv[name].to_numpy(dtype=float), nan_ok=True, abs=1e-6
        ), name
    markdown = {
        tuple(cells_of(line, "|")[1:-1])
        for line in (folder / "table.md").read_text(encoding="utf-8").splitlines()
    }
    latex = {
        tuple(cells_of(line.removesuffix(r"\\"), " & "))
        for line in (folder / "table.tex").read_text(encoding="utf-8").splitlines()
    }
    drawn_page = page(frame, records, [folder], costs(records), fidelity(records))
    found = re.search(r'id="data">(.*?)</script>', drawn_page, re.DOTALL)
    assert found
    for table, drawn in zip(layouts(frame), json.loads(found[1])["views"], strict=True):
        for row, of_page in zip(table.rows, drawn["lines"], strict=True):
            start = (row.press, row.budget or MISSING, row.kept, row.samples)
            assert (*start, *(score_cell(row.cells.get(column)) for column in table.columns)) in markdown
            typeset = next(
                cells
                for cells in latex
                if cells[:4] == (escape(start[0]), escape(start[1]), escape(start[2]), escape(start[3]))
            )
            for column, text in zip([*table.tasks, *table.averages], typeset[4:], strict=True):
                cell = row.cells.get(column)
                shown = "--" if cell is None or math.isnan(cell["score"]) else f"{cell['score']:.1f}"
                assert re.sub(r"\\textbf{([^}]*)}", r"\1", text).startswith(shown), (start, column)
                if cell is not None:
                    assert of_page["cells"][column]["text"] == score_cell(cell)
                    assert of_page["cells"][column]["difference"] == difference_cell(cell)


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_fidelity_comes_from_the_records(folder: Path) -> None:
    frame = fidelity(list(read_records([folder])))
    published = folder / "fidelity.md"
    assert bool(len(frame)) == published.exists()
    if len(frame):
        assert markdown(frame) == published.read_text(encoding="utf-8")


def test_what_can_be_made_again_is_not_published() -> None:
    for folder in PUBLISHED:
        assert not [name for name in ("report.html", "fidelity.csv") if is_tracked(folder / name)]


def is_tracked(path: Path) -> bool:
    """Whether git keeps a file; nothing is, where the tests run outside a clone."""
    known = subprocess.run(
        ["git", "ls-files", "--error-unmatch", str(path)], cwd=ROOT, capture_output=True, check=False
    )
    return known.returncode == 0


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_a_folder_is_small_and_names_no_machine(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert (
        sum(path.stat().st_size for path in files if path.suffix not in (".parquet", ".pdf", ".jsonl"))
        < LARGEST
    )
    for path in files:
        if path.suffix in (".yaml", ".json", ".md", ".tex", ".csv"):
            assert str(ROOT) not in path.read_text(encoding="utf-8"), (
                f"{path.name} names a path of the machine it was made on"
            )
    assert not any(
        str(value).startswith(("/", "~"))
        for record in read_records([folder])
        for value in record.benchmark_parameters.values()
    )


def cells_of(line: str, mark: str) -> list[str]:
    return [cell.strip() for cell in line.split(mark)]
