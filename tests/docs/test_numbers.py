"""Every measured number in README and on the page of results is one of results/, to the digit."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from tests.support.documents import PUBLISHED, ROOT

PAGES = [ROOT / "README.md", ROOT / "docs" / "results.md"]
ESTIMATE = re.compile(r"(?<![\w.])(\d+\.\d)\s+\[(-?\d+\.\d),\s+([+-]?\d+\.\d)\]")
"""A score or difference with its interval: `67.6 [49.6, 81.5]`, `0.0 [-12.6, +12.6]`."""

BOUNDARY = 0.5
"""Compression ratio of the first statement about how many presses are behind."""


def published() -> pd.DataFrame:
    """The averages of all published tables, one row each."""
    frame = pd.concat([pd.read_csv(folder / "scores.csv") for folder in PUBLISHED], ignore_index=True)
    return frame[frame["aggregate"]]


def text_of(page: Path) -> str:
    """A page as it is written, without code."""
    return re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_an_estimate_is_one_of_the_tables(page: Path) -> None:
    frame = published()
    names = [("score", "ci_low", "ci_high"), ("delta", "delta_ci_low", "delta_ci_high")]
    known = {
        tuple(round(value, 1) + 0.0 for value in row)
        for columns in names
        for row in frame[list(columns)].dropna().to_numpy().tolist()
    }
    stated = ESTIMATE.findall(text_of(page))
    assert stated
    for numbers in stated:
        assert tuple(map(float, numbers)) in known, numbers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_score_stands_beside_the_press_that_has_it(page: Path) -> None:
    frame = published()
    ruler = frame[(frame["benchmark"] == "ruler") & (frame["task"] == "average")]
    labels = {
        "KVgrad": "kvgrad",
        "KVzip": "kvzip",
        "KVCompose": "kvcompose",
        "Compactor": "compactor",
        "KVzip+": "kvzip_plus",
    }
    names = "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))
    pattern = rf"({names})(?: scores| has| \()? ?\(?{ESTIMATE.pattern}"
    found = re.findall(pattern.replace(r"(?<![\w.])", ""), " ".join(text_of(page).split()))
    assert len(found) >= 3
    for label, score, low, high in found:
        rows = ruler[ruler["press"] == labels[label]]
        assert (float(score), float(low), float(high)) in {
            tuple(round(value, 1) for value in row)
            for row in rows[["score", "ci_low", "ci_high"]].to_numpy().tolist()
        }, (label, score)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_number_of_presses_that_are_behind(page: Path) -> None:
    text = " ".join(text_of(page).split())
    behind, others = map(int, re.findall(r"(\d+) of the (\d+) other presses", text)[0])
    frame = published()
    rows = frame[
        (frame["benchmark"] == "ruler")
        & (frame["task"] == "average")
        & (frame["compression_ratio"] == BOUNDARY)
    ]
    assert (behind, others) == (int((rows["p_behind"] < 0.05).sum()), len(rows) - 1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_times_beside_kvpress(page: Path) -> None:
    measured = json.loads((ROOT / "results" / "speed" / "speed.json").read_text(encoding="utf-8"))
    text = " ".join(text_of(page).split())
    short, long = map(
        int, re.findall(r"(\d+) times as long(?: as longpress)? at 2k tokens and (\d+) times at 4k", text)[0]
    )
    assert (short, long) == (round(measured["ratio_to_peer_2k"]), round(measured["ratio_to_peer_4k"]))
    points, variants = re.findall(r"from (\w+) of its (\d+) variants", text)[0]
    assert (points, int(variants)) == ("five", measured["lengths"]["2048"]["variants"])
    assert len(measured["lengths"]["2048"]["peer_points"]) == 5
    assert (
        not measured["lengths"]["2048"]["different_answers"]
        + measured["lengths"]["4096"]["different_answers"]
    )
