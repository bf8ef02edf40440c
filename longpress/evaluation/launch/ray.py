"""The jobs of a multirun as Ray tasks: `hydra/launcher=ray`.

They run on this machine, or on a cluster whose nodes share a file system. Hydra's own Ray plugin needs a
cloudpickle that submitit and joblib have left behind. Importing this module needs neither Ray nor torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from longpress.catalogue import ROOT


class RayLauncher(Launcher):
    """One Ray task per job.

    Attributes:
        address: of a Ray cluster, "auto" for the one this machine belongs to, None to start one here for the
            time of the sweep.
        job: options of every task, as `ray.remote` takes them: num_cpus, num_gpus, memory in bytes,
            max_retries, resources, …
    """

    def __init__(self, address: str | None, job: DictConfig) -> None:
        """Start nothing yet."""
        self.address = address
        self.job: dict[str, Any] = {str(key): value for key, value in job.items() if value is not None}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `launch`."""
        self.context, self.task, self.composed = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run every job, as many at a time as the resources allow.

        Ray itself starts a task again whose worker or node dies.

        Raises:
            ValueError: Ray is not installed, or there is no cluster at the address.
        """
        try:
            import ray
        except ImportError:
            raise ValueError(
                "hydra/launcher=ray needs Ray; install it with: pip install 'longpress[ray]'"
            ) from None
        setup_globals()
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            with contextlib.chdir(ROOT):  # Ray's processes look there for modules before anywhere else
                ray.init(address=self.address or "local", include_dashboard=None if self.address else False)
        except ConnectionError as error:
            raise ValueError(f"hydra.launcher.address={self.address}: {error}") from error
        try:
            sweep = _Sweep(self.context, self.composed, self.task, Singleton.get_state(), str(Path.cwd()))
            stored = ray.put(sweep)  # once for all jobs
            remote = ray.remote(**self.job)(_run) if self.job else ray.remote(_run)
            tasks = [
                remote.remote(stored, list(overrides), number)
                for number, overrides in enumerate(job_overrides, start=initial_job_idx)
            ]
            done: list[JobReturn] = ray.get(tasks)
        finally:
            ray.shutdown()
        return done


class _Sweep(NamedTuple):
    """What all jobs of a multirun have in common.

    Attributes:
        context: of Hydra.
        composed: the configuration without the overrides of a job.
        task: runs a job.
        singletons: state of Hydra's own objects.
        folder: the current folder of the process that started the sweep.
    """

    context: HydraContext
    composed: DictConfig
    task: TaskFunction
    singletons: Any
    folder: str


def _run(sweep: _Sweep, overrides: list[str], number: int) -> JobReturn:
    """One job, in a process of Ray's."""
    os.chdir(sweep.folder)
    setup_globals()
    Singleton.set_state(sweep.singletons)
    config = sweep.context.config_loader.load_sweep_config(sweep.composed, overrides)
    with open_dict(config):
        config.hydra.job.id, config.hydra.job.num = f"{config.hydra.job.name}_{number}", number
    HydraConfig.instance().set_config(config)
    return run_job(
        hydra_context=sweep.context,
        config=config,
        task_function=sweep.task,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
