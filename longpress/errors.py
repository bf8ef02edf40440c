"""What a command says when it cannot go on: one sentence on stderr and an exit code.

Exit codes: 0, or `FAILED_ANSWERS` (1) where answers of a run failed, `BAD_INPUT` (2) for what was given or
where it lies, 128 + n for signal n, `READER_LEFT` (141) where nobody reads what is printed any more. Anything
else that is raised is a mistake of this program and keeps its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

FAILED_ANSWERS = 1
"""Exit code of a run that ended, some of whose answers failed."""

BAD_INPUT = 2
"""Exit code for what was given, or where it lies."""

READER_LEFT = 128 + 13
"""Exit code of a command whose reader has left, as a shell gives it for SIGPIPE."""

OMEGACONF = ("omegaconf.errors", "OmegaConfBaseException")
"""Module and class of what is raised about the values of a configuration."""


class FailedAnswers(Exception):  # noqa: N818 (the run itself went to its end)
    """A run came to its end, but some of its answers failed.

    Attributes:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        """After `count` failed answers."""
        super().__init__(
            f"{count} answers failed; their records say why, and the same command tries them again"
        )
        self.count = count


@contextmanager
def one_sentence(resumes: bool = False) -> Iterator[None]:
    """Say on one line what was raised inside, and exit.

    Args:
        resumes: whether the same command goes on where it was stopped, which is then said.

    Raises:
        SystemExit: in place of what was raised.
    """
    try:
        with _hydra_raises():
            yield
            sys.stdout.flush()  # here, where it is known what to do when nobody reads
    except BrokenPipeError:
        _leave_quietly()
    except KeyboardInterrupt as stopped:
        kept = ": what was answered is kept; the same command goes on from there" if resumes else ""
        print(f"stopped{kept}", file=sys.stderr)
        sys.exit(128 + getattr(stopped, "signal", signal.SIGINT))
    except FailedAnswers as failed:
        _say(failed)
        sys.exit(FAILED_ANSWERS)
    except Exception as error:
        hydra = _loaded("hydra.errors", "HydraException")
        refusals: tuple[type[Exception], ...] = (ValueError, OSError, *hydra, *_loaded(*OMEGACONF))
        if not isinstance(error, refusals):
            raise
        _say(error)
        sys.exit(BAD_INPUT)


def _say(error: Exception) -> None:
    """Print what an error says on one line, with what OmegaConf said before Hydra did: it names the value."""
    cause = error.__cause__
    named = cause if isinstance(cause, _loaded(*OMEGACONF)) and str(cause) not in str(error) else ""
    print("error:", " ".join(f"{error} {named}".split()), file=sys.stderr)


def _loaded(module: str, name: str) -> tuple[type[Exception], ...]:
    """An exception class, if its module is imported; if not, nobody can have raised it."""
    return (getattr(sys.modules[module], name),) if module in sys.modules else ()


def _leave_quietly() -> NoReturn:
    """Exit because nobody reads what is printed.

    What Python still holds back goes nowhere; it would try once more at its end, and complain.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(READER_LEFT)


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Have Hydra raise its own errors, which it prints otherwise, some with a traceback."""
    name = "HYDRA_FULL_ERROR"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
