"""Markdown, LaTeX, the terminal, the files, and the command's refusals."""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longpress.analysis.tables.latex import escape, latex
from longpress.analysis.tables.layout import layouts
from longpress.analysis.tables.markdown import difference_cell, markdown, score_cell, terminal
from longpress.analysis.tables.scores import COLUMNS, scores
from longpress.analysis.tables.write import write_tables
from tests.support.made_up_records import PRESSES, line, sweep, write_records


def lines_of(text: str, start: str) -> list[str]:
    return [row for row in text.splitlines() if row.startswith(start)]


def test_markdown_has_scores_and_differences_full_cache_first() -> None:
    text = markdown(scores(sweep(["a", "b"], PRESSES)))
    _, first, second = text.split("### ")[1:]
    order = [
        re.sub(r"\s+", " ", row.split("|")[1] + row.split("|")[2]).strip() for row in lines_of(first, "|")[2:]
    ]
    assert order == ["full cache –", "knorm 0.25", "knorm 0.5", "snapkv 0.5"]
    assert len(lines_of(second, "|")) == 2 + 3
    assert re.search(r"\| \d+\.\d ± \d+\.\d \|", first)
    assert re.search(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", second)
    assert {row.count("|") for row in lines_of(first, "|")} == {4 + 3 + 1}
    assert "|  75.0 % |" in first


def test_the_first_table_says_which_press_and_how_sure_that_is() -> None:
    full = [1.0] * 20
    rows = [
        *line("a", full),
        *line("a", full[:16] + [0.0] * 4, "good", 0.5),
        *line("a", full[:15] + [0.0] * 5, "close", 0.5),
    ]
    rows += [
        *line("a", [0.0] * 20, "bad", 0.5),
        *line("a", full, "bad", 0.25),
        *line("a", full, "more", 0.5, kept_fraction=0.75),
    ]
    text = markdown(scores(rows)).split("### Which press: a by ratio, best first")[1].split("###")[0]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in lines_of(text, "| ")]
    assert [row[0] for row in cells] == [
        "press",
        "---" + "-" * 7,
        "full cache",
        "more",
        "good",
        "close",
        "bad",
    ]
    half = cells[0].index("0.5")
    assert [row[half].split("]")[-1].strip() for row in cells[3:]] == ["(keeps 75 %) =", "=", "=", ""]
    assert cells[4][3 - half] == "–"


def test_missing_and_failed_cells() -> None:
    rows = [*sweep(["a", "b"], [("knorm", 0.5)]), *line("a", [1.0, None, 0.0], "snapkv", 0.5)]
    text = markdown(scores(rows))
    snapkv = lines_of(text.split("### Score")[1], "| snapkv")[0]
    assert snapkv.count("–") == 2, "the missing task and the average"
    assert "†" in snapkv
    assert "† failed samples, left out of the means: snapkv 0.5 a: 1." in text


def test_cells() -> None:
    frame = scores([*line("a", [1.0] * 200), *line("a", [1.0] * 200, "knorm", 0.5)])
    full, press = frame[frame["task"] == "a"].to_dict("records")
    assert score_cell(full) == "100.0 [98.1, 100.0]"
    assert difference_cell(full) == score_cell(None) == difference_cell(None) == "–"
    assert difference_cell(press) == "+0.0 [-1.9, +1.9]"
    worse = scores([*line("a", [1.0] * 50), *line("a", [0.0] * 49 + [1.0], "knorm", 0.5)])
    assert difference_cell(worse[worse["press"] == "knorm"].to_dict("records")[0]).endswith("]*")


@pytest.mark.parametrize("presses", [1, 3, 12])
@pytest.mark.parametrize("tasks", [1, 3, 13])
def test_every_cell_fits_a_terminal(tasks: int, presses: int) -> None:
    frame = scores(
        sweep([f"task_name_{at}" for at in range(tasks)], [(f"press{at}", 0.5) for at in range(presses)])
    )
    text = terminal(frame)
    assert max(map(len, text.splitlines())) <= 120
    assert text.count("±") == len(frame) - (presses + 1 if tasks == 1 else 0)


def test_latex_escapes_rotates_and_balances() -> None:
    rows = sweep([f"task_{at}" for at in range(13)], PRESSES, model="a_b&c%#{}~^\\$")
    text = latex(layouts(scores(rows)))
    assert r"a\_b\&c\%\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\$" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert r"\rotatebox{70}{task\_0}" in text
    body = text.split(r"\begin{table}")[2].split(r"\midrule")
    assert len(body) == 4, "head, full cache, one block per ratio"
    assert body[1].strip().startswith("full cache & -- &")
    assert body[2].strip().startswith("knorm & 0.25 &")
    counts = {row.count(" & ") for part in body for row in part.splitlines() if row.endswith(r"\\")}
    assert counts == {4 + 13 + 1 - 1}
    assert escape("a\nb – c") == "a b -- c"


def test_latex_is_bold_only_where_the_lead_is_significant() -> None:
    high, low, close = [1.0] * 40, [0.0] * 30 + [1.0] * 10, [1.0] * 39 + [0.0]
    significant = [*line("a", high), *line("a", high, "knorm", 0.5), *line("a", low, "snapkv", 0.5)]
    noise = [*line("a", high), *line("a", high, "knorm", 0.5), *line("a", close, "snapkv", 0.5)]
    assert latex(layouts(scores(significant))).count(r"\textbf{100.0}") == 1
    assert r"\textbf" not in latex(layouts(scores(noise)))


def test_files_are_written_whole_and_tables_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_records(tmp_path / "run", sweep(["a", "b"], PRESSES))
    frame = write_tables([folder])
    written = ["costs.csv", "records", "report.html", "scores.csv", "scores.parquet", "table.md", "table.tex"]
    assert sorted(path.name for path in folder.iterdir()) == written
    csv, parquet = pd.read_csv(folder / "scores.csv"), pd.read_parquet(folder / "scores.parquet")
    assert list(csv.columns) == list(parquet.columns) == list(COLUMNS)
    pd.testing.assert_frame_equal(parquet, frame)
    assert csv["score"].to_numpy() == pytest.approx(frame["score"].to_numpy())
    assert set(csv["task"]) == {"a", "b", "average"}
    assert "full cache" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    write_tables([folder])
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before


def test_folders_are_merged_and_repeats_count_once(tmp_path: Path) -> None:
    one = write_records(tmp_path / "one", sweep(["a"], [("knorm", 0.5)]))
    two = write_records(
        tmp_path / "two", sweep(["a"], [("knorm", 0.5)]) + line("a", [0.5] * 20, "snapkv", 0.5)
    )
    frame = write_tables([one, two], tmp_path / "new" / "both")
    assert set(frame["press"]) == {"none", "knorm", "snapkv"}
    assert set(frame["n"]) == {20}
    assert (tmp_path / "new" / "both" / "scores.csv").exists()
    assert [path.name for folder in (one, two) for path in folder.iterdir()] == ["records", "records"]


@pytest.mark.parametrize("command", ["tables", "report"])
def test_several_folders_need_another_one(
    tmp_path: Path, command: str, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = (write_records(tmp_path / name, sweep(["a"], PRESSES)) for name in ("one", "two"))
    before = sorted(tmp_path.rglob("*"))
    assert exit_code(command, one, two) == 2
    assert "add --out DIR" in capsys.readouterr().err
    assert exit_code(command, one, two, "--out", two / ".." / "one") == 2
    assert "none of which is changed" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert exit_code(command, one, two, "--out", tmp_path / "both") == 0
    assert exit_code(command, one, "--out", tmp_path / "alone") == 0
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()} == {"records"}
    pages = [(tmp_path / name / "report.html").read_bytes() for name in ("both", "alone")]
    assert pages[0] == pages[1], "the second folder repeats the first"


def test_records_packed_for_keeping_give_the_same_table(tmp_path: Path) -> None:
    folder = write_records(tmp_path / "run", sweep(["a"], PRESSES))
    expected = write_tables([folder])
    (path,) = (folder / "records").iterdir()
    with gzip.open(f"{path}.gz", "wb") as packed:
        packed.write(path.read_bytes())
    path.unlink()
    pd.testing.assert_frame_equal(write_tables([folder]), expected)


def test_several_models_and_versions_have_tables_of_their_own(tmp_path: Path) -> None:
    rows = [
        *sweep(["a"], PRESSES),
        *sweep(["a"], PRESSES, model="other"),
        *sweep(["a"], PRESSES, dtype="bfloat16"),
    ]
    text = markdown(scores(rows))
    assert len(lines_of(text, "## ")) == 3
    assert len(set(lines_of(text, "## "))) == 3


def test_group_headers_of_a_suite_with_named_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    from longpress.analysis.tables import averages as module
    from longpress.analysis.tables import scores as scores_module

    def named(benchmark: str, tasks: Any) -> module.Averages:
        plain = dict.fromkeys("abc", 1 / 3)
        return module.Averages(["a", "b", "c"], {"average": plain, "questions": {"a": 0.5, "b": 0.5}})

    monkeypatch.setattr(module, "averages", named)
    monkeypatch.setattr(scores_module, "averages", named)
    text = latex(layouts(scores(sweep(["a", "b", "c"], PRESSES))))
    assert r"\multicolumn{2}{c}{questions}" in text
    assert r"\cmidrule(lr){5-6}" in text


def test_lossless_only_where_the_whole_interval_says_so() -> None:
    full = [1.0, 0.5, 0.0, 1.0] * 30
    same, worse = line("a", full, "same", 0.5), line("a", [0.0, *full[1:]], "worse", 0.5)
    frame = scores([*line("a", full), *same, *worse, *line("a", [0.0] * 120, "bad", 0.5)])
    notes = {
        margin: next(row for row in markdown(frame, margin=margin).splitlines() if "Lossless" in row)
        for margin in (1.0, 3.5, 10.0)
    }
    assert notes[1.0].endswith("above -1): none."), "120 equal answers do not prove a loss below one point"
    assert notes[3.5].endswith(": same 0.5.")
    assert notes[10.0].endswith(": same 0.5, worse 0.5.")
    assert "of 3 in single tasks: 1 after Holm's adjustment, 1 after Benjamini-Hochberg's." in markdown(frame)
    with pytest.raises(ValueError, match="margin=0 must be positive"):
        markdown(frame, margin=0)


@pytest.mark.parametrize("kind", ["missing", "file", "no records", "only corrupt", "newer"])
def test_bad_folders_end_with_one_sentence(
    tmp_path: Path, kind: str, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    if kind == "file":
        folder.write_text("text")
    elif kind != "missing":
        (folder / "records").mkdir(parents=True)
    if kind == "only corrupt":
        (folder / "records" / "a.jsonl").write_text("{torn")
    if kind == "newer":
        (folder / "records" / "a.jsonl").write_text('{"schema": 99}\n')
    assert exit_code("tables", folder) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ") and streams.err.count("\n") == 1
    assert "run" in streams.err


def test_no_argument_is_a_usage_error(exit_code: Callable[..., int]) -> None:
    assert exit_code("tables") == 2


@pytest.mark.latex
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside a paper"])
def test_latex_compiles_as_it_stands(tmp_path: Path, inside: bool) -> None:
    presses = [(f"press_{at}", ratio) for at in range(20) for ratio in (0.25, 0.5, 0.9)]
    rows = sweep(
        ["niah_single_1", "vt", "cwe", "fwe", "qa_1", "qa_2"],
        presses,
        benchmark="ruler",
        model="a_b&c%#{}~^\\$<ü>",
    )
    rows += [
        *line("vt", [None, 1.0], "odd", 0.5, benchmark="ruler"),
        *line("vt", [0.5, 1.0], "odd", None, budget_tokens=128, benchmark="ruler"),
    ]
    rows += sweep([f"task_{at}" for at in range(13)], PRESSES)
    rows += line("vt", [1.0], benchmark="alone")
    folder = write_records(tmp_path / "run", rows)
    write_tables([folder])
    paper = (
        "\\documentclass{article}\\usepackage{booktabs,graphicx}"
        "\\begin{document}\\section{A}\\input{table.tex}\\end{document}\n"
    )
    source = "paper.tex" if inside else "table.tex"
    (folder / "paper.tex").write_text(paper)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", source]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / source).with_suffix(".pdf").stat().st_size > 10_000
    for complaint in ("Overfull", "Warning", "Missing character"):
        assert complaint not in done.stdout


@pytest.mark.parametrize("tasks", [2, 13])
def test_markdown_and_latex_agree_with_the_csv_to_the_digit(tmp_path: Path, tasks: int) -> None:
    folder = write_records(
        tmp_path / "run",
        [*sweep([f"t{at}" for at in range(tasks)], PRESSES), *line("t0", [0.5, 0.25], "partial", 0.5)],
    )
    write_tables([folder])
    csv = pd.read_csv(folder / "scores.csv")
    expected = {
        (
            "full cache" if row.press == "none" else row.press,
            f"{row.compression_ratio:g}" if row.press != "none" else "",
            row.task,
        ): row
        for row in csv.itertuples()
    }
    text = (folder / "table.md").read_text().split("### Score")[1].split("### Difference")[0]
    grid = [[cell.strip() for cell in row.strip("|").split("|")] for row in lines_of(text, "| ")]
    body = (folder / "table.tex").read_text().split(r"\begin{table}")[2].splitlines()
    latex_rows = [
        row.removesuffix(r" \\").split(" & ")
        for row in body
        if row.count(" & ") > tasks and row.endswith(r"\\")
    ]
    names = [re.sub(r"\\rotatebox\{70\}\{(.*)\}", r"\1", name) for name in latex_rows[0]]
    seen = 0
    for head, rows in ((grid[0], grid[2:]), (names, latex_rows[1:])):
        for cells in rows:
            for name, cell in zip(head, cells, strict=True):
                row = expected.get((cells[0], cells[1].strip("–-"), name))
                if name in set(csv["task"]):
                    missing = row is None or pd.isna(row.score)
                    assert (
                        cell.strip("*{}$^")
                        .removeprefix(r"\textbf{")
                        .startswith(
                            "–" if missing and head is grid[0] else "--" if missing else f"{row.score:.1f}"
                        )
                    )
                    seen += 1
    assert seen == 2 * (tasks + 1) * 5
