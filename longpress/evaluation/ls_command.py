"""List presses, benchmarks, models and experiments, one line each.

Presses and benchmarks are listed with their paper and what a press costs; nothing is imported to do so.
Models and experiments are files in conf/, listed with the first line of their comment.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from longpress.catalogue import Entry, benchmarks, conf_folder, presses

KINDS = ("presses", "benchmarks", "models", "experiments")
"""What can be listed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("kind", nargs="?", choices=KINDS, help="what to list; all, if left out")
    parser.add_argument(
        "--presses-dir", metavar="DIR", help="folder with presses of your own, listed as well"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the list.

    Raises:
        ValueError: the folder of presses does not exist, or one of its files cannot be read.
    """
    for kind in [arguments.kind] if arguments.kind else KINDS:
        if kind == "presses":
            lines = _entry_lines(presses(arguments.presses_dir))
        elif kind == "benchmarks":
            lines = _entry_lines(benchmarks())
        else:
            lines = _file_lines(conf_folder() / kind.removesuffix("s"))
        width = max(map(len, lines), default=0)
        print(f"{kind}:")
        for name, text in lines.items():
            print(f"  {name:<{width}}  {text}".rstrip())


def _entry_lines(entries: Mapping[str, Entry]) -> dict[str, str]:
    """Name -> summary, source and cost of presses or benchmarks."""
    return {
        name: f"{entry.summary}  [{entry.source}]" + (f"  Cost: {entry.cost}" if entry.cost else "")
        for name, entry in entries.items()
    }


def _file_lines(folder: Path) -> dict[str, str]:
    """Name -> first line of the comment of every YAML file in a folder."""
    return {path.stem: _first_comment(path) for path in sorted(folder.glob("*.yaml"))}


def _first_comment(path: Path) -> str:
    """The first comment of a YAML file that is not for Hydra; empty where there is none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if line.startswith("#") and text and not text.startswith("@package"):
            return text
    return ""
