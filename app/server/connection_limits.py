"""How many connections a server has, and how many bytes of requests wait in its memory unparsed."""

import resource
from collections import OrderedDict
from typing import Protocol

from app.server.request_errors import ConnectionOverload

# Each takes about 10 kB of memory.
MAX_CONNECTIONS = 4096
# Heads that are not complete, and pipelined requests.
MAX_BUFFERED_BYTES = 64 * 1024 * 1024
# Below this, a connection is never refused for what others buffer: one request fits.
FREE_BYTES = 8 * 1024
# For the listening socket, log, classifier processes and fetches.
_OTHER_FILES_SHARE = 4


class Connection(Protocol):
    def evict(self) -> None:
        """Close at once."""
        ...


class ConnectionLimits:
    """What all connections of a server may take together."""

    def __init__(
        self, max_connections: int | None = None, max_buffered_bytes: int = MAX_BUFFERED_BYTES
    ) -> None:
        self.buffered_bytes = 0
        self._max_connections = max_connections or _max_connections()
        self._max_buffered_bytes = max_buffered_bytes
        self._count = 0
        # Those without a request in progress, the next to be evicted first.
        self._idle: OrderedDict[Connection, None] = OrderedDict()

    def open(self, connection: Connection) -> bool:
        """Count one more connection. At the limit, an idle one is evicted; False if none is idle."""
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

    def note_idle(self, connection: Connection, *, is_answered: bool = False) -> None:
        """It may be evicted; before the others if it is answered, and only its client has yet to be done."""
        self._idle[connection] = None
        self._idle.move_to_end(connection, last=not is_answered)

    def note_busy(self, connection: Connection) -> None:
        self._idle.pop(connection, None)

    def buffer(self, more_bytes: int, held_bytes: int) -> None:
        """Count bytes of a connection that holds so many now; negative when it holds fewer.

        Raises ConnectionOverload.
        """
        self.buffered_bytes += more_bytes
        if more_bytes > 0 and held_bytes > FREE_BYTES and self.buffered_bytes > self._max_buffered_bytes:
            raise ConnectionOverload(
                f"Requests that wait to be read must have at most {self._max_buffered_bytes} bytes together. "
                f"Received: {self.buffered_bytes}."
            )


def _max_connections() -> int:
    """Fewer where the system lets a process open fewer files."""
    max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if max_files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(8, min(MAX_CONNECTIONS, max_files - max_files // _OTHER_FILES_SHARE))
