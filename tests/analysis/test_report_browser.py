"""The report in a real Chromium: offline, nothing foreign runs, keys, geometry, contrast, numbers, order."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longpress.analysis.kept_maps import append
from longpress.analysis.tables.write import write_tables
from tests.support.browser import faint_text, layout_problems, opened
from tests.support.made_up_records import ATTACK, kept_map, line, write_records
from tests.support.many_records import TOKENS, many_records, write_many

pytestmark = pytest.mark.browser


@pytest.fixture(scope="session")
def sweep_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 9 presses at 4 ratios on 13 tasks, a press that failed, and one of long name on one task."""
    folder = tmp_path_factory.mktemp("sweep")
    write_many(folder, samples=6, presses=9)
    some = [
        one
        for one in many_records(samples=6, presses=9)
        if (one.press, one.compression_ratio) == ("press_00", 0.5)
    ]
    why = {
        "score": None,
        "scores": {},
        "error": "Traceback (most recent call last):\n  …\nValueError: keys do not fit\n",
    }
    failed = [
        replace(one, press="failing", key=f"failed {one.key}", **why) for one in some if one.task == "cwe"
    ]
    named = [
        replace(one, press="a_press_with_a_long_name_of_its_own", key=f"named {one.key}")
        for one in some
        if one.task == "vt"
    ]
    write_records(folder, failed + named)
    write_tables([folder])
    return folder / "report.html"


@pytest.fixture(scope="session")
def attacked_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Markup and scripts wherever a model, a data set or a user may put text."""
    folder = tmp_path_factory.mktemp("attacked")
    foreign = {
        "prediction": ATTACK,
        "references": [ATTACK],
        "model": ATTACK,
        "benchmark": ATTACK,
        "metric": ATTACK,
        "press_parameters": {ATTACK: 1},
    }
    rows = []
    for press in ("none", ATTACK, "knorm"):
        rows += line(ATTACK, [0.0, 1.0, None], press, 0.0 if press == "none" else 0.5, **foreign, error=None)
    rows = [
        replace(one, context_id=f"context-{at % 3}", prompt_hash=f"prompt-{at % 3}")
        for at, one in enumerate(rows)
    ]  # hashes: ours
    write_records(folder, rows)
    for at in range(3):
        sample = f"{ATTACK}/{at}"
        append(
            folder / "kept_maps" / "a.jsonl",
            kept_map([one.key for one in rows if one.sample_id == sample], ATTACK * 3, sample),
        )
    write_tables([folder])
    return folder / "report.html"


def choose(page: Any, name: str, label: str) -> None:
    page.select_option(f"#{name}", label=label)


def cells(page: Any, table: str = "#table") -> list[list[str]]:
    return page.eval_on_selector_all(
        f"{table} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )


def test_it_opens_offline_without_a_request_or_a_complaint(browser: Any, sweep_page: Path) -> None:
    with opened(browser, sweep_page) as page:
        for name in ("judged-budget", "judged-column", "task", "what", "sample-task", "sample"):
            for option in range(page.locator(f"#{name} option").count()):
                page.select_option(f"#{name}", index=option)
        assert page.requests == [sweep_page.resolve().as_uri()]
        assert page.complaints == []


def test_nothing_foreign_runs(browser: Any, attacked_page: Path) -> None:
    with opened(browser, attacked_page) as page:
        for option in range(3):
            page.select_option("#sample", index=option)
            for variant in range(page.locator("#answers input").count()):
                page.locator("#answers input").nth(variant).check()
        assert page.title() == "longpress report"
        assert page.locator("img").count() == 0
        assert page.locator("script:not([type='application/json'])").count() == 1
        assert page.complaints == [] and len(page.requests) == 1
        shown = (
            page.locator("#answers td.answer").first.text_content(),
            page.locator("#context").text_content(),
        )
        assert all("<img src=x onerror=" in text for text in shown)


def test_the_policy_holds_even_where_markup_gets_in(browser: Any, attacked_page: Path) -> None:
    with opened(browser, attacked_page) as page:
        page.evaluate("""() => {
          const add = (text) => document.body.insertAdjacentHTML("beforeend", text);
          const script = document.createElement("script");
          script.textContent = "document.title = 'owned'";
          document.body.append(script);
          add("<img src='https://example.org/x' onerror=\\"document.title='owned'\\">");
          add("<iframe src='https://example.org/'></iframe><style>body { display: none }</style>");
        }""")
        sent = page.evaluate("fetch('https://example.org/').then(() => true, () => false)")
        page.wait_for_timeout(200)
        assert not sent and page.title() == "longpress report" and page.locator("body").is_visible()
        assert len(page.complaints) >= 4 and all(
            "Content Security Policy" in text for text in page.complaints
        )
        blocked = [
            url for url, why in page.failures if why == "csp"
        ]  # asked for, and stopped before the network
        assert [url for url in page.requests if not url.startswith("file:")] == blocked and len(
            page.failures
        ) == len(blocked)


def focused(page: Any) -> dict[str, Any]:
    return page.evaluate("""() => {
      const node = document.activeElement, style = getComputedStyle(node);
      const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
      const ring = node.querySelector?.(".ring"), stroke = ring && getComputedStyle(ring).stroke;
      const visible = Boolean(outlined || (ring && stroke !== "rgba(0, 0, 0, 0)" && stroke !== "none"));
      return { name: node.id || node.className.baseVal || node.textContent, tag: node.tagName, visible };
    }""")


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser: Any, sweep_page: Path) -> None:
    with opened(browser, sweep_page) as page:
        page.keyboard.press("Tab")
        assert focused(page)["name"] == "Skip to the overview"
        assert page.locator(".skip").bounding_box()["x"] >= 0, "the skip link comes into sight"
        seen = [focused(page)]
        while seen[-1]["tag"] != "BODY" and len(seen) < 200:
            page.keyboard.press("Tab")
            seen.append(focused(page))
        assert all(one["visible"] for one in seen[:-1]), [one for one in seen if not one["visible"]]
        names = [one["name"] for one in seen]
        for name in (
            "judged-budget",
            "judged-column",
            "task",
            "point",
            "what",
            "press",
            "sample-task",
            "sample",
            "context",
        ):
            assert name in names
        assert names.count("point") == 1, "the marks of the chart are one stop"


def test_arrows_move_through_the_chart_and_the_variants(browser: Any, sweep_page: Path) -> None:
    with opened(browser, sweep_page) as page:
        page.locator("#chart .point[tabindex='0']").focus()
        first = page.locator("#reading").text_content()
        page.keyboard.press("ArrowRight")
        second = page.locator("#reading").text_content()
        page.keyboard.press("ArrowDown")
        third = page.locator("#reading").text_content()
        assert len({first, second, third}) == 3
        assert first.split(" at ")[0] == second.split(" at ")[0] != third.split(" at ")[0]
        page.locator("#answers input:checked").focus()
        before = page.locator("#context-head").text_content()
        page.keyboard.press("ArrowDown")
        assert page.locator("#context-head").text_content() != before
        assert page.locator("#answers tr.chosen").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 768, 400])
def test_nothing_overlaps_is_cut_or_empty(browser: Any, sweep_page: Path, width: int, scheme: str) -> None:
    with opened(browser, sweep_page, width, scheme) as page:
        assert layout_problems(page) == []
        assert faint_text(page) == []
        choose(page, "what", "difference to the full cache")
        choose(page, "task", "vt")
        choose(page, "judged-column", "cwe")
        choose(page, "sample-task", "cwe")
        assert layout_problems(page) == []


@pytest.mark.parametrize("width", [1400, 400])
def test_foreign_text_breaks_no_layout(browser: Any, attacked_page: Path, width: int) -> None:
    with opened(browser, attacked_page, width) as page:
        assert [one for one in layout_problems(page) if not one.startswith("cut choice")] == []


def test_numbers_are_those_of_the_csv(browser: Any, sweep_page: Path) -> None:
    with (sweep_page.parent / "scores.csv").open(encoding="utf-8") as file:
        rows = {
            (row["press"], float(row["compression_ratio"]), row["task"]): row for row in csv.DictReader(file)
        }
    compared = 0
    with opened(browser, sweep_page) as page:
        heads = page.locator("#table thead th").all_text_contents()
        for what in ("score ± standard error", "95 % interval", "difference to the full cache"):
            choose(page, "what", what)
            for press, ratio, _, _, *found in cells(page):
                key = ("none", 0.0) if press == "full cache" else (press, float(ratio))
                for column, text in zip(heads[4:], found, strict=True):
                    row = rows.get((*key, column))
                    assert (row is None or row["score"] == "") == text.startswith("–") or what.startswith(
                        "difference"
                    )
                    if text.startswith("–"):
                        continue
                    wanted = {
                        "score ± standard error": ["score", "se"]
                        if "±" in text
                        else ["score", "ci_low", "ci_high"],
                        "95 % interval": ["ci_low", "ci_high"],
                        "difference to the full cache": ["delta", "delta_ci_low", "delta_ci_high"],
                    }[what]
                    sign = "+" if what.startswith("difference") else ""
                    for name in wanted:
                        number = f"{float(row[name]):{sign}.1f}"
                        assert number in text, (press, ratio, column, name)
                        compared += 1
        assert compared > 1000
        assert cells(page, "#answers")[0][3].strip()


def test_heads_sort_and_missing_cells_come_last(browser: Any, sweep_page: Path) -> None:
    def numbers(page: Any, at: int) -> list[float | None]:
        return [
            None if text.startswith("–") else float(text.split()[0])
            for text in (row[at] for row in cells(page))
        ]

    with opened(browser, sweep_page) as page:
        heads = page.locator("#table thead th").all_text_contents()
        for name in ("average", "vt", "kept"):
            at = heads.index(name)
            page.locator("#table thead button").nth(at).focus()
            for order in ("descending", "ascending"):
                page.keyboard.press("Enter")
                found = (
                    [value for value in numbers(page, at) if value is not None]
                    if name != "kept"
                    else [float(row[2].split()[0]) for row in cells(page) if row[2] != "–"]
                )
                assert found == sorted(found, reverse=order == "descending")
                assert page.locator("#table thead th").nth(at).get_attribute("aria-sort") == order
                if name != "kept":
                    known = [value is not None for value in numbers(page, at)]
                    assert known == sorted(known, reverse=True)
        page.locator("#table thead button").first.click()
        names = [row[0] for row in cells(page)]
        assert names == sorted(names, key=str.lower)


def test_failures_are_shown_as_failures(browser: Any, sweep_page: Path) -> None:
    with opened(browser, sweep_page) as page:
        assert "6 of them failed" in page.locator("#run").text_content()
        markdown = (sweep_page.parent / "table.md").read_text(encoding="utf-8").split("### Score")[1]
        wanted = next(row for row in markdown.splitlines() if row.startswith("| failing "))
        assert next(row for row in cells(page) if row[0] == "failing") == [
            text.strip() for text in wanted.strip("|").split("|")
        ]
        assert wanted.count("–†") == 2, "the task, and the average that lacks it"
        choose(page, "judged-column", "cwe")
        assert (
            "Not ranked, because every answer failed: failing."
            in page.locator("#overview-body").text_content()
        )
        choose(page, "sample-task", "cwe")
        row = next(row for row in cells(page, "#answers") if row[0] == "failing")
        assert row[2:] == ["failed", "ValueError: keys do not fit"]


def test_the_context_is_whole_shaded_and_outlined(browser: Any, sweep_page: Path) -> None:
    with opened(browser, sweep_page) as page:
        assert "at ratio 0.5 keeps it" in page.locator("#context-head").text_content(), (
            "it opens with the press that the overview names"
        )
        best = page.locator("#overview-body strong").text_content()
        assert best in page.locator("#context-head").text_content()
        words = page.locator("#context").text_content().split()
        assert len(words) == TOKENS
        outlined = page.locator("#context .ev")
        assert outlined.count() == 1 and outlined.text_content().split() == words[1000:1013]
        assert (
            len(
                {
                    name
                    for name in page.eval_on_selector_all(
                        "#context span[title]", "all => all.map(one => one.className)"
                    )
                }
            )
            >= 3
        )
        page.locator("#answers input").first.check()
        assert page.locator("#context span[title]").first.get_attribute("title") == "kept by 90 of 90", (
            "the full cache keeps all"
        )


def test_the_overview_follows_its_choices(browser: Any, sweep_page: Path) -> None:
    with opened(browser, sweep_page) as page:
        body = page.locator("#overview-body")
        assert body.text_content().startswith("With 50 % of the cache removed, ")
        assert "p = " in body.text_content()
        choose(page, "judged-budget", "90 % removed")
        choose(page, "judged-column", "vt")
        assert (
            body.text_content().startswith("With 90 % of the cache removed, ")
            and "highest on vt" in body.text_content()
        )
        texts = {row[0]: row for row in cells(page) if row[1] in ("0.9", "–")}
        heads = page.locator("#table thead th").all_text_contents()
        for bar in page.locator("#overview .bar").all():
            name, value = bar.locator(".name").text_content(), bar.locator(".value").text_content()
            assert texts[name][heads.index("vt")] == value


def test_the_overview_says_who_moves_the_model_least(browser: Any, tmp_path: Path) -> None:
    rows = line("a", [1.0, 0.0, 1.0])
    for press, divergence in (("knorm", 0.5), ("snapkv", 0.125), ("random", 2.0)):
        rows += [replace(one, answer_kl=divergence) for one in line("a", [1.0, 0.0, 1.0], press, 0.5)]
    write_records(tmp_path, rows)
    write_tables([tmp_path])
    with opened(browser, tmp_path / "report.html") as page:
        said = page.locator("#overview-body").text_content().replace("\xa0", " ")
        assert (
            "snapkv (0.125 nats per token from its predictions) moves the model least, then knorm (0.500)."
            in said
        )
        choose(page, "what", "fidelity to the full cache")
        at = page.locator("#table thead th").all_text_contents().index("answer_kl")
        assert {row[0]: row[at] for row in cells(page)} == {
            "knorm": "0.500",
            "snapkv": "0.125",
            "random": "2.000",
        }
