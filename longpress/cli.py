"""The command `longpress COMMAND …`, which is also `python -m longpress COMMAND …`.

A command is a module with a docstring, whose first line is its line in `longpress --help`; a function
`add_arguments(parser)` that declares what it takes; and a function `run(arguments)` that raises `ValueError`
for what cannot be done. Only the chosen one is imported, so that `--help` and mistakes answer at once.
`evaluate.py` of a checkout is `longpress run`.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import tokenize
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from longpress import __version__
from longpress.errors import one_sentence

ROOT = Path(__file__).parents[1]
"""Where `longpress` and the packages beside it lie: a checkout, or the folder of installed packages."""

FIRST_EXAMPLE = "longpress run experiment=demo"
"""What a newcomer should try first: it needs the embedded model, no GPU and no network."""


class Command(NamedTuple):
    """One command.

    Attributes:
        module: that implements it.
        group: heading in `longpress --help` under which it stands.
        example: of its use, for `longpress COMMAND --help`.
        overrides: added to what is given, where the arguments are Hydra's and are handed on as they are; None
            where the module declares its arguments.
    """

    module: str
    group: str
    example: str
    overrides: tuple[str, ...] | None = None


MEASURE, READ, LOOK_UP = "Measure", "Read and share results (no model needed)", "Look up"

COMMANDS = {
    "run": Command("longpress.evaluation.run_command", MEASURE, FIRST_EXAMPLE, ()),
    "plan": Command(
        "longpress.evaluation.run_command", MEASURE, "longpress plan experiment=demo", ("plan=true",)
    ),
    "calibrate": Command(
        "longpress.evaluation.calibrate", MEASURE, "longpress calibrate qfilter model=smollm2 out=weights"
    ),
    "bench": Command("longpress.speed.command", MEASURE, "longpress bench --lengths 2048 --growth 0"),
    "lm-eval": Command(
        "longpress.integrations.lm_eval_command",
        MEASURE,
        "longpress lm-eval run --model longpress --tasks gsm8k --batch_size 4 --device cpu"
        " --model_args pretrained=smollm2,press=snapkv,compression_ratio=0.5",
    ),
    "tables": Command("longpress.analysis.tables.write", READ, "longpress tables results/demo"),
    "compare": Command("longpress.analysis.compare", READ, "longpress compare snapkv knorm results/demo"),
    "report": Command("longpress.analysis.report.page", READ, "longpress report results/demo"),
    "export": Command(
        "longpress.analysis.kvpress_export", READ, "longpress export kvpress results/demo exported"
    ),
    "rescore": Command("longpress.evaluation.rescore", READ, "longpress rescore results/demo rescored"),
    "score": Command("benchmarks.score_command", READ, "longpress score ruler/vt predictions.jsonl"),
    "ls": Command("longpress.evaluation.ls_command", LOOK_UP, "longpress ls presses"),
}
"""Every command by its name, in the order of `longpress --help`."""

SUMMARIES = {
    "run": "Sweep presses and budgets over a benchmark, and print the table.",
    "plan": "Say what `run` would do with the same arguments, and stop: no model is loaded.",
}
"""Lines of `longpress --help` for the two commands of one module, whose docstring cannot describe both."""


class Parser(argparse.ArgumentParser):
    """argparse's parser, which raises what is wrong as one sentence, where the original prints and exits."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What the arguments say.

        Raises:
            ValueError: one does not exist; names the nearest.
        """
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            near = get_close_matches(unknown[0].split("=")[0], self._option_string_actions, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            self.error(f"there is no argument {' '.join(unknown)}{hint}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{message}; `{self.prog} --help` lists the arguments")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        arguments: its name and its arguments; None for those that the process was started with.

    Raises:
        SystemExit: it failed, see `longpress.errors`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    with one_sentence(resumes=name in ("run", "plan")):
        _guard_imports()
        if name in ("-h", "--help"):
            print(help_text())
        elif name in ("-V", "--version"):
            print(f"longpress {__version__}")
        elif name in COMMANDS:
            _run(name, given[1:])
        else:
            near = get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"there is no command {name!r}; {hint}existing: {', '.join(COMMANDS)}")


def help_text() -> str:
    """What `longpress --help` prints: one line per command, under headings."""
    width = max(map(len, COMMANDS))
    lines = [
        "usage: longpress COMMAND [ARGUMENTS]",
        "",
        "Read a context once, ask every press what it would keep, decode all the answers together.",
        "",
        f"  {FIRST_EXAMPLE}    # first of all: a sweep on the embedded model, minutes on a CPU",
    ]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        lines += ["", f"{group}:"]
        lines += [
            f"  {name:<{width}}  {summary(name)}"
            for name, command in COMMANDS.items()
            if command.group == group
        ]
    lines += [
        "",
        "`longpress COMMAND --help` describes a command, `longpress --version` prints the version.",
    ]
    return "\n".join(lines)


def summary(name: str) -> str:
    """One line on a command: the first of its module's docstring, read without importing the module."""
    if name in SUMMARIES:
        return SUMMARIES[name]
    path = ROOT.joinpath(*COMMANDS[name].module.split(".")).with_suffix(".py")
    with tokenize.open(path) as file:
        tokens = tokenize.generate_tokens(file.readline)
        docstring = next(token.string for token in tokens if token.type == tokenize.STRING)
    first_line: str = ast.literal_eval(docstring).split("\n", 1)[0]
    return first_line


def parser(name: str) -> Parser:
    """The parser of a command that declares its arguments, that is, of each but `run` and `plan`."""
    command = COMMANDS[name]
    module = import_module(command.module)
    made = Parser(
        prog=f"longpress {name}",
        description=f"{(module.__doc__ or '').strip()}\n\nexample:\n  {command.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(made)
    return made


def _run(name: str, given: Sequence[str]) -> None:
    """Import a command and run it."""
    command = COMMANDS[name]
    if command.overrides is None:
        arguments = parser(name).parse_args(given)
    else:
        arguments = argparse.Namespace(overrides=[*given, *command.overrides])
    import_module(command.module).run(arguments)


def _guard_imports() -> None:
    """Have each Python that is started from here find our packages, and no folder of a user's own.

    A job on Slurm or Ray starts as `python -m …`, which looks in the current folder first: a user's own
    `benchmarks/` or `presses/` there would be imported in place of ours. In a checkout, where the two are
    the same folder, nothing needs to be done.
    """
    if Path.cwd() != ROOT:
        os.environ["PYTHONSAFEPATH"] = "1"
