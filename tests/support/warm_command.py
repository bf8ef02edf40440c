"""The project's commands as forks of one process that has imported everything, so that a start costs little.

Each is a process of its own that runs the real file or module from its first line, can be killed, and ends
with its exit code.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "PYTHONPATH": str(ROOT),
}


class Command:
    """A command at work: `Command(folder, "longpress", "tables", …)`."""

    def __init__(
        self,
        folder: Path,
        program: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        largest_file: int | None = None,
    ) -> None:
        """Start it.

        Args:
            folder: what it prints goes to files in it.
            program: a file of the project that ends in .py, or a module.
            arguments: of the command.
            environment: variables that are set for it.
            largest_file: bytes beyond which the system lets it write no file, as where a disk is full.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._printed = {name: folder / name for name in ("stdout", "stderr")}
        printed = {name: str(path) for name, path in self._printed.items()}
        self._process = warm_context().Process(
            target=_run, args=(program, arguments, printed, dict(environment or {}), largest_file)
        )
        self._process.start()

    @property
    def stdout(self) -> str:
        return self._printed["stdout"].read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._printed["stderr"].read_text(encoding="utf-8")

    @property
    def ended(self) -> bool:
        return self._process.exitcode is not None

    def wait(self, seconds: float = 120) -> int | None:
        """Its exit code, or minus the signal that ended it; None: still at work after so many seconds."""
        self._process.join(seconds)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to it."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> int:
        """End it as `kill -9` does; its exit code: -9, or another if it had ended before."""
        self._process.kill()
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def completed(
    program: str, *arguments: str, seconds: float = 300, **surroundings: Any
) -> subprocess.CompletedProcess[str]:
    """What came of a command, as `subprocess.run` would tell; `surroundings` as in `Command`.

    Raises:
        TimeoutExpired: it is still at work after so many seconds; it is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Command(Path(folder), program, *arguments, **surroundings)
        code = run.wait(seconds)
        if code is None:
            run.kill()
            raise subprocess.TimeoutExpired([program, *arguments], seconds, run.stdout, run.stderr)
        return subprocess.CompletedProcess([program, *arguments], code, run.stdout, run.stderr)


@cache
def warm_context() -> Any:
    """The warmed-up process, from which others are forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.warmed"])
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _run(
    program: str,
    arguments: tuple[str, ...],
    printed: Mapping[str, str],
    environment: Mapping[str, str],
    largest_file: int | None,
) -> None:
    """In the fork: what the interpreter does with a file or, after -m, with a module."""
    assert "tests.support.warmed" in sys.modules, "nothing was imported before the fork"
    os.setsid()
    os.environ.update(environment)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        file = os.open(printed[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        runpy.run_path(str(ROOT / program), run_name="__main__")
    else:
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        runpy.run_module(program, run_name="__main__", alter_sys=True)
