"""How classifier processes come to be: one that holds the network is started, and forks the others."""

import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from app.settings import Settings
from app.workers.protocol import (
    MAX_START_LOOKS,
    FrameReader,
    Greeting,
    ServedModel,
    parse_greeting,
    stats_of_groups,
)
from model.defaults import Engine
from model.errors import ArtifactError
from model.image_limits import ImageLimits


class ProcessOptions(BaseModel):
    """Which network, and what of an image it may be shown."""

    model_config = ConfigDict(frozen=True)

    model_path: Path
    engine: Engine
    cache_dir: Path
    limits: ImageLimits
    max_image_memory_bytes: int
    max_image_cpu_seconds: float
    image_statistics: bool


_PROGRAM = (sys.executable, "-P", "-m", "app.workers.process")
_RECEIVED_BYTES = 64 * 1024
END_TIMEOUT_SECONDS = 5.0
# An order is a byte and a descriptor; only a process that has stopped reading fills the socket.
_ORDER_TIMEOUT_SECONDS = 1.0


class Host(Protocol):
    """Whatever makes processes."""

    def connect(self) -> socket.socket:
        """To a new process, which says first whether it can classify.

        Blocks, so it is called in a thread. Raises OSError when no process can be started.
        """
        ...

    def kill(self, pid: int) -> None:
        """Kill a classifier process that does not respond."""
        ...

    def kill_others(self, healthy: Collection[int]) -> None:
        """Kill what should have become a classifier process by now: all but those that are."""
        ...

    def ticks_without(self, healthy: Collection[int]) -> int | None:
        """CPU time of what should become a classifier process, in ticks; None if unknown."""
        ...


class ProcessHost:
    """Starts the process that holds the network, and starts it again when it has died. Safe in threads.

    It leads a process group of its own, so that its processes can be found and killed when it hangs.
    """

    def __init__(self, options: ProcessOptions) -> None:
        self._options = options
        self._started = ExitStack()
        self._groups: set[int] = set()
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, _close, self._lock, self._started)
        """End it, and with it whatever it has forked."""
        self._orders = self._start()

    def connect(self) -> socket.socket:
        with self._lock:
            if not self.close.alive:
                raise ConnectionAbortedError("The process that holds the network has been closed.")
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    self._order_fork(theirs)
            except OSError:
                ours.close()
                raise
            return ours

    def kill(self, pid: int) -> None:
        """A process id that belongs to anything else by now is left alone."""
        with suppress(OSError):
            if os.getpgid(pid) in self._groups:
                os.kill(pid, signal.SIGKILL)

    def kill_others(self, healthy: Collection[int]) -> None:
        for member in stats_of_groups(self._groups):
            if member.pid not in healthy:
                self.kill(member.pid)

    def ticks_without(self, healthy: Collection[int]) -> int | None:
        ticks = [member.ticks for member in stats_of_groups(self._groups) if member.pid not in healthy]
        return sum(ticks) if ticks else None

    def _order_fork(self, connection: socket.socket) -> None:
        try:
            _hand_over(connection, self._orders)
        except OSError:
            self._started.close()
            self._orders = self._start()
            _hand_over(connection, self._orders)

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
        self._started.enter_context(orders)  # closed first, which is what the process waits for
        return orders


class ClassifierProcesses:
    """Started at once; while they open the network, the service can import what it needs itself."""

    def __init__(self, settings: Settings) -> None:
        self.host = ProcessHost(options_of(settings))
        self._connections = ExitStack()
        self._close = weakref.finalize(self, self._connections.close)
        self.pids: list[int | None] = [None] * settings.classifiers
        """Of the processes in their order, once they are ready."""
        self._started = [
            self._connections.enter_context(self.host.connect()) for _ in range(settings.classifiers)
        ]

    def wait_until_ready(self) -> ServedModel:
        """Raises ArtifactError when they cannot classify."""
        greetings = [_greeting_of(connection) for connection in self._started]
        self.pids = [greeting.pid for greeting in greetings]
        [model, *_] = [greeting.model for greeting in greetings if greeting.model is not None]
        return model

    def hand_over(self) -> list[socket.socket]:
        """To whoever will close them."""
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
    """Without the service's secrets: what decodes strangers' files has no use for them."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("EXT_CLASSIFY_")}
    return {"OPENBLAS_NUM_THREADS": "1", **others}  # a process is to use one core


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
    except subprocess.TimeoutExpired:  # it is stopped, or hangs, and so may its processes
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _hand_over(connection: socket.socket, orders: socket.socket) -> None:
    socket.send_fds(orders, [b"f"], [connection.fileno()])


def _greeting_of(connection: socket.socket) -> Greeting:
    """Raises ArtifactError unless the process can classify."""
    reader = FrameReader()
    connection.settimeout(MAX_START_LOOKS)
    try:
        while piece := connection.recv(_RECEIVED_BYTES):
            for content in reader.read(piece):
                greeting = parse_greeting(content)
                if greeting.model is None:
                    raise ArtifactError(greeting.refusal)
                return greeting
    except TimeoutError:
        raise ArtifactError(f"The network must open within {MAX_START_LOOKS} seconds.") from None
    raise ArtifactError("The process that holds the network ended before it was ready; it says why above.")
