"""uvicorn's workers under one supervisor, which end as a single process does: who was let in is answered."""

import os
import signal
import socket

from uvicorn import Config, Server
from uvicorn.supervisors import Multiprocess, multiprocess

from app.last_call import LastCallServer


class Worker(multiprocess.Process):
    @property
    def server(self) -> Server:
        if self._server is None:
            self._server = LastCallServer(self.config)
        return self._server


class Workers(Multiprocess):
    """SIGTERM stops them all, as SIGHUP does one process; once more hastens them. SIGUSR1 is passed on."""

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self._is_stopping = False
        multiprocess.Process = Worker  # type: ignore[misc]  # the supervisor takes no other by argument
        signal.signal(signal.SIGTERM, lambda *_: self._stop_or_hasten())
        if hasattr(signal, "SIGHUP"):  # to lose the terminal means to stop
            signal.signal(signal.SIGHUP, lambda *_: self._stop_or_hasten())

    def terminate_all(self) -> None:
        """What connects once no worker listens is refused, not left in a queue that nobody empties."""
        for listening in self.sockets:
            listening.close()
        super().terminate_all()

    def handle_usr1(self) -> None:
        self._tell_all(signal.SIGUSR1)

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
