"""What tests of the records' side may ask for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from longpress import cli


@pytest.fixture(scope="session")
def exit_code() -> Callable[..., int]:
    """Runs `longpress COMMAND …` in this process; its exit code, and what it prints where it prints it."""

    def run(*arguments: object) -> int:
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            return ended.code
        return 0

    return run
