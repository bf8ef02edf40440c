"""Every command of the pages exists, with its options, and pastes into bash and zsh as it stands."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from longpress import cli
from longpress.evaluation import config, run_command
from longpress.evaluation.launch.sweeper import fold
from tests.support.documents import PAGES, ROOT, Block, blocks, commands

SHELL = [block for page in PAGES for block in blocks(page, "bash", "sh", "shell")]
OVERRIDES = [name for name, command in cli.COMMANDS.items() if command.overrides is not None]
FOREIGN = {
    ("source", ".venv/bin/activate"),
    ("pip", "install"),
    ("pip", "wheel"),
    ("python", "-m", "pytest"),
}
"""Beginnings of the commands that are not ours."""

FOLDED = OmegaConf.load(ROOT / "conf" / "hydra" / "sweeper" / "folding.yaml").folded
"""Options whose values are joined in one job."""


def ours() -> Iterator[tuple[Block, list[str]]]:
    """The blocks and words of the commands that `longpress` runs."""
    for block in SHELL:
        for words in commands(block):
            if words[0] == "longpress":
                yield block, words[1:]
            elif words[:2] == ["python", "evaluate.py"]:
                yield block, ["run", *words[2:]]
            elif words[:3] == ["python", "-m", "longpress"]:
                yield block, words[3:]


CASES = [pytest.param(words, block, id=f"{block}: {' '.join(words)}"[:90]) for block, words in ours()]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the presses of the page on adding one, as its commands expect it."""
    (tmp_path / "my_presses").mkdir()
    for block in blocks(ROOT / "docs" / "add-a-press.md", "python"):
        if block.caption:
            (tmp_path / block.caption).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def check(words: list[str]) -> None:
    """Refuse a command that the program would refuse, without running it.

    Args:
        words: behind `longpress`.
    """
    name, *given = words
    if name.startswith("-"):
        assert name in ("--help", "--version", "-h", "-V")
    elif name in OVERRIDES:
        check_overrides(given)
    else:
        assert name in cli.COMMANDS, f"there is no command {name}"
        if given != ["--help"]:
            cli.parser(name).parse_args(given)


def check_overrides(given: list[str]) -> None:
    """Compose what a run is given, and check it as the run would before a model is loaded."""
    run_command.check_flags(given)
    config.register(given)
    options = [word for word in given if not word.startswith("-") and not is_of_launcher(word)]
    run_command.check_names(options)
    jobs = [options]
    if "-m" in given:
        parsed = OverridesParser.create().parse_overrides(options)
        jobs = fold(parsed, frozenset(FOLDED))
    for job in jobs:
        settings = config.settings(config.composed(job))
        config.model_config(settings.model)


def is_of_launcher(word: str) -> bool:
    """Whether an override is of a launcher, which need not be installed; conf/ has it and its options."""
    name, _, value = word.partition("=")
    launchers = {
        path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "conf/hydra/launcher").glob("*.yaml")
    }
    if name == "hydra/launcher":
        assert value in launchers, word
        return True
    if name.startswith("hydra.launcher."):
        key = name.rpartition(".")[2]
        assert any(re.search(rf"^\s*{key}:", text, re.MULTILINE) for text in launchers.values()), word
        return True
    return False


@pytest.mark.parametrize(("words", "block"), CASES)
def test_a_command_is_accepted(words: list[str], block: Block) -> None:
    if (
        block.page.name == "add-a-benchmark.md"
    ):  # that benchmark is a file of the page: `test_add_a_benchmark` runs this
        words = ["benchmark=niah" if word == "benchmark=codes" else word for word in words]
    check(words)


@pytest.mark.parametrize(
    "words",
    [
        ["rnu", "press=snapkv"],
        ["run", "press=snapvk"],
        ["run", "pres=snapkv"],
        ["run", "press=snapkv", "presses.snapkv.windowsize=3"],
        ["run", "press=snapkv", "compression_ratio=1.5"],
        ["run", "benchmark.lenght=1024"],
        ["run", "experiment=dmeo"],
        ["compare", "snapkv", "--margins", "2"],
    ],
    ids=" ".join,
)
def test_a_misspelt_command_is_found(words: list[str]) -> None:
    with pytest.raises((ValueError, AssertionError)):
        check(words)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_command_is_ours_or_known(block: Block) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(block):
        if words[0] == "make":
            assert set(words[1:]) <= targets, words
        else:
            known = (
                words[0] == "longpress"
                or words[:2] == ["python", "evaluate.py"]
                or words[:3] == ["python", "-m", "longpress"]
            )
            assert known or any(tuple(words[: len(start)]) == start for start in FOREIGN), words


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_block_pastes_into_bash_and_zsh(block: Block) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)  # what no quotes protect
        assert not re.search(r"[\[\]{}*?!#<>()~`$;&|\\]", bare), f"{line}: quote it, or leave it out"
        assert not re.search(r"\b[A-Z]{3,}\b", bare), f"{line}: a placeholder cannot be pasted"
    for shell in ("bash", "zsh"):
        if shutil.which(shell):
            subprocess.run([shell, "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf" / "experiment").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_experiment_of_the_pages_exists(path: Path) -> None:
    check(["run", f"experiment={path.stem}"])
