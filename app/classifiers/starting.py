"""Starts the classifier processes that are missing, at a pace that no fault turns into a busy loop."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

from app.classifiers.connection import Classifier
from app.classifiers.host import Host
from app.classifiers.notices import Notices
from app.classifiers.progress import MAX_START_LOOKS, STALLED_START_LOOKS, StallWatch

MAX_DELAY_SECONDS = 5.0
# Processes may die of hostile images one after the other, and are replaced at once: three for each row of
# a call. More deaths without a single answer between them are no image's doing.
CRASHES_WITHOUT_DELAY = 24
_LOOK_SECONDS = 1.0


class Pace:
    """How long to wait before the next start: nothing at first, then twice as long after each failure."""

    def __init__(self) -> None:
        self._failures = 0
        self._crashes = 0

    def note_failure(self) -> None:
        """A process could not be started, or did not come up."""
        self._failures += 1

    def note_crash(self) -> None:
        """A process that had come up died."""
        self._crashes += 1

    def note_greeting(self) -> None:
        self._failures = 0

    def note_answers(self) -> None:
        self._failures = self._crashes = 0

    def delay_seconds(self, first_seconds: float) -> float:
        failures = max(self._failures, self._crashes - CRASHES_WITHOUT_DELAY)
        if failures <= 0:
            return 0.0
        return min(MAX_DELAY_SECONDS, first_seconds * 2.0 ** min(failures - 1, 10))


class Starter:
    """Starts processes of one host. What blocks runs in a thread."""

    def __init__(
        self,
        host: Host,
        connect: Callable[[socket.socket, bool], Awaitable[Classifier]],
        healthy: Callable[[], Collection[int]],
        first_delay_seconds: Callable[[], float],
        notices: Notices,
    ) -> None:
        """`connect` is also told whether to make a spare process; `healthy` are ids of those that serve."""
        self.pace = Pace()
        self._host = host
        self._connect = connect
        self._healthy = healthy
        self._first_delay_seconds = first_delay_seconds
        self._notices = notices
        self._missing = 0
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        # Connected by a thread, and not taken by the task that waits for it yet.
        self._opened: set[socket.socket] = set()

    def start_one(self) -> None:
        """Until one has been started, however often it takes."""
        self._missing += 1
        if self._starting is None or self._starting.done():
            self._starting = self._run(self._start_missing())

    def start_spare(self) -> None:
        """Start the spare process; a failure is not retried."""
        self._run(self._start_spare())

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        with self._lock:
            self._is_closed = True
            for connection in self._opened:
                connection.close()
            self._opened.clear()

    def _run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Until it is done, or this is closed."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start(self, *, is_spare: bool) -> bool:
        """False when none can be started."""
        try:
            connection = await self._open()
            classifier = await self._connect(connection, is_spare)
        # RuntimeError: no more threads can be started.
        except (OSError, RuntimeError) as error:
            self._notices.cannot_be_started(error)
            return False
        self._run(self._watch_until_greeted(classifier))
        return True

    async def _open(self) -> socket.socket:
        connection = await asyncio.to_thread(self._connect_to_host)
        with self._lock:
            self._opened.discard(connection)
        return connection

    def _connect_to_host(self) -> socket.socket:
        """In a thread, which outlasts the task that waits for it. Raises OSError."""
        connection = self._host.connect()
        with self._lock:
            if self._is_closed:
                connection.close()
                raise ConnectionAbortedError("The service does not need this process any more.")
            self._opened.add(connection)
        return connection

    async def _start_spare(self) -> None:
        await self._start(is_spare=True)

    async def _start_missing(self) -> None:
        while self._missing:
            await asyncio.sleep(self.pace.delay_seconds(self._first_delay_seconds()))
            if await self._start(is_spare=False):
                self._missing -= 1
            else:
                self.pace.note_failure()

    async def _watch_until_greeted(self, classifier: Classifier) -> None:
        watch = StallWatch(STALLED_START_LOOKS, MAX_START_LOOKS)
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if classifier.has_greeted or classifier.is_closed:
                return
            healthy = self._healthy()
            if watch.has_stalled(await asyncio.to_thread(self._host.ticks_without, healthy)):
                await asyncio.to_thread(self._host.kill_others, healthy)
                classifier.disconnect("It did not come up in time.")
                return
