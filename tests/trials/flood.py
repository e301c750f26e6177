"""A load that costs little: one thread, epoll, keep-alive connections, bodies made before.

An open loop sends at random times (Poisson) whatever the service does, a closed one keeps its connections
busy. `python -m tests.benchmarks.load` checks every answer, at four times the CPU time.
"""

import random
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests.benchmarks.request_bodies import Request
from tests.benchmarks.window import quantile

SEED = 7
WARM_UP_SECONDS = 1.0
# After the end, for the answers to what was sent last.
DRAIN_SECONDS = 5.0
_RECEIVED_AT_ONCE = 1 << 20


@dataclass
class Tally:
    """Rates and CPU time are of what was answered in the window, latencies of what was due in it."""

    seconds: float
    answers: Counter[int] = field(default_factory=Counter)
    """By status; 0 where the service closed the connection, -1 for 200 with a label too few."""
    unanswered: int = 0
    """Of the requests due in the window, once DRAIN_SECONDS have passed."""
    served_ms: list[float] = field(default_factory=list)
    """From the time at which the request was due."""
    refused_ms: list[float] = field(default_factory=list)
    """From the time at which it was sent."""
    late_ms: list[float] = field(default_factory=list)
    """How much later than due requests were sent, because this load was busy."""
    unsent: int = 0
    """Due while no connection was free: all of them waited for the service."""
    cpu_seconds: float = 0.0
    """Of this load."""
    service_cpu_seconds: float = 0.0


def quantiles(values: Sequence[float]) -> str:
    p50, p99 = (quantile(values, share) or 0.0 for share in (0.5, 0.99))
    return f"{p50:.1f} / {p99:.1f}"


class Connection:
    """One request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.due = self.sent_at = 0.0
        self.unsent = memoryview(b"")
        self._received = b""

    def send(self, request: bytes, due: float) -> None:
        self.due, self.sent_at = due, time.perf_counter()
        self.unsent, self._received = memoryview(request), b""
        self.send_rest()

    def send_rest(self) -> None:
        with suppress(OSError):  # `receive` meets it again
            self.unsent = self.unsent[self.socket.send(self.unsent) :]

    def receive(self) -> bytes | None:
        """The whole answer, None if there is more to come, empty if the connection has been closed."""
        try:
            data = self.socket.recv(_RECEIVED_AT_ONCE)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        if not data:
            return b""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return None
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return self._received if len(body) >= length else None


class Flood:
    """Sends the requests in turn, over at most `connections` connections.

    `rate` is in requests a second; None keeps every connection busy instead.
    """

    def __init__(
        self, port: int, requests: Iterator[Request], rows: int, connections: int, rate: float | None = None
    ) -> None:
        self._port = port
        self._requests = requests
        self._rows = rows
        self._rate = rate
        self._epoll = select.epoll()
        self._busy: dict[int, Connection] = {}
        self._idle: list[Connection] = []
        self._most = connections
        self._due = 0.0

    def run(self, seconds: float, service_cpu_seconds: Callable[[], float]) -> Tally:
        self._opens = time.perf_counter() + WARM_UP_SECONDS
        self._closes = self._opens + seconds
        self.tally = Tally(seconds)
        random.seed(SEED)
        self._send_until(self._opens)
        service, own = service_cpu_seconds(), time.process_time()
        self._send_until(self._closes)
        self.tally.service_cpu_seconds = service_cpu_seconds() - service
        self.tally.cpu_seconds = time.process_time() - own
        while self._busy and time.perf_counter() < self._closes + DRAIN_SECONDS:
            self._poll(0.01)
        self.tally.unanswered = sum(map(self._is_counted, self._busy.values()))
        for connection in [*self._busy.values(), *self._idle]:
            connection.socket.close()
        return self.tally

    def _send_until(self, end: float) -> None:
        while (now := time.perf_counter()) < end:
            self._due = self._due or now
            while self._rate and self._due <= now:
                self._send(self._due)
                self._due += random.expovariate(self._rate)
            while not self._rate and len(self._busy) < self._most:
                self._send(now)
            self._poll(0.001)

    def _free(self) -> Connection | None:
        if self._idle:
            return self._idle.pop()
        if len(self._busy) >= self._most:
            return None
        connection = Connection(self._port)
        self._epoll.register(connection.socket, select.EPOLLIN)
        return connection

    def _is_counted(self, connection: Connection) -> bool:
        return self._opens <= connection.due < self._closes

    def _send(self, due: float) -> None:
        is_counted = self._opens <= due < self._closes
        connection = self._free()
        if connection is None:
            self.tally.unsent += is_counted
            return
        self._busy[connection.socket.fileno()] = connection
        request = next(self._requests)
        connection.send(request.head + request.body, due)
        if connection.unsent:
            self._epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)
        if is_counted:
            self.tally.late_ms.append(1000 * (connection.sent_at - due))

    def _poll(self, seconds: float) -> None:
        for number, event in self._epoll.poll(seconds):
            connection = self._busy.get(number)
            if connection is None:  # closed by the service while idle
                self._epoll.unregister(number)
                self._idle = [one for one in self._idle if one.socket.fileno() != number]
                continue
            if event & select.EPOLLOUT and connection.unsent:
                connection.send_rest()
                if not connection.unsent:
                    self._epoll.modify(number, select.EPOLLIN)
            if event & ~select.EPOLLOUT and (answer := connection.receive()) is not None:
                self._end(number, connection, answer)

    def _end(self, number: int, connection: Connection, answer: bytes) -> None:
        now = time.perf_counter()
        del self._busy[number]
        if not answer or b"\r\nconnection: close\r\n" in answer or connection.unsent:
            self._epoll.unregister(number)
            connection.socket.close()
        else:
            self._idle.append(connection)
        status = int(answer[9:12] or 0)
        if status == 200 and (answer.count(b'"label"') < self._rows or b'"code"' in answer):
            status = -1
        self.tally.answers[status] += self._opens <= now < self._closes
        if self._is_counted(connection) and status == 200:
            self.tally.served_ms.append(1000 * (now - connection.due))
        elif self._is_counted(connection) and status == 429:
            self.tally.refused_ms.append(1000 * (now - connection.sent_at))
