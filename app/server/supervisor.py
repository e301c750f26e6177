"""uvicorn's workers under one supervisor, which end as a single process does: who was let in is answered."""

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import threading
from multiprocessing.connection import wait
from pathlib import Path
from time import monotonic

from uvicorn import Config, Server
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess, multiprocess

from app.server.uvicorn_server import LastCallServer

logger = logging.getLogger("uvicorn.error")  # the supervisor has no log of its own

# A worker that ends sooner after its start than this is started again later and later.
_EARLY_SECONDS = 30.0
_MAX_DELAY_SECONDS = 30.0
# While no worker has ever been ready, the service gives up after so many.
_MAX_FAILED_STARTS = 4


class Worker(multiprocess.Process):
    """One of the workers, as the supervisor sees it."""

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.has_been_ready = False
        self.started_at = monotonic()

    @property
    def server(self) -> Server:
        if self._server is None:
            self._server = LastCallServer(self.config)
        return self._server


class Workers(Multiprocess):
    """SIGTERM stops them all, as SIGHUP does one process; once more hastens them. SIGUSR1 is passed on.

    A worker that dies is started again: at once, or later each time when it does not live for long. When none
    of them has ever been ready, the service ends.
    """

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        self.processes: list[Worker] = []  # type: ignore[assignment]
        super().__init__(config, sockets)
        self.has_failed = False
        """The workers could not start."""
        self._has_been_ready = False
        self._is_stopping = False
        self._failures = 0
        self._start_at: dict[int, float] = {}
        multiprocess.Process = Worker  # type: ignore[misc]  # the supervisor takes no other by argument
        signal.signal(signal.SIGTERM, lambda *_: self._stop_or_hasten())
        if hasattr(signal, "SIGHUP"):  # to lose the terminal means to stop
            signal.signal(signal.SIGHUP, lambda *_: self._stop_or_hasten())

    def terminate_all(self) -> None:
        """What connects once no worker listens is refused, not left in a queue that nobody empties."""
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
                process.kill()  # it may hang
                process.join()
                self._note_end(place, process)

    def handle_usr1(self) -> None:
        self._tell_all(signal.SIGUSR1)

    def _note_ready(self, process: Worker) -> None:
        if not process.has_been_ready and process.is_ready(self.config.timeout_worker_healthcheck):
            process.has_been_ready = self._has_been_ready = True
        elif process.has_been_ready and monotonic() - process.started_at > _EARLY_SECONDS:
            self._failures = 0

    def _note_end(self, place: int, process: Worker) -> None:
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

    def _stop_or_hasten(self) -> None:
        """A supervisor hears of no signal while it waits for its workers, and looks twice a second before."""
        if self._is_stopping:
            self._tell_all(signal.SIGTERM)
        else:
            self._is_stopping = True
            self.signal_queue.append(signal.SIGTERM)

    def _tell_all(self, number: int) -> None:
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, number)


def stop_with_supervisor(folder: Path) -> None:
    """In a worker: drain, as at SIGTERM, when the supervisor has died without a word to its workers.

    No other process would then remove the folder of metrics; what is mapped from it stays usable.
    """
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return

    def stop_when_it_ends() -> None:
        wait([supervisor.sentinel])
        shutil.rmtree(folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_it_ends, daemon=True).start()
