"""Run lm-evaluation-harness with a model that knows presses: `--model longpress`.

The arguments are lm-eval's own, whose `--model_args` also take press=, compression_ratio=, last_tokens= and
press.FIELD=. The docs page "Use a press elsewhere" says what is compressed.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from importlib.util import find_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: a command of lm-eval with its own, handed on as they are."""
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="run …", help="see lm_eval --help")


def run(arguments: argparse.Namespace) -> None:
    """Run the command of lm-eval.

    Raises:
        ValueError: lm-eval is not installed.
    """
    if find_spec("lm_eval") is None:
        raise ValueError("lm-eval is not installed; run pip install 'longpress[lm-eval]'")
    import_module("longpress.integrations.lm_eval_model")  # which makes --model longpress known
    before, sys.argv = sys.argv, ["lm_eval", *arguments.arguments]
    try:
        import_module("lm_eval.__main__").cli_evaluate()
    finally:
        sys.argv = before
