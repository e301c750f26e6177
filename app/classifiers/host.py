"""How classifier processes come to be: one that holds the network is started, and forks the others."""

import os
import socket
import subprocess
import sys
import weakref
from contextlib import ExitStack
from typing import Protocol

from app.classifiers.frames import FrameReader, Greeting, ServedModel, parse_greeting
from app.classifiers.options import ProcessOptions
from app.settings import Settings
from model.errors import ArtifactError

_PROGRAM = (sys.executable, "-P", "-m", "app.classifiers.process")
_RECEIVED_BYTES = 64 * 1024
END_TIMEOUT_SECONDS = 5.0


class Host(Protocol):
    """Whoever makes processes."""

    def connect(self) -> socket.socket:
        """To a new process, which says first whether it can classify."""
        ...


class ProcessHost:
    """Starts the process that holds the network, and starts it again should it have died."""

    def __init__(self, options: ProcessOptions) -> None:
        self._options = options
        self._started = ExitStack()
        self.close = weakref.finalize(self, self._started.close)
        """End it, and with it whatever it has forked."""
        self._orders = self._start()

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                _hand_over(theirs, self._orders)
            except OSError:
                self._started.close()
                self._orders = self._start()
                _hand_over(theirs, self._orders)
        return ours

    def _start(self) -> socket.socket:
        orders, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [*_PROGRAM, str(theirs.fileno()), self._options.model_dump_json()],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )
        self._started.callback(_end, process)
        self._started.enter_context(orders)  # closed first, which is what the process waits for
        return orders


class ClassifierProcesses:
    """Started at once; while they open the network, the service can import what it needs itself."""

    def __init__(self, settings: Settings) -> None:
        self.host = ProcessHost(options_of(settings))
        self._connections = ExitStack()
        self._close = weakref.finalize(self, self._connections.close)
        self._started = [
            self._connections.enter_context(self.host.connect()) for _ in range(settings.classifiers)
        ]

    def wait_until_ready(self) -> ServedModel:
        """Raises ArtifactError when they cannot classify."""
        [model, *_] = [_model_of(connection) for connection in self._started]
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


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(END_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:  # it is stopped, or hangs
        process.kill()
        process.wait()


def _hand_over(connection: socket.socket, orders: socket.socket) -> None:
    socket.send_fds(orders, [b"f"], [connection.fileno()])


def _model_of(connection: socket.socket) -> ServedModel:
    greeting = _greeting_of(connection)
    if greeting.model is None:
        raise ArtifactError(greeting.refusal)
    return greeting.model


def _greeting_of(connection: socket.socket) -> Greeting:
    reader = FrameReader()
    while piece := connection.recv(_RECEIVED_BYTES):
        for content in reader.read(piece):
            return parse_greeting(content)
    raise ArtifactError("The process that holds the network ended before it was ready; it says why above.")
