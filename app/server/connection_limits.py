"""How many connections a server has, and how many bytes of requests wait in its memory unparsed."""

from collections import OrderedDict
from typing import Protocol

from app.server.request_errors import ConnectionOverload

# Each takes about 10 kB of memory.
MAX_CONNECTIONS = 4096
# Heads that are not complete, and pipelined requests.
MAX_BUFFERED_BYTES = 64 * 1024 * 1024


class Connection(Protocol):
    def evict(self) -> None:
        """Close at once; no request is in progress."""
        ...


class ConnectionLimits:
    """What all connections of a server may take together."""

    def __init__(
        self, max_connections: int = MAX_CONNECTIONS, max_buffered_bytes: int = MAX_BUFFERED_BYTES
    ) -> None:
        self.buffered_bytes = 0
        self._max_connections = max_connections
        self._max_buffered_bytes = max_buffered_bytes
        self._count = 0
        # Without a request in progress, the longest idle first.
        self._idle: OrderedDict[Connection, None] = OrderedDict()

    def open(self, connection: Connection) -> bool:
        """Count one more connection. At the limit, the one that is idle for longest gives way.

        False if none is idle.
        """
        self._count += 1
        if self._count > self._max_connections:
            if not self._idle:
                return False
            next(iter(self._idle)).evict()
        self._idle[connection] = None
        return True

    def close(self, connection: Connection) -> None:
        self._count -= 1
        self._idle.pop(connection, None)

    def note_idle(self, connection: Connection) -> None:
        self._idle[connection] = None

    def note_busy(self, connection: Connection) -> None:
        self._idle.pop(connection, None)

    def buffer(self, more_bytes: int) -> None:
        """Raises ConnectionOverload; negative when bytes are no longer buffered."""
        self.buffered_bytes += more_bytes
        if more_bytes > 0 and self.buffered_bytes > self._max_buffered_bytes:
            raise ConnectionOverload(
                f"Requests that wait to be read must have at most {self._max_buffered_bytes} bytes together. "
                f"Received: {self.buffered_bytes}."
            )
