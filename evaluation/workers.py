"""Worker processes that share the contexts of one run: each takes the next context when it has room, and writes records of its own.

A worker that dies is reported, and what it had not finished goes to the others; a context that took two workers with it is left for
the next run. Whatever ends the run, every answer that was known has its record.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from rich.progress import Progress, TaskID

from evaluation.config import Settings

if TYPE_CHECKING:
    from evaluation.plan import Plan

DEATHS = 2
"""Workers that a context may take with it before it is left alone."""


def count_workers(asked: int) -> int:
    """Number of processes: `asked`, or one per GPU (one in all without any) for 0."""
    import torch

    return asked or max(1, torch.cuda.device_count())


def device_of(index: int, asked: str) -> str:
    """Device of a worker: with `model.device=auto` or `cuda` the GPUs in turn, as far as this process sees them; else as asked."""
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{index % count}" if count and asked in ("auto", "cuda") else asked


def run_workers(settings: Settings, plan: Plan, bar: Callable[[], tuple[Progress, TaskID]]) -> None:
    """Share the work of a plan out over `settings.workers` processes.

    Args:
        settings: of the run; each worker gets them with its own device.
        plan: what there is to do; workers make the samples again, and are told which contexts to take.
        bar: gives the progress display and its task.

    Raises:
        ValueError: contexts are left because workers died over them; what the others answered has its records.
    """
    work = [[sample.id for sample in asked] for asked, _ in plan.work()]
    todo = deque(range(len(work)))
    deaths = [0] * len(work)
    context = multiprocessing.get_context("spawn")
    processes: dict[Any, Any] = {}
    taken: dict[Any, list[int]] = {}
    waiting: list[Any] = []
    for index in range(min(count_workers(settings.workers), len(work))):
        ours, theirs = context.Pipe()
        model = settings.model | {"device": device_of(index, settings.model.get("device") or "auto")}
        process = context.Process(target=_work, args=(theirs, replace(settings, model=model, workers=1)), name=f"worker {index}")
        process.start()
        theirs.close()
        processes[ours], taken[ours] = process, []
    lost: list[int] = []
    progress, task = bar()
    try:
        while processes:
            for connection in wait(list(processes)):
                try:
                    finished = connection.recv()  # type: ignore[union-attr]
                except (EOFError, OSError):
                    process, had = processes.pop(connection), taken.pop(connection)
                    process.join()
                    waiting = [one for one in waiting if one is not connection]
                    if process.exitcode or had:
                        print(f"{process.name} ended with exit code {process.exitcode}, {len(had)} contexts unfinished", file=sys.stderr)
                    for at in had:
                        deaths[at] += 1
                        (lost if deaths[at] >= DEATHS else todo).append(at)
                else:
                    if finished:
                        taken[connection].pop(0)  # a worker finishes in the order in which it takes
                        progress.update(task, advance=1)
                    else:
                        waiting.append(connection)
            while waiting and (todo or not any(taken.values())):
                at = todo.popleft() if todo else None
                connection = waiting.pop(0)
                if at is not None:
                    taken[connection].append(at)
                try:
                    connection.send(None if at is None else work[at])
                except OSError:
                    pass  # it died; its end of file is read next
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()
    if lost or todo:
        raise ValueError(f"{len(lost) + len(todo)} contexts were not finished because workers died; the same command does what is missing")


def _work(connection: Connection, settings: Settings) -> None:
    """One worker: read and answer contexts as they are handed out."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    from evaluation.runner import EvaluationRunner

    if str(settings.model["device"]).startswith("cuda"):
        torch.cuda.set_device(settings.model["device"])
    try:
        EvaluationRunner(settings).serve(lambda: _handed_out(connection), lambda: connection.send(True))
    except KeyboardInterrupt:
        sys.exit(130)


def _handed_out(connection: Connection) -> Iterator[Sequence[str]]:
    """Sample ids of one context after the other."""
    while True:
        connection.send(False)
        ids = connection.recv()
        if ids is None:
            return
        yield ids
