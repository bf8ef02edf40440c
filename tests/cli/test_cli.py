"""The command `longpress`: what it offers, how it starts, how it ends."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hydra.errors import HydraException

from longpress import __version__, cli
from longpress.errors import FailedAnswers
from longpress.evaluation.signals import Stopped
from tests.support.running import multirun_command, records

ROOT = Path(__file__).parents[2]
DECLARED = [name for name, command in cli.COMMANDS.items() if command.overrides is None]
"""Commands that argparse reads; the others hand their arguments on to Hydra."""


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> tuple[str, str]:
    """What a command prints to stdout and stderr, and that it ends with `code`."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
        sys.exit(0)
    assert ended.value.code == code
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A command `stub`, whose `run` a test defines."""
    module = types.ModuleType("stub_command", "A command for tests.\n\nIt does what a test says.")
    module.add_arguments = lambda parser: parser.add_argument("--margin", type=float)
    monkeypatch.setitem(sys.modules, "stub_command", module)
    monkeypatch.setitem(cli.COMMANDS, "stub", cli.Command("stub_command", cli.READ, "longpress stub"))
    monkeypatch.setitem(
        cli.COMMANDS, "stub_run", cli.Command("stub_command", cli.READ, "longpress stub_run", ("x=1",))
    )
    return module


def fails(command: types.ModuleType, error: BaseException) -> None:
    def run(arguments) -> None:
        raise error

    command.run = run


def test_help_names_every_command_with_a_line_of_its_own() -> None:
    lines = cli.help_text().splitlines()
    for name in cli.COMMANDS:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.endswith(cli.summary(name))
    assert cli.FIRST_EXAMPLE in cli.help_text()
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_summary_is_one_sentence_without_a_command_line(name: str) -> None:
    summary = cli.summary(name)
    assert 15 < len(summary) <= 96
    assert "python -m" not in summary and "longpress." not in summary


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_is_what_a_newcomer_gets(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, *arguments, code=0)
    assert out == cli.help_text() + "\n" and not err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "--version", code=0) == (f"longpress {__version__}\n", "")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_each_command_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, name, "--help", code=0)
    assert f"longpress {'run' if name == 'plan' else name} " in out and not err
    assert "python -m longpress" not in out


@pytest.mark.parametrize("name", DECLARED)
def test_the_example_of_a_command_is_one(name: str) -> None:
    program, given, *rest = cli.COMMANDS[name].example.split()
    assert (program, given) == ("longpress", name)
    cli.parser(name).parse_args(rest)


@pytest.mark.parametrize("name", DECLARED)
def test_every_argument_is_described(name: str) -> None:
    for action in cli.parser(name)._actions:
        choices = getattr(action, "_choices_actions", None)  # of a word that chooses a further parser
        assert all(choice.help for choice in choices) if choices else action.help


@pytest.mark.parametrize(
    ("given", "meant"), [("tabels", "tables"), ("rnu", "run"), ("compair", "compare"), ("Run", "run")]
)
def test_a_misspelt_command_is_answered_with_the_nearest(
    given: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = said(capsys, given, code=2)
    assert not out and err.startswith(
        f"error: there is no command {given!r}; did you mean {meant}? existing: "
    )
    assert len(err.splitlines()) == 1


def test_a_command_that_is_nothing_like_any(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = said(capsys, "press=knorm", code=2)
    assert err.startswith("error: there is no command 'press=knorm'; existing: run, plan")


def test_a_misspelt_argument_is_answered_with_the_nearest(
    command: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = said(capsys, "stub", "--margn=3", code=2)
    assert err == (
        "error: there is no argument --margn=3 (did you mean --margin?); "
        "`longpress stub --help` lists the arguments\n"
    )
    assert "invalid float value" in said(capsys, "stub", "--margin", "x", code=2)[1]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("limit=0 must be\n  at least 1"), 2, "error: limit=0 must be at least 1"),
        (FileNotFoundError(2, "No such file", "x.jsonl"), 2, "error: [Errno 2] No such file: 'x.jsonl'"),
        (HydraException("no such group"), 2, "error: no such group"),
        (FailedAnswers(3), 1, "error: 3 answers failed; their records say why"),
        (KeyboardInterrupt(), 130, "stopped"),
        (Stopped(15), 143, "stopped"),
    ],
)
def test_what_is_raised_becomes_one_sentence_and_an_exit_code(
    error: BaseException, code: int, words: str, command: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(command, error)
    _, err = said(capsys, "stub", code=code)
    assert err.startswith(words) and len(err.splitlines()) == 1


def test_a_mistake_of_ours_keeps_its_traceback(command: types.ModuleType) -> None:
    fails(command, TypeError("ours"))
    with pytest.raises(TypeError, match="ours"):
        cli.main(["stub"])


def test_arguments_of_hydra_are_handed_on_as_they_are(command: types.ModuleType) -> None:
    seen = []
    command.run = seen.append
    cli.main(["stub_run", "-m", "press=a,b", "--", "--help"])
    assert seen[0].overrides == ["-m", "press=a,b", "--", "--help", "x=1"]


def test_a_run_that_is_stopped_says_how_to_go_on(
    command: types.ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(command, Stopped(2))
    monkeypatch.setitem(cli.COMMANDS, "run", cli.COMMANDS["stub_run"])
    _, err = said(capsys, "run", code=130)
    assert err == "stopped: what was answered is kept; the same command goes on from there\n"


def test_a_reader_that_leaves_ends_the_command_without_a_word() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "longpress", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["tabels"]])
def test_the_door_opens_without_heavy_packages(arguments: list[str]) -> None:
    script = (
        "import json, sys, time; start = time.process_time()\n"
        "from longpress.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print(json.dumps([time.process_time() - start, sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    seconds, modules = json.loads(done.stdout.splitlines()[-1])
    assert not {"torch", "transformers", "pandas", "numpy", "hydra", "omegaconf"} & set(modules)
    assert seconds < 0.5


def test_processes_started_elsewhere_do_not_look_into_their_folder_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.chdir(ROOT)
    cli._guard_imports()
    assert cli.os.environ["PYTHONSAFEPATH"] == ""
    monkeypatch.chdir(tmp_path)
    cli._guard_imports()
    assert cli.os.environ["PYTHONSAFEPATH"] == "1"


@pytest.mark.slow
def test_several_jobs_run_from_any_folder(model_folder: Path, tmp_path: Path) -> None:
    """The installed command, as it is typed: an editable install has no folder of plugins on the path."""
    given = multirun_command(model_folder, tmp_path / "results", "-m", "press=knorm,snapkv", "limit=1")[2:]
    script = Path(sys.executable).with_name("longpress")
    done = subprocess.run(
        [script, "run", *given], capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {record["press"] for record in records(tmp_path / "results")} == {"none", "knorm", "snapkv"}
