"""Records the connections that this process attempts, and those that listeners accept."""

import asyncio
import contextlib
import ipaddress
import random
import socket
import sys
from collections.abc import Iterator
from typing import Any, Self

# Not ephemeral ports, so that no other process connects here by chance.
UNSHARED_PORTS = range(20_000, 32_000)


def has_ipv6_loopback() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


class Listener:
    """Counts connections, and closes them."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._address = address
        self.accepted = 0

    async def __aenter__(self) -> Self:
        for port in random.sample(UNSHARED_PORTS, 100):
            with contextlib.suppress(OSError):
                self._server = await asyncio.start_server(self._accept, self._address, port)
                self.port = port
                return self
        raise OSError("A listener must find a free port.")

    async def __aexit__(self, *_: object) -> None:
        for _ in range(5):  # accept connections that are still in the backlog
            await asyncio.sleep(0)
        self._server.close()

    async def _accept(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        writer.close()


_watching: list[list[str]] = []


@contextlib.contextmanager
def watched_connections() -> Iterator[list[str]]:
    """`address:port` of every connection that is attempted; none of them leaves this machine."""
    attempts: list[str] = []
    _watching.append(attempts)
    try:
        yield attempts
    finally:
        _watching.remove(attempts)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "socket.connect" or not _watching:
        return
    address, port = arguments[1][:2]
    for attempts in _watching:
        attempts.append(f"{address}:{port}")
    if not ipaddress.ip_address(address).is_loopback:
        raise ConnectionRefusedError("a test connects to loopback only")


sys.addaudithook(_audit)  # an audit hook cannot be removed, so it records only while enabled
