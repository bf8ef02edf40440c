"""Run a sweep and print its table: `python evaluate.py press=[snapkv,knorm]` is `longpress run press=[…]`."""

import sys

from longpress.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
