"""Worker processes that share the contexts of one run.

Each takes the next context when it has room, and writes records of its own.

What a worker that dies had not finished goes to the others, one context at a time, so that the one that kills
can be told from those that happened to be beside it; a context that has taken two workers with it becomes
failed records. Whatever ends the run, every answer that was known has its record.

A worker says `Ready` once its model is loaded, and is told what is `Known` of the run; `Next` to ask for a
context, and is given a `Work` of the plan, or None: finish what you hold, and if that is nothing, end; `Done`
for the oldest context that it holds; and `Refused` before it ends because the whole run cannot go on.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import OmegaConf

from longpress.analysis.records import RecordWriter
from longpress.evaluation.config import Settings, model_config, settings
from longpress.evaluation.signals import Interruption

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from longpress.evaluation.answering import Known
    from longpress.evaluation.plan import Work

DEATHS = 2
"""How many workers a context may take with it before it is given up."""


class Ready(NamedTuple):
    """A worker's model is loaded.

    Attributes:
        environment: what its numbers depend on besides the configuration.
    """

    environment: Mapping[str, Any]


class Next(NamedTuple):
    """A worker asks for a context."""


class Done(NamedTuple):
    """The oldest context that a worker holds has its records.

    Attributes:
        failures: answers to it that failed.
    """

    failures: int


class Refused(NamedTuple):
    """The run cannot go on.

    Attributes:
        sentence: why.
    """

    sentence: str


def count_workers(asked: int) -> int:
    """Number of processes: `asked`, or one per GPU (one in all without any) for 0."""
    import torch

    return asked or max(1, torch.cuda.device_count())


def device_of(index: int, asked: str, gpus: int) -> str:
    """Device of a worker: for "auto" or "cuda" the GPUs that this process sees, in turn; else as asked."""
    return f"cuda:{index % gpus}" if gpus and asked in ("auto", "cuda") else asked


def threads_of(workers: int) -> int | None:
    """CPU threads of each of several workers: an equal share of the cores; None if OMP_NUM_THREADS says."""
    return None if "OMP_NUM_THREADS" in os.environ else max(1, count_cores() // workers)


def count_cores() -> int:
    """Cores that this process may use; on systems that do not tell, all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(eq=False)
class _Worker:
    """A process as its parent sees it.

    Attributes:
        index: tells which device is its.
        process: the process.
        held: numbers of the contexts that it has not finished, the oldest first.
        waits: whether it has asked for a context.
    """

    index: int
    process: SpawnProcess
    held: deque[int] = field(default_factory=deque)
    waits: bool = False


@contextmanager
def starting(run: Settings) -> Iterator[Workers | None]:
    """Inside, workers import and load their models while this process plans; None where it answers alone."""
    count = 1 if run.options.plan else count_workers(run.options.workers)
    if count == 1:
        yield None
        return
    workers = Workers(run, count)
    try:
        workers.start()
        yield workers
    finally:
        workers.end()


class Workers:
    """The processes of a run, and what each is at.

    Attributes:
        failed: answers that failed, as far as workers could tell.
    """

    def __init__(self, run: Settings, count: int) -> None:
        """Start nothing yet.

        Args:
            run: its settings; each worker gets them with a device of its own.
            count: processes at a time.
        """
        self.failed = 0
        self._run, self._count = run, count
        self._work: Sequence[Work] = ()
        self._todo: deque[int] = deque()  # numbers of contexts, as all below
        self._deaths: list[int] = []
        self._workers: dict[Any, _Worker] = {}

    def start(self) -> None:
        """Start the processes."""
        for index in range(self._count):
            self._start(index)

    def finished(
        self,
        work: Sequence[Work],
        known: Known,
        ready: Callable[[Mapping[str, Any]], None],
        give_up: Callable[[Work, str], None],
    ) -> Iterator[Work]:
        """Every context once it has its records, or once it is given up.

        Args:
            work: what is missing, context by context.
            known: of the run; workers are told.
            ready: called with the environment of the first worker that is ready.
            give_up: called with a context that is given up, and why.

        Raises:
            ValueError: a worker says that the run cannot go on, or none is left.
            Stopped: a signal came; what the workers had decoded is written.
        """
        self._work, self._todo, self._deaths = work, deque(range(len(work))), [0] * len(work)
        described = False
        try:
            while self._workers:
                # every worker that has something to say, or has ended
                connections: list[Any] = wait(list(self._workers))
                for connection in connections:
                    try:
                        message = connection.recv()
                    except (EOFError, OSError):
                        yield from self._bury(connection, give_up)
                        continue
                    worker = self._workers[connection]
                    if isinstance(message, Ready):
                        with suppress(OSError):  # it died; its end of file is read next
                            connection.send(known)
                        if not described:
                            described = True
                            ready(message.environment)
                    elif isinstance(message, Next):
                        worker.waits = True
                    elif isinstance(message, Done):
                        self.failed += message.failures
                        yield self._work[worker.held.popleft()]
                    elif isinstance(message, Refused):
                        raise ValueError(message.sentence)
                # only now, when all that they have finished is known
                self._hand_out()
        finally:
            self.end()
        if self._todo:
            raise ValueError(
                f"no worker is left for {len(self._todo)} contexts; the same command does what is missing"
            )

    def _start(self, index: int) -> None:
        import torch

        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        device = device_of(index, self._run.model.get("device") or "auto", torch.cuda.device_count())
        plain = {**self._run.resolved, "model": {**self._run.model, "device": device}}
        arguments = (theirs, plain, threads_of(self._count))
        process = context.Process(target=_serve, args=arguments, name=f"worker {index}", daemon=True)
        with _interrupts_ignored():
            process.start()
        theirs.close()
        self._workers[ours] = _Worker(index, process)

    def _hand_out(self) -> None:
        """Answer workers that wait for a context, as far as it is known what to answer."""
        for connection, worker in self._workers.items():
            if not worker.waits:
                continue
            # a context that a worker died over is read with no other beside it
            has_suspect = bool(worker.held) and self._deaths[worker.held[0]] > 0
            next_is_suspect = bool(self._todo) and self._deaths[self._todo[0]] > 0
            if self._todo and not (worker.held and (has_suspect or next_is_suspect)):
                worker.held.append(self._todo.popleft())
                answer = self._work[worker.held[-1]]
            elif not worker.held and any(other.held for other in self._workers.values()):
                continue  # one of them may die
            else:
                answer = None  # it finishes what it holds, then asks again
            worker.waits = False
            with suppress(OSError):  # it died; its end of file is read next
                connection.send(answer)

    def _bury(self, connection: Any, give_up: Callable[[Work, str], None]) -> Iterator[Work]:
        """See to what an ended worker leaves unfinished, if it died; gives the contexts that are given up."""
        worker = self._workers.pop(connection)
        connection.close()
        worker.process.join()
        why = f"{worker.process.name} ended with exit code {worker.process.exitcode}"
        if worker.process.exitcode or worker.held:
            print(f"{why}; contexts that it had not finished: {len(worker.held)}", file=sys.stderr)
        for number in worker.held:
            self._deaths[number] += 1
            if self._deaths[number] < DEATHS:
                self._todo.append(number)
            else:
                give_up(self._work[number], f"{why} over this context, as another one did before")
                yield self._work[number]
        if worker.held and self._todo:
            self._start(worker.index)

    def end(self) -> None:
        """Ask every worker that is left to write what it has decoded and to end, and wait for it.

        On a second Ctrl-C they are waited for no longer.
        """
        left, self._workers = list(self._workers.items()), {}
        try:
            for _, worker in left:
                worker.process.terminate()
            for connection, worker in left:
                with suppress(EOFError, OSError):
                    while True:  # it may wait for room to say what nobody needs to know any more
                        connection.recv()
                worker.process.join()
        finally:
            for _, worker in left:
                worker.process.kill()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C, which a terminal sends to all; their parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection, plain: dict[str, Any], threads: int | None) -> None:
    """One worker: load the model, answer contexts as they are handed out."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Slurm's warning of a time limit is sent to all processes; the parent acts on it
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if str(plain["model"]["device"]).startswith("cuda:"):
        torch.cuda.set_device(plain["model"]["device"])
    try:
        _answer_contexts(connection, settings(OmegaConf.create(plain)))
    except EOFError:
        sys.exit(1)  # the parent is gone
    except (ValueError, OSError) as error:
        _say(connection, Refused(str(error)))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)


def _answer_contexts(connection: Connection, run: Settings) -> None:
    """Answer the contexts that the parent hands out, until it has no more.

    Raises:
        EOFError: the parent is gone.
        ValueError: the run cannot go on.
        Stopped: a signal came; what was decoded is written.
    """
    from longpress.evaluation.answering import Answering
    from longpress.evaluation.environment import environment
    from longpress.models.loading import find_model

    loaded = find_model(model_config(run.model)).load()
    with Interruption(patient=True) as interruption, RecordWriter(run.results) as writer:
        _say(connection, Ready(environment(loaded)))
        answering = Answering(run, loaded, connection.recv(), writer)
        told = 0
        while (first := _ask(connection)) is not None:
            # None as an answer ends this round: finish what is held, then ask again
            more = iter(lambda: _ask(connection), None)
            for _ in answering.answer(itertools.chain((first,), more), interruption):
                _say(connection, Done(answering.records.failed - told))
                told = answering.records.failed
            interruption.check()


def _ask(connection: Connection) -> Work | None:
    """The next context from the parent; None: finish what is held."""
    try:
        connection.send(Next())
        return connection.recv()  # type: ignore[no-any-return]
    except (EOFError, OSError):
        return None  # the parent died: finish what is held


def _say(connection: Connection, message: Ready | Done | Refused) -> None:
    """Tell the parent something; nothing where it is gone."""
    with suppress(OSError):
        connection.send(message)
