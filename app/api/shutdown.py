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

from app.telemetry.log import log_event

_LOOK_SECONDS = 0.1
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class Stopping:
    """A signal begins it, the same once more hastens it; a terminal's Ctrl-C waits for no load balancer.

    A worker receives Ctrl-C and SIGHUP twice: from the terminal, and from its supervisor by another signal.
    SIGHUP, which a lost terminal sends, drains as SIGTERM does; the server itself has no handler for it.
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
        self._server_handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

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
        earlier = {number: signal.getsignal(number) for number in _SIGNALS}
        self._server_handlers = {number: handler for number, handler in earlier.items() if callable(handler)}
        for number in _SIGNALS:
            signal.signal(number, lambda number, _: self._loop.call_soon_threadsafe(self._hear, number))
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler or signal.SIG_DFL)

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
        delay_seconds = 0.0 if number == signal.SIGINT else self._delay_seconds
        log_event("stopping", signal=signal.Signals(number).name, requests=len(self._requests))
        self._loop.call_later(delay_seconds, self._tell_server_once_nothing_is_owed, number)
        self._loop.call_later(delay_seconds + self._grace_seconds, self._hasten)

    def _tell_server_once_nothing_is_owed(self, number: int) -> None:
        """For as long as the grace lasts; whoever presses Ctrl-C is not to wait for it."""
        if number != signal.SIGINT and self.owes_answers() and not self.is_hastened:
            self._loop.call_later(_LOOK_SECONDS, self._tell_server_once_nothing_is_owed, number)
        else:
            self._tell_server(number)

    def _tell_server(self, number: int) -> None:
        """To listen no more, and to end once all is answered."""
        if number != signal.SIGINT:
            number = signal.SIGTERM
        if (handler := self._server_handlers.get(number)) is not None:
            handler(number, None)

    def _hasten(self) -> None:
        self.is_hastened = True
        for task in self._requests:
            task.cancel()
