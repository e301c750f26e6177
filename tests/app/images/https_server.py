"""A real https server on loopback, speaking as the test wishes, that remembers who connected."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Self

import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

Respond = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


class HttpsServer:
    """`respond` gets the request's head and writes the whole answer; `heads` keeps what was asked."""

    def __init__(self, respond: Respond, *hosts: str) -> None:
        authority = trustme.CA()
        self.client_context = ssl.create_default_context()
        authority.configure_trust(self.client_context)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*hosts).configure_cert(self._context)
        self._respond = respond
        self.heads: list[str] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            await self._respond(head, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


class FixedResolver(AbstractResolver):
    """Resolves every name to the same addresses."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=2, proto=0, flags=0)
            for address in self._addresses
        ]

    async def close(self) -> None:
        pass


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> Respond:
    """Respond with this body."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    head = "\r\n".join(lines) + "\r\n\r\n"

    async def respond(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode() + body)

    return respond
