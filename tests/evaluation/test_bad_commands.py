"""Bad input to the commands: one sentence, exit code 2, no traceback, and nothing is written.

What is typed lies in tests/support/bad_commands. A case is a run of the real command, in a fork of a process
that has imported everything; some are also run as a user starts them.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from longpress.analysis.records import read_records
from longpress.catalogue import presses
from longpress.evaluation.config import make_press
from tests.support.bad_commands import (
    benchmark_options,
    configuration,
    models,
    other_commands,
    press_options,
    results_folders,
)
from tests.support.bad_commands.places import files, make_places, typed
from tests.support.warm_command import ROOT, completed

GROUPS = {
    "configuration": configuration.CASES,
    "press": press_options.CASES,
    "benchmark": benchmark_options.CASES,
    "model": models.CASES,
    "results folder": results_folders.CASES,
    "other command": other_commands.CASES,
}
CASES = {f"{group}: {title}": case for group, cases in GROUPS.items() for title, case in cases.items()}
OF_A_RUN = {"config.yaml", "environment.json"}
"""What a run may have written before it saw that it cannot go on."""


@pytest.fixture(scope="module")
def places(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_places(tmp_path_factory.mktemp("bad"), model_folder)


def check_refusal(done: subprocess.CompletedProcess[str]) -> None:
    """One sentence on stderr, exit code 2, no traceback."""
    said = done.stderr
    assert done.returncode == 2, said + done.stdout[-2000:]
    assert "Traceback" not in said + done.stdout, said
    assert said.startswith("error: ") and len(said.splitlines()) == 1, said
    assert 20 < len(said) < 4000, said


@pytest.mark.slow
@pytest.mark.parametrize("title", CASES)
def test_bad_input_is_refused_and_nothing_is_written(
    title: str, places: dict[str, str], tmp_path: Path
) -> None:
    before = files(Path(places["bad"]))
    folders = {"results": str(tmp_path / "results"), "out": str(tmp_path / "out")}
    check_refusal(completed("longpress", *typed(CASES[title], **places, **folders), seconds=120))
    assert files(tmp_path).keys() <= {f"results/{name}" for name in OF_A_RUN}
    assert files(Path(places["bad"])) == before


@pytest.mark.slow
def test_a_folder_in_the_way_of_a_plot_is_said(places: dict[str, str], tmp_path: Path) -> None:
    """The tables are there by then."""
    shutil.copytree(Path(places["bad"]) / "good", tmp_path / "results")
    (tmp_path / "results" / "ranking-1.png").mkdir()
    check_refusal(completed("longpress", "tables", str(tmp_path / "results")))
    assert (tmp_path / "results" / "scores.csv").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("title", press_options.WITH_UNREADABLE_WEIGHTS)
def test_weights_that_cannot_be_read_fail_the_answers_of_their_press_alone(
    title: str, places: dict[str, str], tmp_path: Path
) -> None:
    case = press_options.WITH_UNREADABLE_WEIGHTS[title]
    done = completed("longpress", *typed(case, **places, results=str(tmp_path / "results")))
    assert done.returncode == 1
    first, last = done.stderr.splitlines()
    assert first.startswith("failed: niah_single_1/0 under "), first
    assert "/" in first.split("ValueError", 1)[1], first
    assert last == "error: 1 answers failed; their records say why, and the same command tries them again"
    found = {record.press: record for record in read_records([tmp_path / "results"])}
    assert found.pop("none").score is not None
    (failed,) = found.values()
    assert failed.score is None and failed.error
    assert "Traceback" not in done.stdout and "†" in done.stdout


@pytest.mark.parametrize(
    "title",
    [
        "configuration: a press that there is not",
        "configuration: a ratio of 1.0",
        "configuration: a flag that there is not",
        pytest.param("model: pickled weights", marks=pytest.mark.slow),
    ],
)
def test_as_a_user_starts_it(title: str, places: dict[str, str], tmp_path: Path) -> None:
    _, *arguments = typed(CASES[title], **places, results=str(tmp_path / "results"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    check_refusal(done)
    assert not files(tmp_path)


NUMBERS = [
    (name, key, value)
    for name, entry in presses().items()
    for key, option in entry.options.items()
    for kind, values in {"int": (-1, "many"), "float": (float("nan"), float("inf"), "much")}.items()
    for value in values
    if option.type.startswith(kind) and key != "seed"
]


@pytest.mark.parametrize(("name", "key", "value"), NUMBERS)
def test_a_number_that_means_nothing_to_a_press_is_refused(name: str, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key) as refused:
        make_press({"name": name, key: value}, presses())
    assert 20 < len(str(refused.value)) < 500
