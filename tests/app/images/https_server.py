"""An HTTPS server on loopback whose responses the test writes, and which records requests."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Self

import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

Respond = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


class HttpsServer:
    """`respond` gets the request's head and writes the whole response.

    `heads` holds the heads of all requests; `connections` counts completed TLS handshakes. The server closes
    a connection after one response, unless `keep_alive`.
    """

    def __init__(
        self, respond: Respond, *hosts: str, address: str = "127.0.0.1", keep_alive: bool = False
    ) -> None:
        authority = trustme.CA()
        self.client_context = ssl.create_default_context()
        authority.configure_trust(self.client_context)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*hosts).configure_cert(self._context)
        self._respond = respond
        self._address = address
        self._keep_alive = keep_alive
        self.heads: list[str] = []
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self._address, 0, ssl=self._context)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._answer(reader, writer)
            while self._keep_alive:
                await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        await self._respond(head, writer)
        await writer.drain()


class FixedResolver(AbstractResolver):
    """Resolves every name to the same addresses; `asked` records the names."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        self.asked.append(host)
        return [_result(host, address, port) for address in self._addresses]

    async def close(self) -> None:
        pass


def _result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> Respond:
    """Returns a `respond` that sends this body; `length` overrides its Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    head = "\r\n".join(lines) + "\r\n\r\n"

    async def respond(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode() + body)

    return respond
