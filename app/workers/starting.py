"""Starts the classifier processes that are missing, at a pace that no fault turns into a busy loop."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from time import monotonic
from typing import Any

from app.telemetry.log import logger
from app.workers.connection import Classifier
from app.workers.host import Host
from app.workers.protocol import MAX_START_LOOKS, STALLED_START_LOOKS, StallWatch
from app.workers.queue import QueuedRow, RowQueue

INTERVAL_SECONDS = 30.0


class Notices:
    """Each kind of notice has its own interval."""

    def __init__(self) -> None:
        self._logged_at: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def died(self, reason: str = "") -> None:
        if self._is_due(kind := f"died {reason}"):
            logger.warning("A classifier process died.%s%s", reason and f" {reason}", self._more(kind))

    def cannot_classify(self, refusal: str) -> None:
        if self._is_due(refusal):
            logger.error("A classifier process cannot classify: %s%s", refusal, self._more(refusal))

    def cannot_be_started(self, error: Exception) -> None:
        if self._is_due(kind := f"{type(error).__name__}: {error}"):
            logger.error("A classifier process cannot be started: %s%s", kind, self._more(kind))

    def _is_due(self, kind: str) -> bool:
        now = monotonic()
        if now - self._logged_at.get(kind, -INTERVAL_SECONDS) < INTERVAL_SECONDS:
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return False
        self._logged_at[kind] = now
        return True

    def _more(self, kind: str) -> str:
        count = self._suppressed.pop(kind, 0)
        return f" ({count} more since the last such line)" if count else ""


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


IDLE_SECONDS = 30.0
# One image that takes longer is for the others, while small requests wait.
MAX_CALL_SECONDS = 0.5
_START_AGAIN_SECONDS = 5.0


class Spare:
    """Fed by the pool, with rows that the other processes have no time for."""

    def __init__(
        self,
        start: Callable[[], None],
        take_back: Callable[[Classifier], None],
        queue: RowQueue,
        *,
        is_allowed: bool,
    ) -> None:
        """`take_back` ends a process and gives its rows to the others."""
        self._is_allowed = is_allowed
        self._start = start
        self._take_back = take_back
        self._queue = queue
        self._process: Classifier | None = None
        self._start_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    def look(self, others: Sequence[Classifier]) -> None:
        """Called at intervals while calls are out."""
        for process in others if self._process is None else [*others, self._process]:
            process.note_slow()
        self._help_out(others)
        if not (self._is_allowed and _are_held_up(others) and self._is_wanted(others)):
            return
        if self._process is None:
            self._start_once()
        elif self._process.busy_seconds() > MAX_CALL_SECONDS:
            self._take_back(self._process)
            self.note_lost()
            self._start_at = 0.0
            self._start_once()
        else:
            self.feed(others)

    def feed(self, others: Sequence[Classifier]) -> None:
        """A call, if the process is idle, others are held up, and a small request waits."""
        process = self._process
        if process is None or process.calls or not _are_held_up(others):
            return
        if rows := self._queue.next_small_rows() or self._take_stuck(others):
            process.call(rows)

    def note_ready(self, process: Classifier) -> None:
        self._process = process
        self.note_idle()

    def note_idle(self) -> None:
        self._stop_timer()
        self._idle_timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end_idle)

    def note_lost(self) -> None:
        self._stop_timer()
        self._process = None

    def close(self) -> None:
        self._stop_timer()

    def _start_once(self) -> None:
        if (now := monotonic()) >= self._start_at:
            self._start_at = now + _START_AGAIN_SECONDS
            self._start()

    def _end_idle(self) -> None:
        if self._process is not None and not self._process.calls:
            self._process.leave()
            self.note_lost()

    def _stop_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _help_out(self, others: Sequence[Classifier]) -> None:
        """What waits behind a slow call is for an idle process, if there is one."""
        for idle in others:
            if not idle.calls and (rows := self._take_stuck(others)):
                idle.call(rows)

    def _is_wanted(self, others: Sequence[Classifier]) -> bool:
        return self._queue.has_small_waiting or any(process.stuck_call() for process in others)

    def _take_stuck(self, others: Sequence[Classifier]) -> list[QueuedRow]:
        """Rows that wait behind a slow call; whichever process answers them first counts."""
        for process in others:
            if (call := process.stuck_call()) is not None:
                call.is_repeated = True
                return call.rows
        return []


def _are_held_up(processes: Sequence[Classifier]) -> bool:
    return bool(processes) and all(process.is_slow and process.calls for process in processes)
