"""Arguments of the commands that need no model: a wrong one gets one sentence and exit code 2, as all bad input does."""

from __future__ import annotations

import argparse
import math
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's parser, which says what is wrong on one line instead of behind its usage."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with 2."""
        print(f"error: {message}; `{self.prog} --help` lists the arguments", file=sys.stderr)
        sys.exit(2)


def points(text: str) -> float:
    """A margin in points of score, 0 to 100.

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
