"""Starts the fork server, which loads the network once and forks the classifier processes."""

import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Collection
from contextlib import ExitStack, suppress

from app.settings import Settings
from app.workers.protocol import (
    MAX_START_CHECKS,
    FrameReader,
    Greeting,
    ProcessOptions,
    ServedModel,
    parse_greeting,
    stats_of_groups,
)
from app.workers.queue import MAX_BYTES_PER_CALL
from model.errors import ArtifactError

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
