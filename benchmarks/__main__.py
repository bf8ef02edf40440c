"""`python -m benchmarks BENCHMARK[/TASK] FILE` scores a file of predictions, as `longpress score` does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import score_command
from longpress.errors import one_sentence


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        SystemExit: something was wrong, after one sentence about it.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=score_command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    score_command.add_arguments(parser)
    given = parser.parse_args(arguments)
    with one_sentence():
        score_command.run(given)


if __name__ == "__main__":
    main(sys.argv[1:])
