"""Run a sweep and print its table: `python evaluate.py press=[snapkv,knorm] compression_ratio=[0.25,0.5] benchmark=ruler`."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from longpress.errors import one_sentence
from longpress.evaluation.config import check_flags, help_text, register, settings
from longpress.evaluation.workers import starting


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent / "conf"), config_name="config")
def main(config: DictConfig) -> None:
    """Check the configuration, run what is not done yet, print the table."""
    with one_sentence():
        checked = settings(config)
        with starting(checked) as workers:
            from longpress.evaluation.runner import EvaluationRunner

            runner = EvaluationRunner(checked)
            runner.run(workers)
    if runner.failed:
        print(
            f"error: {runner.failed} answers failed; their records say why, and the same command tries them again",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    with one_sentence():
        register(sys.argv[1:])
        if {"--help", "-h"} & set(sys.argv):
            print(help_text(sys.argv[1:]), flush=True)
            sys.exit()
        check_flags(sys.argv[1:])
        main()
