"""What `longpress ls` lists: everything that can be chosen, one line each."""

from argparse import ArgumentParser
from pathlib import Path

import pytest

from longpress.catalogue import benchmarks, class_files, conf_folder, presses
from longpress.evaluation.ls_command import KINDS, add_arguments, run
from tests.support.running import ROOT

MINE = '"""Mine: large values stay.\n\nSource: a test.\nCost: none.\n"""\n\n\nclass MinePress:\n    pass\n'


@pytest.fixture
def listed(capsys: pytest.CaptureFixture[str]):
    """The lines that the command prints."""

    def lines(*arguments: str) -> list[str]:
        parser = ArgumentParser()
        add_arguments(parser)
        run(parser.parse_args(arguments))
        return capsys.readouterr().out.splitlines()

    return lines


def test_everything_has_one_line(listed) -> None:
    whole = listed()
    assert [line for line in whole if not line.startswith(" ")] == [f"{kind}:" for kind in KINDS]
    names = [line.split()[0] for line in whole if line.startswith("  ")]
    files = [
        path.stem
        for kind in ("model", "experiment")
        for path in sorted((ROOT / "conf" / kind).glob("*.yaml"))
    ]
    assert names == [*presses(), *benchmarks(), *files]


def test_presses_have_their_paper_and_their_cost(listed) -> None:
    lines = {line.split()[0]: line for line in listed("presses")[1:]}
    for name, entry in presses().items():
        assert f"[{entry.source}]" in lines[name]
        assert lines[name].endswith(f"Cost: {entry.cost}")


def test_models_and_experiments_are_listed_with_what_their_files_say(listed) -> None:
    assert any("smollm2 " in line and "no download" in line for line in listed("models"))
    assert any(" demo " in line and "quickest look" in line for line in listed("experiments"))
    assert not [
        line for kind in ("models", "experiments") for line in listed(kind)[1:] if len(line.split()) < 4
    ]


def test_presses_of_ones_own_stand_beside_the_others(listed, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    lines = listed("presses", "--presses-dir", str(tmp_path))
    (mine,) = [line for line in lines if line.startswith("  mine ")]
    assert mine.split(maxsplit=1)[1] == "Mine: large values stay.  [a test.]  Cost: none."
    assert len(lines) == len(presses()) + 2
    with pytest.raises(ValueError, match="no folder at"):
        listed("presses", "--presses-dir", "/nowhere")


def test_classes_are_found_by_name_without_an_import() -> None:
    files = class_files(ROOT / "presses")
    assert files["SnapKVPress"] == "snapkv"
    assert files["BasePress"] == "base"
    assert {entry.class_name for entry in presses().values()} < files.keys()
    assert class_files(ROOT / "benchmarks")["RulerBenchmark"] == "ruler"
    assert not [name for name in files if name.startswith("_")]


def test_every_benchmark_can_be_loaded_and_knows_its_name() -> None:
    for name, entry in benchmarks().items():
        assert entry.load()().name == name
        assert entry.load().__module__ == entry.module


def test_the_choices_of_a_checkout_lie_at_its_root() -> None:
    assert conf_folder() == ROOT / "conf"
