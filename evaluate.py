"""Run a sweep and print its table: `python evaluate.py press=[snapkv,knorm] compression_ratio=[0.25,0.5] benchmark=ruler`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from evaluation.config import help_text, register, settings
from evaluation.workers import starting


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent / "conf"), config_name="config")
def main(config: DictConfig) -> None:
    """Check the configuration, run what is not done yet, print the table."""
    try:
        checked = settings(config)
        with starting(checked) as workers:
            from evaluation.runner import EvaluationRunner

            runner = EvaluationRunner(checked)
            runner.run(workers)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        print("stopped: what was answered is kept; the same command goes on from there", file=sys.stderr)
        sys.exit(128 + getattr(stopped, "signal", signal.SIGINT))
    if runner.failed:
        print(f"error: {runner.failed} answers failed; their records say why, and the same command tries them again", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    try:
        register(sys.argv[1:])
        if {"--help", "-h"} & set(sys.argv):
            print(help_text(sys.argv[1:]))
            sys.exit()
    except ValueError as error:
        sys.exit(f"error: {error}")
    main()
