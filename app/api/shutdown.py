"""Graceful shutdown: fail /readyz, keep serving for the delay, then finish requests within the grace period.

During the delay, load balancers learn from /readyz to send no more requests. Requests that still arrive are
answered, and so are polls for deferred (202) responses.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

from app.errors import Stopped
from app.telemetry.log import log_event

_CHECK_SECONDS = 0.1
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class Shutdown:
    """The first signal begins the shutdown; the same signal again cancels the requests that still run.

    SIGINT (Ctrl-C) skips the delay. Workers receive SIGINT and SIGHUP twice: from the terminal, and as
    another signal from their supervisor. SIGHUP, which a closed terminal sends, drains like SIGTERM; uvicorn
    has no handler for it.
    """

    def __init__(self, delay_seconds: float, grace_seconds: float) -> None:
        self.is_grace_over = False
        self.has_deferred_responses: Callable[[], bool] = lambda: False
        """Whether clients are about to poll for deferred responses that only this process has."""
        self._received: set[int] = set()
        self._delay_seconds = delay_seconds
        self._grace_seconds = grace_seconds
        self._requests: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._server_handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    @property
    def has_begun(self) -> bool:
        return bool(self._received)

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Inside, signals arrive here before the server's handlers, if this is the main thread."""
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.getsignal(number) for number in _SIGNALS}
        self._server_handlers = {number: handler for number, handler in previous.items() if callable(handler)}
        for number in _SIGNALS:
            signal.signal(number, lambda number, _: self._loop.call_soon_threadsafe(self._receive, number))
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler or signal.SIG_DFL)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Cancels the current task, and raises Stopped, if the grace period ends before the context does."""
        if self.is_grace_over:
            raise _stopped()
        task = cast("asyncio.Task[Any]", asyncio.current_task())  # a coroutine always runs in a task
        self._requests.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self.is_grace_over:
                raise
            raise _stopped() from None
        finally:
            self._requests.discard(task)

    def _receive(self, number: int) -> None:
        if number in self._received:
            self._stop_server(number)
            self._end_grace()
            return
        self._received.add(number)
        delay_seconds = 0.0 if number == signal.SIGINT else self._delay_seconds
        log_event("stopping", signal=signal.Signals(number).name, requests=len(self._requests))
        self._loop.call_later(delay_seconds, self._stop_server_once_polled, number)
        self._loop.call_later(delay_seconds + self._grace_seconds, self._end_grace)

    def _stop_server_once_polled(self, number: int) -> None:
        """Wait for polls until the grace period ends; Ctrl-C does not wait."""
        if number != signal.SIGINT and self.has_deferred_responses() and not self.is_grace_over:
            self._loop.call_later(_CHECK_SECONDS, self._stop_server_once_polled, number)
        else:
            self._stop_server(number)

    def _stop_server(self, number: int) -> None:
        """Call uvicorn's handler, which stops listening and exits after the last response."""
        if number != signal.SIGINT:
            number = signal.SIGTERM
        if (handler := self._server_handlers.get(number)) is not None:
            handler(number, None)

    def _end_grace(self) -> None:
        self.is_grace_over = True
        for task in self._requests:
            task.cancel()


def _stopped() -> Stopped:
    return Stopped("The service is shutting down and cannot finish this request. Send it again.")
