"""Starts the fork server and, with backoff, missing classifier processes and a spare one; logs faults."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import ExitStack, suppress
from time import monotonic
from typing import Any, TypeVar

from app.settings import Settings
from app.telemetry.log import logger
from app.workers.connection import ClassifierConnection
from app.workers.protocol import (
    MAX_START_CHECKS,
    STALLED_START_CHECKS,
    FrameReader,
    Greeting,
    ProcessOptions,
    ServedModel,
    StallWatch,
    parse_greeting,
    stats_of_groups,
)
from app.workers.queue import MAX_BYTES_PER_CALL, QueuedRow, RowQueue
from model.errors import ArtifactError

T = TypeVar("T")

_PROGRAM = (sys.executable, "-P", "-m", "app.workers.process")
_RECEIVED_BYTES = 64 * 1024
END_TIMEOUT_SECONDS = 5.0
# An order is one byte and a descriptor; the socket fills only if the fork server has stopped reading.
_ORDER_TIMEOUT_SECONDS = 1.0


class ForkServer:
    """The fork server, which is restarted after it has died. Thread-safe.

    The fork server leads a process group, by which the service finds and kills its processes if it hangs.
    """

    def __init__(self, options: ProcessOptions) -> None:
        self._options = options
        self._started = ExitStack()
        self._groups: set[int] = set()
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, _close, self._lock, self._started)
        """End the fork server and all its processes."""
        self._orders = self._start()

    def connect(self) -> socket.socket:
        """Connect to a new process, which sends a Greeting first.

        Blocks, and so must run in a thread. Raises OSError if no process can be started.
        """
        with self._lock:
            if not self.close.alive:
                raise ConnectionAbortedError("The fork server has been closed.")
            ours, theirs = socket.socketpair()
            # So that a whole call fits, as far as net.core.wmem_max allows, and no process waits for the
            # event loop in the middle of one.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_BYTES_PER_CALL)
            try:
                with theirs:
                    self._order_fork(theirs)
            except OSError:
                ours.close()
                raise
            return ours

    def kill(self, pid: int) -> None:
        """Kill a process that has stalled, unless its id belongs to another program by now."""
        with suppress(OSError):
            if os.getpgid(pid) in self._groups:
                os.kill(pid, signal.SIGKILL)

    def kill_others(self, healthy: Collection[int]) -> None:
        """Kill all processes but the healthy ones, and so those that have stalled while starting."""
        for member in stats_of_groups(self._groups):
            if member.pid not in healthy:
                self.kill(member.pid)

    def ticks_without(self, healthy: Collection[int]) -> int | None:
        """CPU time in ticks of all processes but the healthy ones; None if unknown."""
        ticks = [member.ticks for member in stats_of_groups(self._groups) if member.pid not in healthy]
        return sum(ticks) if ticks else None

    def _order_fork(self, connection: socket.socket) -> None:
        try:
            _send_socket(connection, self._orders)
        except OSError:
            self._started.close()
            self._orders = self._start()
            _send_socket(connection, self._orders)

    def _start(self) -> socket.socket:
        orders, theirs = socket.socketpair()
        with ExitStack() as failed, theirs:
            failed.enter_context(orders)
            process = subprocess.Popen(
                [*_PROGRAM, str(theirs.fileno()), self._options.model_dump_json()],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=_environment(),
                process_group=0,
            )
            failed.pop_all()
        orders.settimeout(_ORDER_TIMEOUT_SECONDS)
        self._groups = {*filter(_has_members, self._groups), process.pid}
        self._started.callback(_end, process)
        self._started.enter_context(orders)  # closed first, upon which the fork server ends
        return orders


class ClassifierProcesses:
    """The first processes. They load the network while the service imports its own modules."""

    def __init__(self, settings: Settings) -> None:
        self.host = ForkServer(options_of(settings))
        self._connections = ExitStack()
        self._close = weakref.finalize(self, self._connections.close)
        self.pids: list[int | None] = [None] * settings.classifiers
        """Process ids, once the processes are ready."""
        self._started = [
            self._connections.enter_context(self.host.connect()) for _ in range(settings.classifiers)
        ]

    def wait_until_ready(self) -> ServedModel:
        """Raises ArtifactError if they cannot classify."""
        greetings = [_greeting_of(connection) for connection in self._started]
        self.pids = [greeting.pid for greeting in greetings]
        [model, *_] = [greeting.model for greeting in greetings if greeting.model is not None]
        return model

    def take_connections(self) -> list[socket.socket]:
        """Return the connections, which the caller must close."""
        self._connections.pop_all()
        return self._started

    def close(self) -> None:
        self._close()
        self.host.close()


def options_of(settings: Settings) -> ProcessOptions:
    return ProcessOptions(
        model_path=settings.model_path,
        engine=settings.engine,
        cache_dir=settings.cache_dir,
        limits=settings.image_limits,
        max_image_memory_bytes=settings.max_image_memory_bytes,
        max_image_cpu_seconds=settings.max_image_cpu_seconds,
        image_statistics=settings.image_statistics,
    )


def _environment() -> dict[str, str]:
    """The environment without the service's secrets, which no decoder of untrusted files needs."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("EXT_CLASSIFY_")}
    return {"OPENBLAS_NUM_THREADS": "1", **others}  # one core per process


def _has_members(group_id: int) -> bool:
    try:
        os.killpg(group_id, 0)
    except OSError:
        return False
    return True


def _close(lock: threading.Lock, started: ExitStack) -> None:
    with lock:
        started.close()


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(END_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:  # it is stopped or hangs, as its processes may
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _send_socket(connection: socket.socket, orders: socket.socket) -> None:
    socket.send_fds(orders, [b"f"], [connection.fileno()])


def _greeting_of(connection: socket.socket) -> Greeting:
    """Raises ArtifactError if the process cannot classify."""
    reader = FrameReader()
    connection.settimeout(MAX_START_CHECKS)
    try:
        while piece := connection.recv(_RECEIVED_BYTES):
            for content in reader.read(piece):
                greeting = parse_greeting(content)
                if greeting.model is None:
                    raise ArtifactError(greeting.refusal)
                return greeting
    except TimeoutError:
        raise ArtifactError(f"The network must load within {MAX_START_CHECKS} seconds.") from None
    raise ArtifactError("The fork server ended before it was ready; the log above has its error.")


_CHECK_SECONDS = 1.0


class Starter:
    """Starts processes of one host. Blocking calls run in a thread."""

    def __init__(
        self,
        host: ForkServer,
        connect: Callable[[socket.socket, bool], Awaitable[ClassifierConnection]],
        healthy: Callable[[], Collection[int]],
        faults: "FaultLog",
    ) -> None:
        """`connect` receives a socket, and whether its process is the spare one."""
        self.backoff = StartBackoff()
        self._host = host
        self._connect = connect
        self._healthy = healthy
        self._faults = faults
        self._missing = 0
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        # Connected by a thread, and not yet received by the task that waits for it.
        self._opened: set[socket.socket] = set()

    def start_one(self) -> None:
        """Start one more process, and retry until it has started."""
        self._missing += 1
        if self._starting is None or self._starting.done():
            self._starting = self._create_task(self._start_missing())

    def start_spare(self) -> None:
        """Start the spare process, without a retry."""
        self._create_task(self._start(is_spare=True))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        with self._lock:
            self._is_closed = True
            for connection in self._opened:
                connection.close()
            self._opened.clear()

    def _create_task(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start_missing(self) -> None:
        while self._missing:
            await asyncio.sleep(self.backoff.delay_seconds())
            if await self._start(is_spare=False):
                self._missing -= 1
            else:
                self.backoff.count_failure()

    async def _start(self, *, is_spare: bool) -> bool:
        """Returns False if no process can be started."""
        try:
            connection = await self._connect(await self._open(), is_spare)
        # RuntimeError: no more threads can be started.
        except (OSError, RuntimeError) as error:
            self._faults.log_failed_start(error)
            return False
        self._create_task(self._watch_until_greeted(connection))
        return True

    async def _open(self) -> socket.socket:
        connection = await asyncio.to_thread(self._connect_to_host)
        with self._lock:
            self._opened.discard(connection)
        return connection

    def _connect_to_host(self) -> socket.socket:
        """Runs in a thread, which outlasts the task that waits for it. Raises OSError."""
        connection = self._host.connect()
        with self._lock:
            if self._is_closed:
                connection.close()
                raise ConnectionAbortedError("The service does not need this process any more.")
            self._opened.add(connection)
        return connection

    async def _watch_until_greeted(self, connection: ClassifierConnection) -> None:
        watch = StallWatch(STALLED_START_CHECKS, MAX_START_CHECKS)
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            if connection.has_greeted or connection.is_closed:
                return
            healthy = self._healthy()
            if watch.has_stalled(await asyncio.to_thread(self._host.ticks_without, healthy)):
                await asyncio.to_thread(self._host.kill_others, healthy)
                connection.disconnect("It did not start in time.")
                return


# The delay after the first failed start.
RETRY_SECONDS = 0.5
MAX_DELAY_SECONDS = 5.0
# Hostile images may crash one process after the other, which are replaced at once: three for each row of a
# call. More crashes without a single answer between them have another cause.
CRASHES_WITHOUT_DELAY = 24


class StartBackoff:
    """The delay before the next start: none at first, then twice as long after each failure."""

    def __init__(self) -> None:
        self._failures = 0
        self._crashes = 0

    def count_failure(self) -> None:
        """A process could not be started, or ended without a greeting."""
        self._failures += 1

    def count_crash(self) -> None:
        """A process crashed after its greeting."""
        self._crashes += 1

    def reset_failures(self) -> None:
        """A process has sent a greeting."""
        self._failures = 0

    def reset(self) -> None:
        """A process has answered a call."""
        self._failures = self._crashes = 0

    def delay_seconds(self) -> float:
        failures = max(self._failures, self._crashes - CRASHES_WITHOUT_DELAY)
        if failures <= 0:
            return 0.0
        return min(MAX_DELAY_SECONDS, RETRY_SECONDS * 2.0 ** min(failures - 1, 10))


FAULT_INTERVAL_SECONDS = 30.0


class FaultLog:
    """Logs faults of classifier processes: one line per interval for each kind, with a count."""

    def __init__(self) -> None:
        self._logged_at: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def log_crash(self, reason: str = "") -> None:
        if self._is_due(kind := f"died {reason}"):
            logger.warning("A classifier process died.%s%s", reason and f" {reason}", self._more(kind))

    def log_refusal(self, refusal: str) -> None:
        if self._is_due(refusal):
            logger.error("A classifier process cannot classify: %s%s", refusal, self._more(refusal))

    def log_failed_start(self, error: Exception) -> None:
        if self._is_due(kind := f"{type(error).__name__}: {error}"):
            logger.error("A classifier process cannot be started: %s%s", kind, self._more(kind))

    def _is_due(self, kind: str) -> bool:
        now = monotonic()
        if now - self._logged_at.get(kind, -FAULT_INTERVAL_SECONDS) < FAULT_INTERVAL_SECONDS:
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return False
        self._logged_at[kind] = now
        return True

    def _more(self, kind: str) -> str:
        count = self._suppressed.pop(kind, 0)
        return f" ({count} more since the last such line)" if count else ""


SPARE_IDLE_SECONDS = 30.0
# A call that takes longer belongs to the other processes while small requests wait.
MAX_SPARE_CALL_SECONDS = 0.5
_SPARE_RESTART_SECONDS = 5.0


class SpareProcess:
    """A process for small requests, started while slow calls block all others and ended when it is idle."""

    def __init__(
        self,
        start: Callable[[], None],
        reassign: Callable[[ClassifierConnection], None],
        queue: RowQueue,
        *,
        is_allowed: bool,
    ) -> None:
        """`reassign` ends a process and gives its rows to the others."""
        self._is_allowed = is_allowed
        self._start = start
        self._reassign = reassign
        self._queue = queue
        self._process: ClassifierConnection | None = None
        self._start_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    def check(self, others: Sequence[ClassifierConnection]) -> None:
        """Called at intervals while processes have calls."""
        for process in others if self._process is None else [*others, self._process]:
            process.update_slow()
        _move_to_idle(others)
        if not (self._is_allowed and _are_blocked(others) and self._is_needed(others)):
            return
        if self._process is None:
            self._start_once()
        elif self._process.busy_seconds() > MAX_SPARE_CALL_SECONDS:
            self._reassign(self._process)
            self.remove()
            self._start_at = 0.0
            self._start_once()
        else:
            self.dispatch(others)

    def dispatch(self, others: Sequence[ClassifierConnection]) -> None:
        """Send a call if the process is idle, slow calls block the others, and a small request waits."""
        process = self._process
        if process is None or process.calls or not _are_blocked(others):
            return
        if rows := self._queue.next_small_rows() or _repeat_blocked(others):
            process.call(rows)

    def set_ready(self, process: ClassifierConnection) -> None:
        self._process = process
        self.set_idle()

    def set_idle(self) -> None:
        self.close()
        self._idle_timer = asyncio.get_running_loop().call_later(SPARE_IDLE_SECONDS, self._end_idle)

    def remove(self) -> None:
        self.close()
        self._process = None

    def close(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _start_once(self) -> None:
        if (now := monotonic()) >= self._start_at:
            self._start_at = now + _SPARE_RESTART_SECONDS
            self._start()

    def _end_idle(self) -> None:
        if self._process is not None and not self._process.calls:
            self._process.leave()
            self.remove()

    def _is_needed(self, others: Sequence[ClassifierConnection]) -> bool:
        return self._queue.has_small_waiting or any(process.blocked_call() for process in others)


def _move_to_idle(processes: Sequence[ClassifierConnection]) -> None:
    for idle in processes:
        if not idle.calls and (rows := _repeat_blocked(processes)):
            idle.call(rows)


def _repeat_blocked(processes: Sequence[ClassifierConnection]) -> list[QueuedRow]:
    """Rows of a call that waits behind a slow one, for a second process. The first answer counts."""
    for process in processes:
        if (call := process.blocked_call()) is not None:
            call.is_repeated = True
            return call.rows
    return []


def _are_blocked(processes: Sequence[ClassifierConnection]) -> bool:
    return bool(processes) and all(process.is_slow and process.calls for process in processes)
