"""uvicorn, which at its end takes in the connections that the system has made and it has not seen yet.

They would be reset otherwise: their callers have sent a request, and never learn what became of it.
"""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import uvicorn

# The system lets no more wait for a server (uvicorn's backlog); who comes after them comes too late.
_MOST_WAITING = 2048


class LastCallServer(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        waiting = [connection for server in self.servers for connection in _accept_all(server)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        taken_in = (loop.connect_accepted_socket(self._make_protocol, connection) for connection in waiting)
        await asyncio.gather(*taken_in, return_exceptions=True)
        await super().shutdown(sockets)

    def _make_protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _accept_all(server: asyncio.Server) -> Iterator[socket.socket]:
    """Without waiting for more."""
    for listening in server.sockets:
        # None is left, or there is no descriptor for one more. uvloop shows its sockets only, but another
        # descriptor of the same one can accept.
        with suppress(OSError), socket.socket(fileno=os.dup(listening.fileno())) as listener:
            listener.setblocking(False)
            for _ in range(_MOST_WAITING):
                connection, _ = listener.accept()
                connection.setblocking(False)
                yield connection
