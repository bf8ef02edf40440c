"""The report: numbers as in the tables, foreign text escaped, structure, kept maps, and what is left out."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longpress.analysis.kept_maps import KeptMap, append, read_kept_maps
from longpress.analysis.records import Record
from longpress.analysis.report import page as page_module
from longpress.analysis.report import samples as samples_module
from longpress.analysis.report.page import page as page_text
from longpress.analysis.tables.costs import cost_grids, costs
from longpress.analysis.tables.fidelity import fidelity, fidelity_grids
from longpress.analysis.tables.markdown import difference_cell, markdown, score_cell
from longpress.analysis.tables.scores import scores
from tests.support.made_up_records import ATTACK, PRESSES, kept_map, line, sweep, write_records


class Page(HTMLParser):
    """Elements and data blocks of a page, as a browser's parser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.blocks: dict[str, str] = {}
        self._block = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.elements.append((tag, dict(attributes)))
        self._block = dict(attributes).get("id", "") if tag == "script" else ""

    def handle_data(self, data: str) -> None:
        if self._block:
            self.blocks[self._block] = self.blocks.get(self._block, "") + data

    def data(self, name: str = "data") -> Any:
        return json.loads(self.blocks[name])


def page_of(rows: list[Record], folders: list[Path] = []) -> Page:  # noqa: B006
    return Page(page_text(scores(rows), rows, folders, costs(rows), fidelity(rows)))


def test_cells_are_those_of_the_tables() -> None:
    rows = sweep(["a", "b"], PRESSES)
    frame = scores(rows)
    table = markdown(frame)
    (view,) = page_of(rows).data()["views"]
    cells = [cell for one in view["lines"] for cell in one["cells"].values()]
    assert [cell["text"] for cell in cells] and len(cells) == 4 * 3
    assert all(f" {cell['text']} |" in table for cell in cells)
    assert all(f" {cell['difference']} |" in table for cell in cells if cell["difference"] != "–")
    by_hand = frame[
        (frame["press"] == "knorm") & (frame["compression_ratio"] == 0.5) & (frame["task"] == "b")
    ].to_dict("records")[0]
    (found,) = [
        one["cells"]["b"] for one in view["lines"] if (one["press"], one["budget"]) == ("knorm", "0.5")
    ]
    assert (found["text"], found["difference"]) == (score_cell(by_hand), difference_cell(by_hand))
    assert found["interval"] == f"{by_hand['ci_low']:.1f} to {by_hand['ci_high']:.1f}"


def test_costs_and_fidelity_are_the_grids_of_their_tables() -> None:
    rows = sweep(["a", "b"], PRESSES)
    assert [one["name"] for one in page_of(rows).data()["views"][0]["grids"]] == ["cost"], (
        "fidelity was not measured"
    )
    rows = [replace(one, answer_kl=0.25 * at, answer_agreement=0.5) for at, one in enumerate(rows)]
    moved, spent = page_of(rows).data()["views"][0]["grids"]
    for one, (heads, texts) in (
        (moved, *fidelity_grids(fidelity(rows)).values()),
        (spent, *cost_grids(costs(rows)).values()),
    ):
        assert (one["heads"], one["rows"]) == (heads, texts) and len(texts) > 2


def test_foreign_text_stays_text() -> None:
    rows = sweep(
        ["a"],
        PRESSES,
        prediction=ATTACK,
        references=[ATTACK, {"b": ATTACK}],
        model=ATTACK.replace("\ud800", ""),
    )
    clean = page_of(sweep(["a"], PRESSES))
    attacked = page_of(rows)
    assert attacked.elements == clean.elements
    assert attacked.data()["samples"][0]["answers"][0]["answer"] == ATTACK
    assert attacked.data()["samples"][0]["references"][0] == ATTACK


def test_the_policy_names_the_only_script_and_style() -> None:
    text = page_text(scores(rows := sweep(["a"], PRESSES)), rows, [], costs(rows), fidelity(rows))
    policy = next(
        value["content"]
        for tag, value in Page(text).elements
        if value.get("http-equiv") == "Content-Security-Policy"
    )
    script, style = re.findall(r"<script>(.*?)</script>|<style>(.*?)</style>", text, re.S)
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert (
        page_module._hash(style[0] or script[0]) in policy
        and page_module._hash(script[1] or style[1]) in policy
    )
    assert not re.search(
        r"(?:src|href)=.?(?:https?:)?//|@import|url\(|innerHTML|insertAdjacent|document\.write|\bon\w+=", text
    )


def overview_of(rows: list[Record]) -> tuple[Any, list[Any]]:
    data = page_of(rows).data()
    return data["overview"][0], [(one["press"], one["budget"]) for one in data["views"][0]["lines"]]


def test_the_overview_says_how_sure_a_choice_is() -> None:
    full, low = [1.0] * 40, [0.0] * 30 + [1.0] * 10
    clear, lines = overview_of(
        [*line("a", full), *line("a", full, "knorm", 0.5), *line("a", low, "snapkv", 0.5)]
    )
    (budget,) = clear["budgets"]
    found = budget["columns"]["a"]
    assert [lines[at] for at in found["ranked"]] == [("knorm", "0.5"), ("snapkv", "0.5")]
    assert (
        found["sure"]
        and found["lead"] == "+75.0"
        and budget["ratio"] == 0.5
        and lines[clear["full"]] == ("full cache", "")
    )
    assert found["level"] == [] and found["over"] == found["failed"] == []
    even, _ = overview_of(
        [*line("a", full), *line("a", full, "knorm", 0.25), *line("a", full, "snapkv", 0.25)]
    )
    found = even["budgets"][0]["columns"]["a"]
    assert not found["sure"] and len(found["level"]) == 1
    assert overview_of(line("a", full))[0]["budgets"] == []


def test_the_overview_opens_near_one_half_and_ranks_every_column() -> None:
    rows = [*line("a", [1.0] * 9), *line("b", [1.0] * 9)]
    for press, a, b in (("knorm", 1.0, 0.0), ("snapkv", 0.0, 0.9)):
        for ratio in (0.1, 0.6, 0.9):
            rows += [*line("a", [a] * 9, press, ratio), *line("b", [b] * 9, press, ratio)]
    overview, lines = overview_of(rows)
    budget = overview["budgets"][overview["start"]]
    assert budget["label"] == "0.6"
    assert {column: lines[found["ranked"][0]][0] for column, found in budget["columns"].items()} == {
        "average": "knorm",
        "a": "knorm",
        "b": "snapkv",
    }


def test_what_keeps_more_than_its_budget_or_failed_is_not_ranked() -> None:
    rows = [*line("a", [1.0] * 9), *line("a", [0.5] * 9, "knorm", 0.5), *line("a", [None] * 9, "snapkv", 0.5)]
    overview, lines = overview_of([*rows, *line("a", [0.9] * 9, "think", 0.5, kept_fraction=0.8)])
    found = overview["budgets"][0]["columns"]["a"]
    named = {name: [lines[at][0] for at in found[name]] for name in ("ranked", "over", "failed")}
    assert named == {"ranked": ["knorm"], "over": ["think"], "failed": ["snapkv"]}


def test_a_failed_answer_says_why() -> None:
    rows = line("a", [1.0, None], error=None)
    rows[1] = replace(
        rows[1], error="Traceback (most recent call last):\n  File x\nValueError: keys <b>do not fit</b>\n"
    )
    answers = [one["answers"][0] for one in page_of(rows).data()["samples"]]
    assert [(one["score"], one["failed"], one["answer"]) for one in answers] == [
        ("100.0", False, "text"),
        ("failed", True, "ValueError: keys <b>do not fit</b>"),
    ]


def test_parameters_and_models_find_their_lines() -> None:
    rows = [
        *line("a", [1.0, 0.0], "snapkv", 0.5, press_parameters={"window": 32}),
        *line("a", [0.0, 0.0], "snapkv", 0.5, press_parameters={"window": 64}),
        *line("a", [0.5, 0.5], "snapkv", 0.5, model="other"),
    ]
    data = page_of(rows).data()
    for one in data["samples"]:
        for answer in one["answers"]:
            assert data["views"][one["view"]]["lines"][answer["line"]]["press"].startswith("snapkv")
    first = [data["views"][0]["lines"][answer["line"]]["press"] for answer in data["samples"][0]["answers"]]
    assert sorted(first) == sorted({one["press"] for one in data["views"][0]["lines"]})


def test_of_many_answers_the_first_of_every_task_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_module, "ANSWERS", 16)
    data = page_of(sweep(["a", "b"], PRESSES, n=20)).data()
    assert [one["id"] for one in data["samples"]] == ["a/0", "a/1", "b/0", "b/1"]
    assert data["note"] == "16 of 160 answers are here: the first 4 of 40 samples, task by task."
    assert data["counts"]["records"] == 160


def test_kept_maps_come_back_and_shade_their_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sweep(["a"], PRESSES, n=3)
    mine = [one.key for one in rows if one.sample_id == "a/2"]
    path = write_records(tmp_path / "run", rows) / "kept_maps" / "x.jsonl"
    append(path, kept_map(mine, sample="a/2"))
    with path.open("a") as file:
        file.write('{"schema": 1, "torn')
    (back,) = read_kept_maps([tmp_path / "run"])
    assert back.to_json() == kept_map(mine, sample="a/2").to_json()
    page = page_of(rows, [tmp_path / "run"])
    first = page.data()["samples"][0]
    assert first["id"] == "a/2", "samples with maps come first"
    assert {answer["context"] for answer in first["answers"]} == {0}
    context = page.data("context-0")
    spans = np.frombuffer(base64.b64decode(context["spans"]), "<u4").reshape(-1, 2)
    utf16 = context["text"].encode("utf-16-le")
    assert "".join(utf16[2 * a : 2 * b].decode("utf-16-le") for a, b in spans) == context["text"]
    assert context["evidence"] == {"a/2": [[2, 8]]}
    monkeypatch.setattr(samples_module, "CONTEXT_BYTES", 10)
    bounded = page_of(rows, [tmp_path / "run"])
    assert (
        "context-0" not in bounded.blocks
        and "1 context is left out for want of space." in bounded.data()["note"]
    )


@pytest.mark.parametrize("damage", ['{"schema": 1}', "[]", "null", '{"schema": 2}', "[" * 100_000])
def test_a_damaged_map_is_a_value_error(damage: str) -> None:
    with pytest.raises(ValueError):
        KeptMap.from_json(damage)


def test_packed_maps_are_read(tmp_path: Path) -> None:
    path = tmp_path / "kept_maps" / "one.jsonl"
    append(path, kept_map(["key"]))
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(path.read_bytes())
    path.unlink()
    assert [list(one.counts) for one in read_kept_maps([tmp_path])] == [["key"]]


def test_the_command_writes_the_page_alone(
    tmp_path: Path, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_records(tmp_path / "run", sweep(["a"], PRESSES))
    assert exit_code("report", folder) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["records", "report.html"]
    assert exit_code("report", tmp_path / "missing") == 2
    assert capsys.readouterr().err.startswith("error: ")
