"""Arguments and end of the commands that need no model: a wrong one gets one sentence and exit code 2, as all bad input does."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec

P = ParamSpec("P")

BAD_INPUT = 2
"""Exit code for what was given or where it lies."""

UNREAD = 128 + 13
"""Exit code of a command whose reader left, as a shell gives it for SIGPIPE."""


class Parser(argparse.ArgumentParser):
    """argparse's parser, which says what is wrong on one line instead of behind its usage."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with 2."""
        print(f"error: {message}; `{self.prog} --help` lists the arguments", file=sys.stderr)
        sys.exit(BAD_INPUT)


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


def exit_code(main: Callable[P, None]) -> Callable[P, int]:
    """`main` with an exit code: 0, or `BAD_INPUT` after one sentence for a `ValueError` or `OSError`."""

    @wraps(main)
    def answered(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            main(*args, **kwargs)
        except BrokenPipeError:
            raise  # see `command`
        except (ValueError, OSError) as error:
            print("error:", " ".join(str(error).split()), file=sys.stderr)
            return BAD_INPUT
        return 0

    return answered


def command(main: Callable[[], int]) -> NoReturn:
    """Run `main` and exit with its code; without a word where whoever reads its output has left, as `head` does."""
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        unread()
    sys.exit(code)


def unread() -> NoReturn:
    """Exit because nobody reads what is printed; what is still held back goes nowhere, or Python would try once more and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(UNREAD)
