"""`python -m longpress COMMAND …`, which is the command `longpress`."""

import os
import sys
from pathlib import Path

# `python -m` looks in the current folder before anywhere else, so that a `benchmarks/` or `presses/` of
# a user's own would be imported in place of ours. Nothing beyond this package is imported yet: the current
# folder can still be left out, unless it is the one that this package itself comes from.
HERE = os.getcwd()  # noqa: PTH109 (as Python writes it into sys.path)
if not sys.flags.safe_path and sys.path[0] == HERE != str(Path(__file__).parents[1]):
    del sys.path[0]

from longpress.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
