"""Multirun that keeps the shared prefill: values of `press` and `compression_ratio` become lists of one job.

Importing this module needs no torch; planning does, since it makes the samples.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from longpress.evaluation.config import Settings, settings


class Folding(Sweeper):
    """One job per combination of all overrides but the folded ones, with any launcher.

    Attributes:
        folded: keys whose swept values become one list, because the run shares prefills between them.
    """

    def __init__(self, folded: Sequence[str]) -> None:
        """Take the keys that share a prefill."""
        self.folded = frozenset(folded)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self.context, self.composed = hydra_context, config
        task = partial(_in_a_sweep, task_function)
        self.engine = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Print the plan, then run every job; exit with 2 for a job that cannot be run (none starts then), with 1 if any failed."""
        overrides = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(
            arguments
        )
        jobs = fold(overrides, self.folded)
        try:
            planned = self._plan(jobs)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        if planned:
            return []
        results = self.engine.launch(jobs, initial_job_idx=0)
        failed = [
            (job, result)
            for job, result in zip(jobs, results, strict=True)
            if result.status != JobStatus.COMPLETED
        ]
        for job, result in failed:
            print(f"error: job {' '.join(job)}: {result._return_value}", file=sys.stderr)
        if failed:
            print(
                f"error: {len(failed)} of {len(jobs)} jobs failed; the same command runs what is missing",
                file=sys.stderr,
            )
            sys.exit(1)
        return results

    def _plan(self, jobs: Sequence[Sequence[str]]) -> bool:
        """Print the plan; whether that was all that was asked for."""
        checked = [self._settings(job) for job in jobs]
        from longpress.evaluation.plan import Plan, describe
        from longpress.evaluation.runner import EvaluationRunner

        whole: dict[str, Plan] = {}
        plans = []
        same = set.intersection(*map(set, jobs))
        for job, one in zip(jobs, checked, strict=True):
            unsharded = replace(one, shard=(0, 1), resolved={**one.resolved, "shard": None})
            key = OmegaConf.to_yaml(OmegaConf.create(unsharded.resolved))
            if key not in whole:  # shards differ in nothing else: make their samples once
                whole[key] = EvaluationRunner(unsharded).plan()
            label = " ".join(value for value in job if value not in same)
            plans.append((label, whole[key].shard(*one.shard)))
        print(describe(plans), flush=True)
        return all(one.plan for one in checked)

    def _settings(self, job: Sequence[str]) -> Settings:
        config = self.context.config_loader.load_sweep_config(self.composed, list(job))
        with open_dict(config):
            del config["hydra"]
        return settings(config)


def fold(overrides: Sequence[Override], folded: frozenset[str]) -> list[list[str]]:
    """Overrides of each job: a product over the swept keys, except for the folded ones, whose values are joined in one list.

    Raises:
        ValueError: an interval or another sweep that lists no values.
    """
    choices: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [
                f"{key}={override.get_value_element_as_str()}" if not override.is_delete() else f"{key}"
            ]
            continue
        if not override.is_discrete_sweep():
            raise ValueError(f"{override.input_line} lists no values; give them separated by commas")
        if key in folded:
            values = override.sweep_iterator(Transformer.identity)
            parts = [part for value in values for part in (value if isinstance(value, list) else [value])]
            choices[key] = [
                f"{key}=[{','.join(dict.fromkeys(map(Override._get_value_element_as_str, parts)))}]"
            ]
        else:
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [list(job) for job in itertools.product(*choices.values())]


def _in_a_sweep(task: TaskFunction, config: DictConfig) -> Any:
    """Run a job; one that exits with an error fails alone, instead of ending the process that runs the others.

    A signal ends all of them (exit code 128 + its number); a launcher that has queued the job again ends its
    process itself, with a negative code (submitit after a time limit or preemption).
    """
    try:
        return task(config)
    except SystemExit as end:
        if isinstance(end.code, int) and not 0 <= end.code <= 128:
            raise
        if end.code:
            raise RuntimeError(
                f"ended with exit code {end.code}; its message stands above, or in the launcher's log"
            ) from None
        return None
