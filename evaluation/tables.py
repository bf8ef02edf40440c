"""Tables of scores for people and for papers, from records alone: `python -m evaluation.tables DIR…` needs no model.

Writes `scores.csv`, `scores.parquet`, `table.md`, `table.tex` and `report.html` into the first folder and prints the tables. Several
folders are merged: a record that stands in more than one counts once.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from evaluation.latex import latex
from evaluation.records import BASELINE, Record, read_records
from evaluation.scores import LINE, TABLE, averages, scores

MISSING = "–"
SIGNIFICANT = 0.05
"""Level of the marks: p-values adjusted by Holm over the cells of a table."""


class Line(NamedTuple):
    """A line of a table: label of the press, budget, measured kept fraction in percent, samples per task, cells by column name."""

    press: str
    budget: str
    kept: str
    samples: str
    cells: Mapping[str, Mapping[str, Any]]

    @property
    def is_baseline(self) -> bool:
        """Whether this is the full cache."""
        return not self.budget


class View(NamedTuple):
    """One table: its heading, columns (named averages first, then tasks), the averages among them, groups of tasks, and its lines."""

    title: str
    columns: list[str]
    averages: list[str]
    groups: list[tuple[str, list[str]]]
    lines: list[Line]

    @property
    def budget_heading(self) -> str:
        """`ratio` where every budget is one, else `budget`: tokens and thresholds name themselves, a bare number is a ratio."""
        return "budget" if any(" " in line.budget for line in self.lines) else "ratio"


def views(frame: pd.DataFrame) -> list[View]:
    """The tables of a frame of `scores`, one per model and reading of a benchmark."""
    result = []
    for names, part in frame.groupby(list(TABLE), sort=False):
        keys = dict(zip(TABLE, names, strict=True))
        tasks, shares = averages(keys["benchmark"], part.loc[~part["aggregate"], "task"].unique())
        named = [name for name in shares if len(tasks) > 1]
        modes, columns = set(part["query_aware"]), [*named, *tasks]
        of_line: dict[str, list[dict[str, Any]]] = {}
        for row in part.to_dict("records"):
            of_line.setdefault(repr([row[name] for name in LINE]), []).append(row)
        lines = [_line(rows, len(modes) > 1) for rows in of_line.values()]
        result.append(View(_title(keys, frame, modes), columns, named, _groups(tasks, shares), lines))
    return result


def markdown(frame: pd.DataFrame) -> str:
    """`table.md`: per table the scores, the paired differences to the full cache, and notes."""
    parts = []
    for view in views(frame):
        wide = [(_header(view), [[*_start(line), *_row(view.columns, line, score_cell)] for line in view.lines])]
        compared = _compared(view)
        if compared:
            wide.append((_header(view), [[*_start(line), *_row(view.columns, line, difference_cell)] for line in compared]))
        titles = ("Score (0 to 100) ± standard error", "Difference to the full cache on the same samples [95 % interval]")
        sections = [f"### {title}\n\n{_grid(header, rows)}" for title, (header, rows) in zip(titles, wide, strict=False)]
        parts.append("\n\n".join([f"## {view.title}", *sections, *_notes(view)]))
    return "\n\n".join(parts) + "\n"


def terminal(frame: pd.DataFrame, width: int = 120) -> str:
    """The same for a terminal of `width` columns: tasks become rows where presses fit side by side, else columns are split in blocks."""
    parts = []
    for view in views(frame):
        blocks = [_fit(view, view.lines, score_cell, width)]
        compared = _compared(view)
        if compared:
            blocks += ["difference to the full cache [95 % interval]:", _fit(view, compared, difference_cell, width)]
        parts.append("\n\n".join([view.title, *blocks, *_notes(view)]))
    return "\n\n\n".join(parts)


def score_cell(row: Mapping[str, Any] | None) -> str:
    """`41.5 ± 0.6`; the interval where a standard error says nothing (all samples equal, or one); † after failed samples; – if missing."""
    if row is None or math.isnan(row["score"]):
        return MISSING + ("†" if row is not None and row["n_failed"] else "")
    error = row["se"]
    text = f"{row['score']:.1f} ± {error:.1f}" if error > 0 else f"{row['score']:.1f} [{row['ci_low']:.1f}, {row['ci_high']:.1f}]"
    return text + ("†" if row["n_failed"] else "")


def difference_cell(row: Mapping[str, Any] | None) -> str:
    """`-0.3 [-0.9, 0.3]`, with * where the adjusted p-value is below 0.05; – if missing."""
    if row is None or math.isnan(row["delta"]):
        return MISSING
    mark = "*" if row["p_holm"] < SIGNIFICANT else ""
    return f"{row['delta']:+.1f} [{row['delta_ci_low']:+.1f}, {row['delta_ci_high']:+.1f}]{mark}"


def report(folders: Sequence[Path]) -> pd.DataFrame:
    """Write the tables of all records under `folders` into the first folder, and print them.

    Returns:
        The frame of `scores`.

    Raises:
        ValueError: a folder has no records, or cannot be read or written; or records cannot stand in one table.
    """
    records = read(folders)
    frame = scores(records)
    from evaluation.report import page  # which shows these tables, so it imports this module

    try:
        _write(folders[0], frame, page(frame, records, folders))
    except OSError as error:
        raise ValueError(f"the tables cannot be written to {folders[0]}: {error.strerror}") from error
    print(terminal(frame, shutil.get_terminal_size((120, 24)).columns))
    return frame


def read(folders: Sequence[Path]) -> list[Record]:
    """All records under `folders`, each key once.

    Raises:
        ValueError: a folder has no records, or cannot be read.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"no folder at {folder}; give the results folder of a run")
        try:
            if not any((folder / "records").glob("*.jsonl")):
                raise ValueError(f"{folder} has no records (records/*.jsonl); give the results folder of a run")
        except OSError as error:
            raise ValueError(f"{folder} cannot be read: {error.strerror}") from error
    try:
        records = list(read_records(folders))
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
    if not records:
        raise ValueError(f"no line under {', '.join(str(folder / 'records') for folder in folders)} is a record; run the benchmark again")
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: exit code 0, or 2 with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.tables", description="Rebuild the tables from records; needs no model.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="results folders; the first receives the tables")
    try:
        report(parser.parse_args(arguments).folders)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(folder: Path, frame: pd.DataFrame, page: str) -> None:
    """Each file whole or not at all, whatever other processes write at the same time."""
    files: dict[str, Callable[[Path], Any]] = {
        "scores.csv": lambda path: frame.to_csv(path, index=False, float_format="%.10g", lineterminator="\n", encoding="utf-8"),
        "scores.parquet": lambda path: frame.to_parquet(path, index=False),
        "table.md": lambda path: path.write_text(markdown(frame), encoding="utf-8"),
        "table.tex": lambda path: path.write_text(latex(views(frame)), encoding="utf-8"),
        "report.html": lambda path: path.write_text(page, encoding="utf-8"),
    }
    for name, write in files.items():
        write_whole(folder / name, write)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` fill a file beside `path`, and put it in its place when it is whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _line(rows: Sequence[Mapping[str, Any]], tell_mode: bool) -> Line:
    press, parameters, ratio, budget, aware, threshold = (rows[0][name] for name in LINE)
    label, limit = line_label(press, parameters, aware and tell_mode), line_budget(press, ratio, budget, threshold)
    single = [row for row in rows if not row["aggregate"]]
    cells = {row["task"]: row for row in [*(row for row in rows if row["aggregate"]), *single]}
    known = [row["kept_fraction"] for row in single if not math.isnan(row["kept_fraction"])]
    counts = sorted({int(row["n"]) for row in single})
    samples = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    kept = f"{100 * sum(known) / len(known):.1f} %" if known else MISSING
    return Line(label, limit, kept, samples, cells)


def line_label(press: str, parameters: str, aware: bool) -> str:
    """How a press is called in tables; `parameters` as `differing` gives them."""
    label = "full cache" if press == BASELINE else press + (f" ({parameters})" if parameters else "")
    return label + (" (query-aware)" if aware else "")


def line_budget(press: str, ratio: float | None, budget: float | None, threshold: float | None) -> str:
    """How a budget stands in tables: a ratio, tokens, a threshold, or nothing for the full cache."""
    if press == BASELINE:
        return ""
    for value, text in ((threshold, "score ≥ {:g}"), (ratio, "{:g}"), (budget, "{:.0f} tokens")):
        if value is not None and not pd.isna(value):
            return text.format(value)
    return MISSING


def _title(keys: Mapping[str, Any], frame: pd.DataFrame, modes: set[bool]) -> str:
    """Benchmark and model, and what tells this table from the others of the frame."""
    details = [f"version {keys['benchmark_version']}", str(keys["dtype"])]
    if frame["revision"].nunique() > 1 and keys["revision"]:
        details.append(f"revision {str(keys['revision'])[:12]}")
    if frame["benchmark_parameters"].nunique() > 1:
        details.append(str(keys["benchmark_parameters"]))
    details += ["query-aware"] if modes == {True} else []
    return f"{keys['benchmark']} on {keys['model']} ({', '.join(details)})"


def _groups(tasks: Sequence[str], shares: Mapping[str, Mapping[str, float]]) -> list[tuple[str, list[str]]]:
    """Disjoint groups of neighbouring tasks that have an average of their own, for grouped headers."""
    groups: list[tuple[str, list[str]]] = []
    for name, share in sorted(shares.items(), key=lambda item: len(item[1])):
        held = [task for task in tasks if task in share]
        start = tasks.index(held[0])
        neighbours = list(tasks[start : start + len(held)]) == held
        if 1 < len(held) < len(tasks) and neighbours and not any(set(held) & set(other) for _, other in groups):
            groups.append((name, held))
    return sorted(groups, key=lambda group: tasks.index(group[1][0]))


def _compared(view: View) -> list[Line]:
    return [line for line in view.lines if any(not math.isnan(cell["delta"]) for cell in line.cells.values())]


def _start(line: Line) -> list[str]:
    return [line.press, line.budget or MISSING, line.kept, line.samples]


def _header(view: View) -> list[str]:
    return ["press", view.budget_heading, "kept", "n", *view.columns]


def _row(columns: Iterable[str], line: Line, cell: Callable[[Mapping[str, Any] | None], str]) -> list[str]:
    return [cell(line.cells.get(column)) for column in columns]


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table with aligned columns, the first `left` to the left."""
    table = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * width if at < left else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    table.insert(1, rule)
    pad = [str.ljust if at < left else str.rjust for at in range(len(widths))]
    aligned = [[put(text, width) for put, text, width in zip(pad, row, widths, strict=True)] for row in table]
    return "\n".join(f"| {' | '.join(row)} |" for row in aligned)


def _fit(view: View, lines: Sequence[Line], cell: Callable[[Mapping[str, Any] | None], str], width: int) -> str:
    head = [_header(view)[:4], *map(_start, lines)]
    rows = [view.columns, *(_row(view.columns, line, cell) for line in lines)]
    names = ["task", *(f"{line.press} {line.budget}".strip() for line in lines)]
    turned = [names, *(list(column) for column in zip(*rows, strict=True))]
    taken, sizes = _width(head), [_width([[text] for text in column]) - 1 for column in zip(*rows, strict=True)]
    if taken + sum(sizes) > width and _width(turned) <= width:
        return _grid(turned[0], turned[1:])
    blocks, start = [], 0
    while start < len(sizes):
        end = start + 1
        while end < len(sizes) and taken + sum(sizes[start : end + 1]) <= width:
            end += 1
        table = [left + right[start:end] for left, right in zip(head, rows, strict=True)]
        blocks.append(_grid(table[0], table[1:]))
        start = end
    return "\n\n".join(blocks)


def _width(table: Sequence[Sequence[str]]) -> int:
    """Characters across the grid of a table."""
    return 1 + sum(3 + max(3, *map(len, column)) for column in zip(*table, strict=True))


def _notes(view: View) -> list[str]:
    """What a reader needs to know about the cells of this table."""
    notes = []
    rows = [(line, row) for line in view.lines for row in line.cells.values()]
    held = {row["task"]: row["n_tasks"] for _, row in rows if row["aggregate"]}
    if view.averages:
        named = ", ".join(f"{name} of {held[name]} task{'s' if held[name] > 1 else ''}" for name in view.averages if name in held)
        notes.append(f"Averages: {named}. An average is left out where one of its tasks is missing for that press.")
    notes.append("n: samples per task; kept: measured share of cache entries; brackets: 95 % interval; *: p < 0.05 (Holm).")
    single = [(f"{line.press} {line.budget}".strip(), row) for line, row in rows if not row["aggregate"]]
    failed = [f"{name} {row['task']}: {row['n_failed']}" for name, row in single if row["n_failed"]]
    if failed:
        notes.append(f"† failed samples, left out of the means: {'; '.join(failed[:20])}{'; …' if len(failed) > 20 else ''}.")
    empty, cut = (sum(row[name] for _, row in single) for name in ("n_empty", "n_truncated"))
    if empty or cut:
        notes.append(f"Of all lines, empty answers: {empty}; answers about contexts cut to fit the window: {cut}.")
    return notes


if __name__ == "__main__":
    sys.exit(main())
