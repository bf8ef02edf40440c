"""Multirun that keeps the shared prefill: swept presses, ratios and bits become lists of one job.

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

from longpress.errors import BAD_INPUT, FAILED_ANSWERS
from longpress.evaluation.config import Settings, settings
from longpress.evaluation.options import Shard


class FoldingSweeper(Sweeper):
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
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=partial(run_job, task_function), config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Print the plan, then run every job.

        Raises:
            SystemExit: with code 2 where a job cannot be run (then none starts), with 1 where any failed.
        """
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        jobs = fold(parser.parse_overrides(arguments), self.folded)
        try:
            is_only_planned = self._plan(jobs)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(BAD_INPUT)
        if is_only_planned:
            return []

        results = self._launcher.launch(jobs, initial_job_idx=0)
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
            sys.exit(FAILED_ANSWERS)
        return results

    def _plan(self, jobs: Sequence[Sequence[str]]) -> bool:
        """Print the plan; whether that was all that was asked for.

        Raises:
            ValueError: a job cannot be run.
        """
        checked = [self._settings(job) for job in jobs]
        # only now, when all of them can be run: it takes seconds
        from longpress.evaluation.plan import Plan, describe
        from longpress.evaluation.runner import EvaluationRunner

        unsharded: dict[str, Plan] = {}
        plans = []
        in_every_job = set.intersection(*map(set, jobs))
        for job, run in zip(jobs, checked, strict=True):
            # shards differ in nothing else: make their samples once
            whole = replace(
                run,
                options=replace(run.options, shard=Shard()),
                resolved={**run.resolved, "shard": None},
            )
            key = OmegaConf.to_yaml(OmegaConf.create(whole.resolved))
            if key not in unsharded:
                unsharded[key] = EvaluationRunner(whole).plan()
            shard = run.options.shard
            label = " ".join(override for override in job if override not in in_every_job)
            plans.append((label, unsharded[key].shard(shard.index, shard.count)))
        print(describe(plans), flush=True)
        return all(run.options.plan for run in checked)

    def _settings(self, job: Sequence[str]) -> Settings:
        config = self.context.config_loader.load_sweep_config(self.composed, list(job))
        with open_dict(config):
            del config["hydra"]
        return settings(config)


def fold(overrides: Sequence[Override], folded: frozenset[str]) -> list[list[str]]:
    """Overrides of each job: a product over the swept keys, except for the folded ones.

    Args:
        overrides: of the multirun.
        folded: keys whose swept values are joined in one list.

    Raises:
        ValueError: an interval or another sweep that lists no values.
    """
    choices: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            is_deleted = override.is_delete()
            choices[key] = [key if is_deleted else f"{key}={override.get_value_element_as_str()}"]
        elif not override.is_discrete_sweep():
            raise ValueError(f"{override.input_line} lists no values; give them separated by commas")
        elif key in folded:
            choices[key] = [f"{key}=[{','.join(_values(override))}]"]
        else:
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [list(job) for job in itertools.product(*choices.values())]


def _values(override: Override) -> list[str]:
    """The values of a sweep, each once; those of a list in it one by one."""
    values: list[Any] = []
    for value in override.sweep_iterator(Transformer.identity):
        values += value if isinstance(value, list) else [value]
    return list(dict.fromkeys(Override._get_value_element_as_str(value) for value in values))


def run_job(task: TaskFunction, config: DictConfig) -> Any:
    """Run a job; one that exits with an error fails alone, and does not end the process that runs the others.

    A signal ends all of them (exit code 128 + its number); a launcher that has queued the job again ends its
    process itself, with a negative code (submitit after a time limit or preemption).

    Raises:
        RuntimeError: the job has failed, and has said why.
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
