"""uvicorn's server and supervisor, changed to drain connections and to replace workers."""

import asyncio
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from time import monotonic

from uvicorn import Config, Server
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess, multiprocess

logger = logging.getLogger("uvicorn.error")  # as uvicorn's own supervisor
_SILENT = logging.getLogger("ext_classify.silent")
_SILENT.setLevel(logging.CRITICAL)

# uvicorn's default backlog: at most this many connections wait in the kernel.
_MAX_BACKLOG = 2048
# A worker that ends sooner after its start than this is restarted with growing delays.
_EARLY_SECONDS = 30.0
_MAX_DELAY_SECONDS = 30.0
# If no worker has ever been ready, the service exits after this many failed starts.
_MAX_FAILED_STARTS = 4


class GracefulServer(Server):
    """On shutdown, accepts the connections that wait in the kernel's backlog and answers their requests.

    Closing the listening socket would reset them, and their clients could not know whether to retry.
    """

    def __init__(self, config: Config, announce: Callable[[], None] = lambda: None) -> None:
        """`announce` is called once the server accepts connections."""
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        waiting = [connection for server in self.servers for connection in _accept_all(server)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        accepted = (loop.connect_accepted_socket(self._make_protocol, connection) for connection in waiting)
        await asyncio.gather(*accepted, return_exceptions=True)
        await super().shutdown(sockets)
        if self.force_exit:  # the loop then cancels the lifespan, which would log a traceback
            self.lifespan.logger = _SILENT

    def _make_protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _accept_all(server: asyncio.Server) -> Iterator[socket.socket]:
    """Accept all waiting connections, without blocking."""
    for listening in server.sockets:
        # OSError: no connection is left, or no file descriptor. uvloop's sockets cannot accept; a socket of a
        # duplicated descriptor can.
        with suppress(OSError), socket.socket(fileno=os.dup(listening.fileno())) as listener:
            listener.setblocking(False)
            for _ in range(_MAX_BACKLOG):
                connection, _ = listener.accept()
                connection.setblocking(False)
                yield connection


class Worker(multiprocess.Process):
    """A worker process, in the supervisor."""

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.has_been_ready = False
        self.started_at = monotonic()

    def start(self) -> None:
        """Start with SIGINT blocked until the server handles it: it would interrupt the imports."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        super().start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def _healthcheck(self, timeout: float) -> bool | None:
        """As uvicorn's, which waits for an answer even if the process has exited."""
        try:
            self.parent_conn.send(b"ping")
            wait([self.parent_conn, self.process.sentinel], timeout)
            return bool(self.parent_conn.recv()) if self.parent_conn.poll() else None
        except (OSError, EOFError):
            return None

    @property
    def server(self) -> Server:
        if self._server is None:
            self._server = GracefulServer(self.config)
        return self._server


class Supervisor(Multiprocess):
    """Supervises the workers. SIGTERM or SIGHUP stops them, a second one immediately; SIGUSR1 is passed on.

    A worker that exits is restarted, with growing delays if it exits early. If none has ever been ready, the
    service exits.
    """

    def __init__(
        self, config: Config, sockets: list[socket.socket], announce: Callable[[], None] = lambda: None
    ) -> None:
        """`announce` is called once the first worker is ready."""
        self.processes: list[Worker] = []  # type: ignore[assignment]
        super().__init__(config, sockets)
        self._announce = announce
        self.has_failed = False
        """Whether the workers could not start."""
        self.is_interrupted = False
        self._has_been_ready = False
        self._is_stopping = False
        self._failures = 0
        self._start_at: dict[int, float] = {}
        multiprocess.Process = Worker  # type: ignore[misc]  # Multiprocess has no parameter for it
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        if hasattr(signal, "SIGHUP"):  # the terminal was closed
            signal.signal(signal.SIGHUP, lambda *_: self._stop())

    def terminate_all(self) -> None:
        """Also close the listening sockets: connections would wait in a backlog that no worker reads."""
        for listening in self.sockets:
            listening.close()
        super().terminate_all()

    def keep_subprocess_alive(self) -> None:
        for place, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if place in self._start_at:
                self._start_when_due(place)
            elif process.is_alive(self.config.timeout_worker_healthcheck):
                self._note_ready(process)
            else:
                process.kill()  # it may be hanging
                process.join()
                self._note_exit(place, process)

    def handle_int(self) -> None:
        self.is_interrupted = True
        super().handle_int()

    def handle_usr1(self) -> None:
        self._signal_all(signal.SIGUSR1)

    def _note_ready(self, process: Worker) -> None:
        if not process.has_been_ready and process.is_ready(self.config.timeout_worker_healthcheck):
            if not self._has_been_ready:
                self._announce()
            process.has_been_ready = self._has_been_ready = True
        elif process.has_been_ready and monotonic() - process.started_at > _EARLY_SECONDS:
            self._failures = 0

    def _note_exit(self, place: int, process: Worker) -> None:
        if process.has_been_ready and monotonic() - process.started_at > _EARLY_SECONDS:
            self._start_at[place] = 0.0
        else:
            self._failures += 1
            self._start_at[place] = monotonic() + self._delay_seconds(process)
        if self._has_been_ready:
            logger.warning("Worker [%s] ended (exit code %s).", process.pid, process.exitcode)
        elif process.exitcode == STARTUP_FAILURE or self._failures >= _MAX_FAILED_STARTS:
            logger.error("The workers cannot start (exit code %s).", process.exitcode)
            self.has_failed = True
            self.should_exit.set()

    def _delay_seconds(self, process: Worker) -> float:
        if process.has_been_ready and self._failures == 1:
            return 0.0
        return float(min(_MAX_DELAY_SECONDS, 2 ** min(self._failures - 1, 10)))

    def _start_when_due(self, place: int) -> None:
        if monotonic() >= self._start_at[place]:
            del self._start_at[place]
            process = Worker(self.config, self.sockets)
            process.start()
            self.processes[place] = process

    def _stop(self) -> None:
        """Queue the first signal; pass a second one to the workers, as the supervisor only waits for them."""
        if self._is_stopping:
            self._signal_all(signal.SIGTERM)
        else:
            self._is_stopping = True
            self.signal_queue.append(signal.SIGTERM)

    def _signal_all(self, number: int) -> None:
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, number)


def stop_with_supervisor(folder: Path) -> None:
    """In a worker: shut down as on SIGTERM if the supervisor dies.

    Then no other process would remove the folder of metrics; files that are mapped from it remain usable.
    """
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return

    def stop_when_it_exits() -> None:
        wait([supervisor.sentinel])
        shutil.rmtree(folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_it_exits, daemon=True).start()
