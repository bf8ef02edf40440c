"""What a command says when it cannot go on: one sentence on stderr and an exit code, never a traceback for what a user can mend."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from longpress.arguments import BAD_INPUT, unread


@contextmanager
def one_sentence() -> Iterator[None]:
    """Say what was raised on one line and exit: 2 for what was given or where it lies, 128 + its number for a signal.

    Where nobody reads what is printed any more, nothing is said.

    Raises:
        SystemExit: in place of what was raised. Anything else is a mistake of ours and keeps its traceback.
    """
    try:
        with _hydra_raises():
            yield
            sys.stdout.flush()
    except BrokenPipeError:
        unread()
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else ""
        print("error:", " ".join(f"{error} {cause}".split()), file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt as stopped:
        print("stopped: what was answered is kept; the same command goes on from there", file=sys.stderr)
        sys.exit(128 + getattr(stopped, "signal", signal.SIGINT))


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
