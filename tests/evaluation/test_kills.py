"""Runs killed by SIGKILL at random instants and started again: no record is lost, none made twice."""

import itertools
import json
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import pytest

from longpress.analysis.records import read_records
from tests.support.running import command
from tests.support.warm_command import Command

SWEEP = [
    "benchmark.length=1024",
    "limit=4",
    "max_batch_gb=0.002",
]  # few rows decoded together: records come context by context
RECORDS, VARIANTS = 2 * 4 * 5, 5
TIMED = ("prefill_seconds", "observe_seconds", "compress_seconds", "decode_seconds")
KILLS = 50
PARTS = (
    "start",
    "answers",
    "start",
    "records",
    "answers",
    "start",
    "answers",
    "records",
    "answers",
    "records",
    "start",
    "tables",
    "tables",
)
"""Where one folder's runs are to be killed, one after the other; a last one is left to its end."""


class Fresh:
    """The command as a user starts it, imports and all; what of `Command` is used here."""

    def __init__(self, arguments: list[str]) -> None:
        self._process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> int:
        self._process.kill()
        return self._process.wait()


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run.

    Attributes:
        content: its records without seconds.
        scores: its `scores.csv`, likewise.
        seconds: bounds of the wait before a kill, from the instant at which a part of the work begins.
    """

    content: set[str]
    scores: pd.DataFrame
    seconds: dict[str, float]


def written(results: Path) -> list[bytes]:
    """Lines on disk; one without its end is none."""
    return [line for path in results.glob("records/*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]


def lines(results: Path) -> list[dict]:
    return [json.loads(line) for line in written(results)]


def keys(results: Path) -> set[str]:
    return {record["key"] for record in lines(results)}


def content(results: Path) -> set[str]:
    found = [asdict(record) for record in read_records([results])]
    return {
        json.dumps({key: value for key, value in one.items() if key not in TIMED}, sort_keys=True)
        for one in found
    }


def scores(results: Path) -> pd.DataFrame:
    frame = pd.read_csv(results / "scores.csv")
    return frame[[name for name in frame if "seconds" not in name]]


def wait_until(condition: Callable[[], bool], process: Command | Fresh) -> None:
    deadline = time.monotonic() + 200
    while not process.ended and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(scope="module")
def warm(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Command]:
    """Starts the command on a folder."""
    printed = tmp_path_factory.mktemp("printed")
    return lambda results: Command(printed, "evaluate.py", *command(model_folder, results, *SWEEP)[2:])


@pytest.fixture(scope="module")
def whole(warm: Callable[[Path], Command], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    results = tmp_path_factory.mktemp("whole")
    assert warm(results / "first").wait() == 0, (
        "not measured: it starts the process from which others are forked"
    )
    started = time.monotonic()
    process = warm(results)
    moments = [started]
    for n in (1, RECORDS):
        wait_until(lambda n=n: len(written(results)) >= n, process)
        moments.append(time.monotonic())
    assert process.wait() == 0
    moments.append(time.monotonic())
    first, answers, tables = (late - early for early, late in itertools.pairwise(moments))
    assert len(lines(results)) == len(keys(results)) == RECORDS
    return Whole(
        content(results),
        scores(results),
        {"start": first, "answers": answers / 8, "records": 0.002, "tables": tables},
    )


def killed(process: Command | Fresh, results: Path, part: str, seconds: float) -> str:
    """Kill a run so many seconds after a part of its work has begun; where it was hit, "" if it had ended."""
    before = len(written(results))
    awaited = {
        "start": lambda there: True,
        "answers": lambda there: there >= min(before + 1, RECORDS),
        "records": lambda there: (
            there == RECORDS or (there > before and there % VARIANTS != before % VARIANTS)
        ),
        "tables": lambda there: there == RECORDS,
    }
    wait_until(lambda: awaited[part](len(written(results))), process)
    time.sleep(seconds)
    seen = written(results)
    code = process.kill()
    left = lines(results)
    assert {json.loads(line)["key"] for line in seen} <= {record["key"] for record in left}, (
        "a record that was on disk is lost"
    )
    if code != -signal.SIGKILL:
        assert code == 0
        return ""
    if len(left) == RECORDS:
        return "tables"
    if len(left) == before:
        return "start"
    return (
        "records"
        if any(n % VARIANTS for n in Counter(record["context_id"] for record in left).values())
        else "answers"
    )


def tear(results: Path, draw: random.Random) -> set[str]:
    """Cut the last line of a record file, as a kill inside a write would; the keys that are lost with it."""
    files = sorted(results.glob("records/*.jsonl"))
    if not files:
        return set()
    whole, before = draw.choice(files), keys(results)
    data = whole.read_bytes()
    last = len(data) - (data[:-1].rfind(b"\n") + 1)
    whole.write_bytes(data[: -draw.randint(1, last)])
    return before - keys(results)


def check(results: Path, whole: Whole) -> None:
    found = [record["key"] for record in lines(results)]
    assert len(found) == len(set(found)) == RECORDS
    assert content(results) == whole.content
    pd.testing.assert_frame_equal(scores(results), whole.scores)


@pytest.mark.slow
def test_fifty_kills_lose_and_repeat_nothing(
    warm: Callable[[Path], Command], whole: Whole, tmp_path: Path
) -> None:
    draw, hit = random.Random(50), Counter[str]()
    for n in range(2 * KILLS // len(PARTS)):
        results = tmp_path / str(n)
        for part in PARTS:
            hit[killed(warm(results), results, part, draw.uniform(0, whole.seconds[part]))] += 1
        assert warm(results).wait() == 0
        check(results, whole)
        if hit.total() - hit[""] >= KILLS and min(hit[part] for part in PARTS) >= 3:
            break
    print(hit)
    assert hit.total() - hit[""] >= KILLS
    assert min(hit[part] for part in PARTS) >= 3, hit


@pytest.mark.slow
def test_kills_of_the_command_as_users_start_it(
    model_folder: Path, warm: Callable[[Path], Command], whole: Whole, tmp_path: Path
) -> None:
    draw = random.Random(51)
    parts = {"start": 2.0, "answers": whole.seconds["answers"], "tables": whole.seconds["tables"] / 2}
    hit = [
        killed(Fresh(command(model_folder, tmp_path, *SWEEP)), tmp_path, part, draw.uniform(0, bound))
        for part, bound in parts.items()
    ]
    assert sum(map(bool, hit)) >= 2, hit
    assert warm(tmp_path).wait() == 0
    check(tmp_path, whole)


@pytest.mark.slow
def test_kills_inside_a_line_cost_that_line(
    warm: Callable[[Path], Command], whole: Whole, tmp_path: Path
) -> None:
    draw, torn = random.Random(52), set[str]()
    hit = []
    for part in ("answers", "records", "answers", "tables"):
        hit.append(killed(warm(tmp_path), tmp_path, part, draw.uniform(0, whole.seconds[part] / 2)))
        torn |= tear(tmp_path, draw)
    assert torn and sum(map(bool, hit)) >= 2, hit
    assert warm(tmp_path).wait() == 0
    check(tmp_path, whole)


@pytest.mark.slow
def test_kills_of_two_jobs_on_one_folder(
    warm: Callable[[Path], Command], whole: Whole, tmp_path: Path
) -> None:
    draw, kills = random.Random(53), 0
    for results in (tmp_path / str(n) for n in range(8)):
        jobs, seen = [warm(results), warm(results)], set[str]()
        while jobs and kills < 8:
            time.sleep(draw.uniform(0, whole.seconds["start"] + whole.seconds["answers"]))
            seen |= keys(results)
            code = jobs.pop(draw.randrange(len(jobs))).kill()
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            jobs += [warm(results)] if code else []
            assert seen <= keys(results)
        assert [job.wait() for job in jobs] == [0] * len(jobs)
        assert warm(results).wait() == 0
        assert content(results) == whole.content
        pd.testing.assert_frame_equal(scores(results), whole.scores)
        once = {
            json.dumps({key: value for key, value in one.items() if key not in TIMED}, sort_keys=True)
            for one in lines(results)
        }
        assert once == whole.content, "what both answered is the same"
        if kills >= 8:
            break
    assert kills >= 8
