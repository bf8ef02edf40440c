"""Ctrl-C and SIGTERM: what is decoded is written before the process ends; a second signal ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

Made = TypeVar("Made")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal asked the run to end.

    Attributes:
        signal: its number; the exit code is 128 + signal.
    """

    def __init__(self, number: int) -> None:
        """After signal `number`."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class Interruption:
    """Turns the first signal into `Stopped`: at once while answers are made, else once the record is written.

    Outside the main thread, which alone may handle signals, it does nothing; a signal that a launcher handles
    is left to it.
    """

    def __init__(self, patient: bool = False) -> None:
        """Handle nothing yet.

        Args:
            patient: a second signal changes nothing, because somebody else sees to it that the process ends.
        """
        self._patient = patient
        self._signal: int | None = None
        self._writing = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            ours = [
                number
                for number in SIGNALS
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
            ]
            self._before = {number: signal.signal(number, self._receive) for number in ours}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hand the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise the `Stopped` of a signal that came while the last records were written."""
        if self._signal is not None:
            raise Stopped(self._signal)

    def guarding(self, answers: Generator[Made, None, None]) -> Iterator[Made]:
        """The same answers; after a signal those that the generator still gives, then `Stopped`."""
        stopped: Stopped | None = None
        try:
            while True:
                try:
                    self._writing = False
                    if self._signal is not None and stopped is None:
                        stopped = Stopped(self._signal)
                        answer = answers.throw(stopped)
                    else:
                        answer = next(answers)
                except StopIteration:
                    return
                finally:
                    self._writing = True
                yield answer
        finally:
            self._writing = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        for handled, handler in self._before.items():  # a second signal does not wait
            signal.signal(handled, signal.SIG_IGN if self._patient else handler)
        self._signal = number
        if not self._writing:
            raise Stopped(number)
