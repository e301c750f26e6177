"""Where the body of an HTTP/1.1 request ends (RFC 9112, sections 6 and 7).

Not left to llhttp, which counts no chunk extensions and trailers, reports trailers as headers, and skips the
body of a request that proposes an upgrade.
"""

import re
from collections.abc import Callable
from typing import Protocol

from app.server.request_errors import BadRequest, FramingTooLarge, TrailersTooLarge

MAX_TRAILER_BYTES = 8 * 1024
# A signature in a chunk extension, as aws-chunked uses, has about 90 bytes.
MAX_CHUNK_LINE_BYTES = 1024
# Enough for 200,000 chunks of any size, a microsecond each; beyond it, chunks must carry ten bytes each.
_FREE_FRAMING_BYTES = 1024 * 1024
_BODY_BYTES_A_FRAMING_BYTE = 2
# Less than a tenth of a millisecond of work; other connections are served between two calls.
MAX_CHUNKS_A_CALL = 64

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class BodyFraming(Protocol):
    is_complete: bool

    def take(self, data: bytes, start: int, sink: bytearray) -> int:
        """Append what `data` holds of the body from `start` on to `sink`, and return the place after it.

        Bytes beyond the body are left. Raises BadRequest.
        """
        ...


class LengthBody:
    """A body of as many bytes as its Content-Length says."""

    def __init__(self, length: int) -> None:
        self.missing_bytes = length
        self.is_complete = length == 0

    def take(self, data: bytes, start: int, sink: bytearray) -> int:
        end = min(len(data), start + self.missing_bytes)
        sink += data[start:end] if start or end < len(data) else data
        self.missing_bytes -= end - start
        self.is_complete = self.missing_bytes == 0
        return end


class ChunkedBody:
    """Chunked transfer coding (RFC 9112, section 7.1). Extensions and trailers are counted and discarded."""

    def __init__(self) -> None:
        self.is_complete = False
        self._line = b""
        self._missing_bytes = 0
        self._take_next: Callable[[bytes, int, bytearray], int] = self._take_size
        self._framing_bytes = 0
        self._body_bytes = 0
        self._trailer_bytes = 0

    def take(self, data: bytes, start: int, sink: bytearray) -> int:
        """As BodyFraming says, and at most MAX_CHUNKS_A_CALL chunks."""
        position = start
        for _ in range(3 * MAX_CHUNKS_A_CALL):
            if position == len(data) or self.is_complete:
                break
            position = self._take_next(data, position, sink)
        return position

    def _take_size(self, data: bytes, start: int, _: bytearray) -> int:
        line, position = self._take_line(data, start, MAX_CHUNK_LINE_BYTES, _long_chunk_line)
        if line is None:
            return position
        size = _CHUNK_LINE.fullmatch(line)
        if size is None:
            raise BadRequest(
                "A chunk must begin with its size in hexadecimal digits (RFC 9112, section 7.1)."
            )
        self._missing_bytes = int(size[1], 16)
        self._count_framing(len(line) + 4)
        self._take_next = self._take_data if self._missing_bytes else self._take_trailer
        return position

    def _take_data(self, data: bytes, start: int, sink: bytearray) -> int:
        end = min(len(data), start + self._missing_bytes)
        sink += data[start:end]
        self._body_bytes += end - start
        self._missing_bytes -= end - start
        if not self._missing_bytes:
            self._take_next = self._take_end
        return end

    def _take_end(self, data: bytes, start: int, _: bytearray) -> int:
        line, position = self._take_line(data, start, 2, _open_chunk)
        if line is not None:
            self._take_next = self._take_size
        return position

    def _take_trailer(self, data: bytes, start: int, _: bytearray) -> int:
        room = MAX_TRAILER_BYTES - self._trailer_bytes
        line, position = self._take_line(data, start, room, _long_trailers)
        if line:
            if not _TRAILER_LINE.fullmatch(line):
                raise BadRequest("A trailer must be a header field (RFC 9112, section 7.1.2).")
            self._trailer_bytes += len(line) + 2
        self.is_complete = line == b""
        return position

    def _take_line(
        self, data: bytes, start: int, max_bytes: int, too_long: Callable[[], BadRequest]
    ) -> tuple[bytes | None, int]:
        """The line that ends in `data`, without CRLF, or None while it has no end; and the place after it."""
        max_end = start + max_bytes - len(self._line)
        end = data.find(b"\n", start, max(start, max_end)) + 1
        if not end:
            if len(data) >= max_end:
                raise too_long()
            self._line += data[start:]
            return None, len(data)
        line, self._line = self._line + data[start:end], b""
        if not line.endswith(b"\r\n"):
            raise BadRequest("A line of a chunked body must end with CRLF.")
        return line[:-2], end

    def _count_framing(self, more_bytes: int) -> None:
        self._framing_bytes += more_bytes
        most = _FREE_FRAMING_BYTES + self._body_bytes // _BODY_BYTES_A_FRAMING_BYTE
        if self._framing_bytes > most:
            raise FramingTooLarge(
                f"A chunked body of {self._body_bytes} bytes may have {most} bytes of chunk sizes and "
                f"extensions. Received: more."
            )


def _long_chunk_line() -> BadRequest:
    return FramingTooLarge(
        f"A chunk's size and extensions must have at most {MAX_CHUNK_LINE_BYTES} bytes. Received: more."
    )


def _open_chunk() -> BadRequest:
    return BadRequest(
        "A chunk must end with CRLF after as many bytes as its size says (RFC 9112, section 7.1)."
    )


def _long_trailers() -> BadRequest:
    return TrailersTooLarge(f"Trailers must have at most {MAX_TRAILER_BYTES} bytes. Received: more.")
