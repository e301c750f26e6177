"""From the signal to the end: not ready at once, answering on for a while, then ending what was begun.

A load balancer learns from /readyz that no more is to come here; what it still sends until then is answered,
and so is whoever comes for an answer that was promised.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

from app.log import log_event

_LOOK_SECONDS = 0.1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """A signal begins it, the same once more hastens it; a terminal's Ctrl-C waits for no load balancer.

    Of Ctrl-C, a worker hears twice: from the terminal, and from its supervisor by another signal.
    """

    def __init__(self, delay_seconds: float, grace_seconds: float) -> None:
        self.is_hastened = False
        self.owes_answers: Callable[[], bool] = lambda: False
        """Whether some that were promised are to be fetched yet, and from nobody else."""
        self._heard: set[int] = set()
        self._delay_seconds = delay_seconds
        self._grace_seconds = grace_seconds
        self._requests: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._earlier: dict[int, Callable[[int, FrameType | None], Any]] = {}

    @property
    def has_begun(self) -> bool:
        return bool(self._heard)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Hear signals before the server does, inside; only a process's main thread hears any."""
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for number in _SIGNALS:
            earlier = signal.getsignal(number)
            if callable(earlier):
                self._earlier[number] = earlier
                signal.signal(number, lambda number, _: self._loop.call_soon_threadsafe(self._hear, number))
        try:
            yield
        finally:
            for heard, handler in self._earlier.items():
                signal.signal(heard, handler)

    def begin_request(self) -> "asyncio.Task[Any]":
        """The task that runs, which is cancelled when there is no more time for it, until it has ended."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())  # there is one inside every coroutine
        self._requests.add(task)
        return task

    def end_request(self, task: "asyncio.Task[Any]") -> None:
        self._requests.discard(task)

    def _hear(self, number: int) -> None:
        if number in self._heard:
            self._tell_server(number)
            self._hasten()
            return
        self._heard.add(number)
        delay_seconds = self._delay_seconds if number == signal.SIGTERM else 0.0
        log_event("stopping", signal=signal.Signals(number).name, requests=len(self._requests))
        self._loop.call_later(delay_seconds, self._tell_server_once_nothing_is_owed, number)
        self._loop.call_later(delay_seconds + self._grace_seconds, self._hasten)

    def _tell_server_once_nothing_is_owed(self, number: int) -> None:
        """For as long as the grace lasts; whoever presses Ctrl-C is not to wait for it."""
        if number == signal.SIGTERM and self.owes_answers() and not self.is_hastened:
            self._loop.call_later(_LOOK_SECONDS, self._tell_server_once_nothing_is_owed, number)
        else:
            self._tell_server(number)

    def _tell_server(self, number: int) -> None:
        """To listen no more, and to end once all is answered."""
        self._earlier[number](number, None)

    def _hasten(self) -> None:
        self.is_hastened = True
        for task in self._requests:
            task.cancel()
