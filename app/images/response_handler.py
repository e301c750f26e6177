"""The client's side of a connection, with limits on what a host may send beside the bytes of an image.

aiohttp parses whatever arrives in one piece on the event loop and queues every message. Interim responses,
chunks of a byte and long heads then cost seconds of the event loop and gigabytes of memory.
"""

import asyncio
from typing import Any

from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader

from app.errors import FetchFailed

# A piece is parsed in a millisecond or two, though each of its messages or chunks is as short as can be.
HEAD_PIECE_BYTES = 1024
BODY_PIECE_BYTES = 4 * 1024
# A head of the large stores has a few KiB; chunks of 48 bytes and more exceed neither limit.
MAX_OVERHEAD_BYTES = 64 * 1024
_BODY_BYTES_PER_OVERHEAD_BYTE = 8
# RFC 9110, section 15.2, allows any number. A host that sends ten a second reaches the time limit first.
MAX_INTERIM_RESPONSES = 100


class BoundedResponseHandler(ResponseHandler):
    """Parses received bytes in short pieces, and aborts the connection once a response exceeds its limits.

    Reading the response then raises FetchFailed. While bytes wait, the transport does not read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._unparsed = bytearray()
        self._is_scheduled = False
        self._has_failed = False
        self._lost: tuple[BaseException | None] | None = None
        self._expect_response()

    def _expect_response(self) -> None:
        self._received_bytes = self._interim_responses = self._content_length = 0
        self._body: StreamReader | None = None

    def set_response_params(self, **params: Any) -> None:
        self._expect_response()
        super().set_response_params(**params)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        message, body = data
        if 100 <= message.code < 200:
            self._interim_responses += 1
        else:
            self._body = body
            self._content_length = 0 if message.chunked else int(message.headers.get("Content-Length", 0))
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        if not data:  # the parser continues with what it holds
            super().data_received(data)
        elif not self._unparsed and len(data) <= self._piece_bytes():
            self._parse(data)
        elif not self._has_failed:
            self._unparsed += data
            self._parse_next()

    def resume_reading(self, resume_parser: bool = True) -> None:
        super().resume_reading(resume_parser)
        self._schedule()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Parse what has been received first: the host may close right behind its response."""
        if self._unparsed:
            self._lost = (exc,)
        else:
            super().connection_lost(exc)

    def close(self) -> None:
        self._discard_unparsed()
        super().close()

    def abort(self) -> None:
        self._discard_unparsed()
        super().abort()

    def _piece_bytes(self) -> int:
        if self._body is None:
            return HEAD_PIECE_BYTES
        # The rest of a body without chunks is cheap to parse, however long it is.
        return max(BODY_PIECE_BYTES, self._content_length - self._body.total_bytes)

    def _schedule(self) -> None:
        if self._unparsed and not self._is_scheduled:
            self._pause_transport_reading()
            self._is_scheduled = True
            self._loop.call_soon(self._parse_scheduled)

    def _parse_scheduled(self) -> None:
        self._is_scheduled = False
        self._parse_next()
        if not self._unparsed:
            if self._lost is not None:
                super().connection_lost(*self._lost)
            elif not self._reading_paused and not self._buffer_paused:
                self._resume_transport_reading()

    def _parse_next(self) -> None:
        """Parse a piece of a head and one of a body, at most."""
        for _ in range(2):
            if self._unparsed and not self._reading_paused:  # or the reader of the body is behind
                piece = bytes(self._unparsed[: self._piece_bytes()])
                del self._unparsed[: len(piece)]
                self._parse(piece)
        if not self._reading_paused:
            self._schedule()

    def _parse(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._body is not None and self._body.is_eof():
            self._fail(FetchFailed("A URL's host must send one response for a request. Received: more."))
            return
        super().data_received(data)
        if error := self._broken_limit():
            self._fail(error)

    def _broken_limit(self) -> FetchFailed | None:
        if self._interim_responses > MAX_INTERIM_RESPONSES:
            return FetchFailed(
                f"A URL's host must send at most {MAX_INTERIM_RESPONSES} interim responses. Received: more."
            )
        body_bytes = 0 if self._body is None else self._body.total_bytes
        overhead_bytes = self._received_bytes - body_bytes
        if overhead_bytes > MAX_OVERHEAD_BYTES + body_bytes // _BODY_BYTES_PER_OVERHEAD_BYTE:
            return FetchFailed(
                f"A URL's host must send at most {MAX_OVERHEAD_BYTES} bytes beside an image. Received: more."
            )
        return None

    def _fail(self, error: FetchFailed) -> None:
        self._has_failed = True
        self.set_exception(error)
        if self._body is not None and not self._body.is_eof():
            self._body.set_exception(error)
        self._payload = None  # or aiohttp replaces the error by one of its own
        self._discard_unparsed()
        if self.transport is not None:
            self.transport.abort()

    def _discard_unparsed(self) -> None:
        self._unparsed.clear()
        if self._lost is not None:
            super().connection_lost(*self._lost)
            self._lost = None
