"""Arguments that the commands of this package share: results folders, the folder to write to, a margin."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Declare `DIR…`, one or several results folders."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="results folder of a run")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Declare `--out DIR`, whose value `folder_to_write` completes."""
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder to write to; needed where several folders are merged, none of which is changed "
        "(default: the results folder itself)",
    )


def add_margin(parser: argparse.ArgumentParser, default: float, meaning: str) -> None:
    """Declare `--margin POINTS`."""
    parser.add_argument(
        "--margin", type=points, default=default, metavar="POINTS", help=f"{meaning} (default: %(default)s)"
    )


def points(text: str) -> float:
    """A number of points of score, 0 to 100.

    Raises:
        ArgumentTypeError: it is no such number.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of points from 0 to 100")
    return number


def folder_to_write(folders: Sequence[Path], out: Path | None) -> Path:
    """Where what is made from results folders goes: `out`, or the only folder itself.

    Raises:
        ValueError: several folders and no `out`, or one of them as `out`.
    """
    if len(folders) == 1:
        return out or folders[0]
    if out is None:
        raise ValueError(
            f"{len(folders)} folders are merged into another one, and none of them is changed: add --out DIR"
        )
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise ValueError(
            f"--out {out} is one of the folders that are merged, none of which is changed; give another"
        )
    return out
