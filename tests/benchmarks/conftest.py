"""What tests of the benchmarks may ask for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from longpress import cli


@pytest.fixture(scope="session")
def score() -> Callable[..., int]:
    """Runs `longpress score …` in this process; its exit code, and what it prints where it prints it."""

    def run(*arguments: object) -> int:
        try:
            cli.main(["score", *map(str, arguments)])
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            return ended.code
        return 0

    return run
