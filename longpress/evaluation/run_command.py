"""Run a sweep and print its table: longpress run press=[snapkv,knorm] compression_ratio=[0.25,0.5]."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.longpress_ray import RayLauncher
from hydra_plugins.longpress_sweeper import FoldingSweeper
from longpress.catalogue import Entry, benchmarks, conf_folder
from longpress.errors import FailedAnswers, one_sentence
from longpress.evaluation.config import CHOICES, composed, presses_beside, register, settings
from longpress.evaluation.option_fields import defaults, described, refuse_unknown
from longpress.evaluation.options import RunOptions
from longpress.evaluation.workers import starting

HELP = """Read a context once, ask every press what it would keep, decode all the answers together.

  longpress run press=snapkv compression_ratio=0.5
  longpress run press=[snapkv,knorm,adakv] compression_ratio=[0.25,0.5,0.75] benchmark=ruler limit=10
  longpress run -m press=snapkv,knorm model=smollm2,qwen3-8b

In a checkout, `python evaluate.py …` is the same. Several jobs (-m) run one after the other, or with
hydra/launcher=slurm, ray or joblib elsewhere.

== Presses (press=NAME or press=[NAME,…]; options of a chosen press: presses.NAME.OPTION=VALUE) ==

{presses}

== Benchmarks (benchmark=NAME; options: benchmark.OPTION=VALUE) ==

{benchmarks}

== Models (model=NAME; any other: model=hub model.path=ORGANISATION/NAME) ==

  {models}

== Options of a run, with their defaults (OPTION=VALUE) ==

{options}

== Configuration that these arguments give ==

{config}"""

GROUPS = (*CHOICES, "press", "experiment", "hydra")
"""First parts of names that may be given beside the options of a run."""

PLUGINS = {
    "slurm": "hydra_plugins.hydra_submitit_launcher",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
}
"""Launchers that others publish: what `hydra/launcher` calls them, as does our extra, and their packages."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: overrides in Hydra's language and Hydra's flags, handed on as they are."""
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="NAME=VALUE", help="see --help")


def run(arguments: argparse.Namespace) -> None:
    """Run what `arguments.overrides` ask for: one job, or with -m several; or print their help.

    Raises:
        ValueError: they ask for what cannot be done.
        FailedAnswers: the run came to its end, but answers failed.
        SystemExit: of a job, which has said why.
    """
    overrides: list[str] = list(arguments.overrides)
    register(overrides)
    # Hydra looks for plugins in folders of sys.path, where an editable install has none
    for plugin in (FoldingSweeper, RayLauncher):
        Plugins.instance().register(plugin)
    if {"--help", "-h"} & set(overrides):
        print(help_text(overrides), flush=True)
        return
    check_flags(overrides)
    check_names(overrides)
    with _command_line(overrides):
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(job)()


def job(config: DictConfig) -> None:
    """One job: check the configuration, answer what is not done yet, print the table.

    Raises:
        SystemExit: it could not be done or answers failed, which is said on stderr.
    """
    with one_sentence(resumes=True):
        checked = settings(config)
        with starting(checked) as workers:
            # workers import and load their models meanwhile
            from longpress.evaluation.runner import EvaluationRunner

            runner = EvaluationRunner(checked)
            runner.run(workers)
        if runner.failed:
            raise FailedAnswers(runner.failed)


def check_flags(arguments: Sequence[str]) -> None:
    """Refuse flags that Hydra does not have, which it would answer with all that it has.

    Raises:
        ValueError: such a flag, or one whose value is missing or none of its choices.
    """

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; options are given as name=value, and flags such as -m come before them")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(list(arguments))


def check_names(arguments: Sequence[str], options: type[RunOptions] = RunOptions) -> None:
    """Refuse options that do not exist and launchers that are not installed, of which Hydra would say less.

    Raises:
        ValueError: names the nearest option, or what to install.
    """
    known = [*defaults(options), *GROUPS]
    for argument in arguments:
        name, equals, value = argument.partition("=")
        # neither a flag nor a name that is added or deleted, which Hydra and `settings` check
        if equals and re.fullmatch(r"\w+([./@].*)?", name):
            refuse_unknown([re.split("[./@]", name)[0]], known)
        plugin = PLUGINS.get(value) if name == "hydra/launcher" else None
        if plugin is not None and importlib.util.find_spec(plugin) is None:
            raise ValueError(
                f"{argument} needs a launcher that is not installed; install it with: "
                f"pip install 'longpress[{value}]'"
            )


def help_text(arguments: Sequence[str], options: type[RunOptions] = RunOptions) -> str:
    """What `--help` prints, with the configuration that the other arguments give.

    Hydra's own help copies everything registered once per group of options, which takes longer than all the
    rest.

    Raises:
        ValueError: the arguments give no configuration.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    check_names(overrides, options)
    width = min(110, max(70, shutil.get_terminal_size((110, 24)).columns))
    return HELP.format(
        presses=_summaries(presses_beside(arguments)),
        benchmarks=_summaries(benchmarks()),
        models=", ".join(sorted(path.stem for path in (conf_folder() / "model").glob("*.yaml"))),
        options=described(options, width),
        config=OmegaConf.to_yaml(composed(overrides)),
    )


def _summaries(entries: Mapping[str, Entry]) -> str:
    """A line for each press or benchmark."""
    width = max(map(len, entries), default=0)
    return "\n".join(f"  {name:<{width}}  {entry.summary}" for name, entry in entries.items())


@contextmanager
def _command_line(overrides: Sequence[str]) -> Iterator[None]:
    """Inside, the overrides are all the arguments that this process has: Hydra reads them there."""
    before = sys.argv
    if before[1:] != list(overrides):
        sys.argv = [f"{before[0]} run", *overrides]
    try:
        yield
    finally:
        sys.argv = before
