"""A keep-alive HTTP/1.1 connection with little overhead for its client: one request at a time."""

import asyncio
from typing import NamedTuple, cast

from tests.benchmarks.request_bodies import Request

_END_OF_HEAD = b"\r\n\r\n"


class Answer(NamedTuple):
    status: int
    body: bytes
    keeps_open: bool


class ConnectionLost(Exception):
    """The server closed the connection instead of answering."""


class AnswerReader:
    """Bytes in, answers out; a body ends by Content-Length, by its last chunk, or with the connection."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._head: _Head | None = None
        self._chunks = bytearray()

    @property
    def has_begun(self) -> bool:
        return bool(self._received) or self._head is not None

    def feed(self, data: bytes) -> Answer | None:
        self._received += data
        while self._head is None:
            end = self._received.find(_END_OF_HEAD)
            if end < 0:
                return None
            head = _parse_head(bytes(self._received[:end]))
            del self._received[: end + len(_END_OF_HEAD)]
            if head.status >= 200:  # what comes before is no answer yet
                self._head = head
        return self._read_chunks() if self._head.is_chunked else self._read_length(self._head)

    def end(self) -> Answer | None:
        """The connection closed: the answer, if that is how it ends."""
        if self._head is None or self._head.is_chunked or self._head.length is not None:
            return None
        return self._finish(bytes(self._received))

    def _read_length(self, head: "_Head") -> Answer | None:
        if head.length is None or len(self._received) < head.length:
            return None
        body = bytes(self._received[: head.length])
        del self._received[: head.length]
        return self._finish(body)

    def _read_chunks(self) -> Answer | None:
        while (end := self._received.find(b"\r\n")) >= 0:
            size = int(bytes(self._received[:end]).partition(b";")[0], 16)
            beginning = end + 2
            if len(self._received) < beginning + size + 2:
                return None
            self._chunks += self._received[beginning : beginning + size]
            del self._received[: beginning + size + 2]
            if size == 0:
                return self._finish(bytes(self._chunks))
        return None

    def _finish(self, body: bytes) -> Answer:
        assert self._head is not None
        answer = Answer(self._head.status, body, self._head.keeps_open)
        self._head = None
        self._chunks.clear()
        return answer


class _Head(NamedTuple):
    status: int
    length: int | None
    is_chunked: bool
    keeps_open: bool


def _parse_head(head: bytes) -> _Head:
    first, *lines = head.decode("latin-1").split("\r\n")
    version, status, *_ = first.split(" ", 2)
    headers = {
        name.strip().lower(): value.strip().lower() for name, _, value in (x.partition(":") for x in lines)
    }
    is_chunked = headers.get("transfer-encoding") == "chunked"
    length = int(headers["content-length"]) if "content-length" in headers else None
    if int(status) in (204, 304):
        length = 0
    is_framed = is_chunked or length is not None
    keeps_open = is_framed and version == "HTTP/1.1" and headers.get("connection") != "close"
    return _Head(int(status), length, is_chunked, keeps_open)


class Connection:
    """Opened at its first request unless before, and again when the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._wire: _Wire | None = None
        self.answers_since_open = 0

    async def ask(self, request: Request) -> Answer:
        """Raises OSError if the port is closed, ConnectionLost if the server closes the connection."""
        kept = self._wire if self._wire is not None and self._wire.is_open else None
        try:
            answer = await (kept or await self.open()).ask(request)
        except ConnectionLost:
            # A server may close what was idle: any client sends again then.
            if kept is None or kept.has_begun_to_answer:
                raise
            answer = await (await self.open()).ask(request)
        self.answers_since_open += 1
        if not answer.keeps_open:
            self.close()
        return answer

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def open(self) -> "_Wire":
        """Raises OSError if the port is closed."""
        self.close()
        self.answers_since_open = 0
        _, self._wire = await asyncio.get_running_loop().create_connection(_Wire, "127.0.0.1", self._port)
        return self._wire


class _Wire(asyncio.Protocol):
    """One TCP connection."""

    def __init__(self) -> None:
        self._reader = AnswerReader()
        self._answer: asyncio.Future[Answer] | None = None
        self.is_open = False

    @property
    def has_begun_to_answer(self) -> bool:
        return self._reader.has_begun

    async def ask(self, request: Request) -> Answer:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines(request)
        return await self._answer

    def close(self) -> None:
        self.is_open = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            asyncio.WriteTransport, transport
        )  # uvloop's class does not inherit from asyncio's
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        if (answer := self._reader.feed(data)) is not None:
            self._resolve(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if (answer := self._reader.end()) is not None:
            self._resolve(answer)
        elif self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionLost("The server closed the connection without an answer."))

    def _resolve(self, answer: Answer) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)
