"""Multirun, shards, plans: jobs share prefills, contexts are split without loss, plans load nothing."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from longpress.evaluation.launch.sweeper import fold
from tests.support.running import content, multirun, records, table

FOLDED = frozenset({"press", "compression_ratio"})


def folded(*arguments: str) -> list[list[str]]:
    return fold(OverridesParser.create().parse_overrides(list(arguments)), FOLDED)


def test_presses_and_ratios_become_lists_of_one_job_per_model_and_benchmark() -> None:
    jobs = folded("press=a,b", "compression_ratio=0.25,0.5", "model=x,y", "benchmark=p,q")
    assert len(jobs) == 4
    assert {tuple(job[2:]) for job in jobs} == {(f"model={m}", f"benchmark={b}") for m in "xy" for b in "pq"}
    assert all(job[:2] == ["press=[a,b]", "compression_ratio=[0.25,0.5]"] for job in jobs)


def test_what_is_no_sweep_stays_as_it_was() -> None:
    assert folded("press=[a,b]", "compression_ratio=0.5", "limit=null") == [
        ["press=[a,b]", "compression_ratio=0.5", "limit=null"]
    ]


def test_lists_are_joined_without_repeats_and_ranges_are_listed() -> None:
    assert folded("press=[a,b],[b,c],d") == [["press=[a,b,c,d]"]]
    assert folded("shard.count=3", "shard.index=range(3)") == [
        ["shard.count=3", f"shard.index={i}"] for i in range(3)
    ]


def test_an_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="separated by commas"):
        folded("compression_ratio=interval(0,1)")


def test_shards_fill_one_folder_as_a_single_run(model_folder: Path, tmp_path: Path) -> None:
    sweep = ["press=knorm,snapkv", "compression_ratio=0.25,0.5"]
    planned = multirun(model_folder, tmp_path / "shards", "-m", *sweep, "plan=true")
    assert "plan: 1 job, 4 prefills, 20 answers left" in planned.stdout
    assert not (tmp_path / "shards").exists()
    printed = multirun(
        model_folder, tmp_path / "shards", "-m", *sweep, "shard.count=2", "shard.index=range(2)"
    ).stdout
    assert "plan: 2 jobs, 4 prefills, 20 answers left" in printed
    multirun(model_folder, tmp_path / "single", "press=[knorm,snapkv]", "compression_ratio=[0.25,0.5]")
    assert content(tmp_path / "shards") == content(tmp_path / "single")
    assert len(records(tmp_path / "shards")) == 20
    assert table(tmp_path / "shards") == table(tmp_path / "single")
    assert (
        "0 of 20 answers left"
        in multirun(
            model_folder,
            tmp_path / "single",
            "press=[knorm,snapkv]",
            "compression_ratio=[0.25,0.5]",
            "plan=true",
        ).stdout
    )


@pytest.mark.parametrize("wrong", [["shard.count=2", "shard.index=2"], ["press=knorm", "limit=0,1"]], ids=str)
def test_a_job_that_cannot_run_is_refused_before_any_starts(
    model_folder: Path, tmp_path: Path, wrong: list[str]
) -> None:
    done = multirun(model_folder, tmp_path / "none", "-m", *wrong, code=2)
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_failing_job_leaves_the_others_alone(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = multirun(
        model_folder,
        tmp_path,
        "-m",
        f"results={tmp_path / 'file'},{tmp_path / 'good'}",
        "limit=1",
        "press=knorm",
        code=1,
    )
    assert "1 of 2 jobs failed" in done.stderr
    assert len(records(tmp_path / "good")) == 4
