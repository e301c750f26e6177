"""Framing of HTTP/1.1 requests (RFC 9112, sections 2 to 7): llhttp parses the head, this module the body.

llhttp would not limit chunk extensions and trailers, would report trailers as headers, and would skip the
body of a request that proposes an upgrade.
"""

import re
from collections.abc import Callable
from typing import Protocol
from urllib.parse import unquote

import httptools

# A gateway sends a few kilobytes; Snowflake's context headers are at most eight, encoded twice.
MAX_HEAD_BYTES = 64 * 1024
# A signed S3 URL has about 2 kB, and paths of this service are much shorter.
MAX_TARGET_BYTES = 8 * 1024
# Every header lookup scans the list.
MAX_HEADERS = 256

# RFC 3986, section 3.2.2, with an optional port.
_HOST_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()*+,;=:[]"

MAX_TRAILER_BYTES = 8 * 1024
# A signature in a chunk extension, as aws-chunked uses, has about 90 bytes.
MAX_CHUNK_LINE_BYTES = 1024
# Enough for 200,000 chunks of any size, a microsecond each; more chunks must carry ten bytes each.
_FREE_FRAMING_BYTES = 1024 * 1024
_BODY_BYTES_A_FRAMING_BYTE = 2
# Less than a tenth of a millisecond of work; between two calls, the event loop serves other connections.
MAX_CHUNKS_A_CALL = 64

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[\t ]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class BadRequest(Exception):
    """A request that cannot be framed. The connection answers with `{"error": …}` and closes."""

    status = 400
    code = "malformed_request"
    retryable = False
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class HeadTooLarge(BadRequest):
    """The request line and header fields exceed their limit."""

    status = 431
    code = "head_too_large"


class TrailersTooLarge(BadRequest):
    """The trailers after a chunked body exceed 8 KiB."""

    status = 431
    code = "trailers_too_large"


class TargetTooLong(BadRequest):
    """The request's URL is too long."""

    status = 414
    code = "uri_too_long"


class FramingTooLarge(BadRequest):
    """The chunks' sizes and extensions take more bytes than the body warrants."""

    status = 413
    code = "payload_too_large"


class UnknownTransferCoding(BadRequest):
    """The Transfer-Encoding is not `chunked` (RFC 9112, section 6.1)."""

    status = 501
    code = "unknown_transfer_coding"


class UnsupportedVersion(BadRequest):
    """The request is neither HTTP/1.1 nor HTTP/1.0."""

    status = 505
    code = "http_version_not_supported"


class HeadTimeout(BadRequest):
    """The request line and header fields did not arrive in time."""

    status = 408
    code = "head_timeout"


class ConnectionOverload(BadRequest):
    """Too many connections are open."""

    status = 503
    code = "overloaded"
    retryable = True
    headers = ((b"retry-after", b"1"),)


_REASONS: dict[type[Exception], str] = {
    httptools.HttpParserInvalidMethodError: "an unknown method, or another protocol",
    httptools.HttpParserInvalidURLError: "an invalid target",
    httptools.HttpParserCallbackError: "an invalid target",
}


class RequestHead:
    """A request line and header fields, fed piece by piece."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        """Names in lower case."""
        self.method = ""
        self.http_version = "1.1"
        self.keep_alive = False
        self.is_complete = False
        self._line = b""
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)

    @property
    def is_head_request(self) -> bool:
        """Whether the method is HEAD, known before the head is complete."""
        return self._line.startswith(b"HEAD ")

    def feed(self, data: bytes) -> None:
        """Parse the next piece of the head, which must not reach beyond its end. Raises BadRequest."""
        if self._parser is None:
            return
        if b"\n" not in self._line:
            self._line += data.partition(b"\n")[0] + (b"\n" if b"\n" in data else b"")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # RFC 9110, section 7.8: a server may ignore Upgrade
        except httptools.HttpParserError as error:
            self.drop()
            if len(self.headers) == MAX_HEADERS:
                raise HeadTooLarge(
                    f"A request must have at most {MAX_HEADERS} headers. Received: more."
                ) from None
            reason = _REASONS.get(type(error), str(error))
            raise BadRequest(f"A request must be HTTP/1.1 (RFC 9112). Received: {reason}.") from None

    def finish(self) -> None:
        """Check the whole head. Raises BadRequest."""
        self.drop()
        if not self.is_complete:
            raise BadRequest("A request must be HTTP/1.1 (RFC 9112). Received: no end of its headers.")
        if len(self.target) > MAX_TARGET_BYTES:
            raise TargetTooLong(
                f"A request's target must have at most {MAX_TARGET_BYTES} bytes. "
                f"Received: {len(self.target)}."
            )
        if not self._line.endswith((b" HTTP/1.1\r\n", b" HTTP/1.0\r\n")):
            raise UnsupportedVersion(
                f"A request must be HTTP/1.1 or HTTP/1.0. Received: {_quoted(self._line[-20:])}."
            )
        self._check_host()

    def drop(self) -> None:
        """Break the reference cycle of parser and head, which only the garbage collector would free."""
        self._parser = None

    def body(self) -> "BodyFraming | None":
        """How the body is framed; None if there is none. Raises BadRequest (RFC 9112, section 6)."""
        lengths = [value for name, value in self.headers if name == b"content-length"]
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings:
            coding = _quoted(b", ".join(codings))
            if lengths:
                raise BadRequest(
                    "A request must not have both Content-Length and Transfer-Encoding (RFC 9112, 6.1)."
                )
            if self.http_version != "1.1":
                raise BadRequest(
                    f"An HTTP/1.0 request must not have a Transfer-Encoding. Received: {coding}."
                )
            if [coding.lower() for coding in codings] != [b"chunked"]:
                raise UnknownTransferCoding(
                    f"A request's Transfer-Encoding must be chunked. Received: {coding}."
                )
            return ChunkedBody()
        # llhttp accepts only one field of decimal digits below 2**64, with any number of leading zeros.
        length = int(lengths[0].lstrip(b"0") or b"0") if lengths else 0
        return LengthBody(length) if length else None

    def path_and_query(self) -> tuple[str, bytes, bytes]:
        """The decoded path, the path as sent, and the query. Raises BadRequest."""
        try:
            url = httptools.parse_url(self.target)
            raw_path: bytes = url.path or b"/"
            path = raw_path.decode("ascii")
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            raise BadRequest(
                "A request's target must be a path or an http URL (RFC 9112, section 3.2)."
            ) from None
        return unquote(path) if "%" in path else path, raw_path, url.query or b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) == MAX_HEADERS:
            raise HeadTooLarge("too many headers")  # stops the parser, which raises its own error
        # RFC 9112, section 5: llhttp leaves blanks after a value.
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is not None:
            self.method = parser.get_method().decode("ascii")
            self.http_version = parser.get_http_version()
            self.keep_alive = self.http_version != "1.0" and parser.should_keep_alive()
            self.is_complete = True

    def _check_host(self) -> None:
        """RFC 9112, section 3.2: one Host, or none before HTTP/1.1. Of two, a proxy may route by either."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) != 1 and not (not hosts and self.http_version == "1.0"):
            raise BadRequest(f"A request must have one Host header (RFC 9112). Received: {len(hosts)}.")
        if hosts and hosts[0].translate(None, _HOST_BYTES):
            raise BadRequest(
                "A Host must be a host name or address, with an optional port. "
                f"Received: {_quoted(hosts[0])}."
            )


class BodyFraming(Protocol):
    is_complete: bool

    def take(self, data: bytes, start: int, sink: list[bytes]) -> int:
        """Append the body's bytes in `data`, from `start`, to `sink`, and return the position after them.

        Bytes after the end of the body are not consumed. Raises BadRequest.
        """
        ...


class LengthBody:
    """A body with a Content-Length."""

    def __init__(self, length: int) -> None:
        self.missing_bytes = length
        self.is_complete = length == 0

    def take(self, data: bytes, start: int, sink: list[bytes]) -> int:
        end = min(len(data), start + self.missing_bytes)
        sink.append(data[start:end])  # no copy if it is all of `data`
        self.missing_bytes -= end - start
        self.is_complete = self.missing_bytes == 0
        return end


class ChunkedBody:
    """Chunked transfer coding (RFC 9112, section 7.1). Extensions and trailers are counted and discarded."""

    def __init__(self) -> None:
        self.is_complete = False
        self._line = b""
        self._missing_bytes = 0
        self._take_next: Callable[[bytes, int, list[bytes]], int] = self._take_size
        self._framing_bytes = 0
        self._body_bytes = 0
        self._trailer_bytes = 0

    def take(self, data: bytes, start: int, sink: list[bytes]) -> int:
        """As BodyFraming.take, but at most MAX_CHUNKS_A_CALL chunks per call."""
        position = start
        for _ in range(3 * MAX_CHUNKS_A_CALL):
            if position == len(data) or self.is_complete:
                break
            position = self._take_next(data, position, sink)
        return position

    def _take_size(self, data: bytes, start: int, _: list[bytes]) -> int:
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

    def _take_data(self, data: bytes, start: int, sink: list[bytes]) -> int:
        end = min(len(data), start + self._missing_bytes)
        sink.append(data[start:end])
        self._body_bytes += end - start
        self._missing_bytes -= end - start
        if not self._missing_bytes:
            self._take_next = self._take_end
        return end

    def _take_end(self, data: bytes, start: int, _: list[bytes]) -> int:
        line, position = self._take_line(data, start, 2, _open_chunk)
        if line is not None:
            self._take_next = self._take_size
        return position

    def _take_trailer(self, data: bytes, start: int, _: list[bytes]) -> int:
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
        """The next line without CRLF, or None if it is incomplete, and the position after it."""
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


def _quoted(value: bytes) -> str:
    return repr(value[:80].strip().decode("latin-1"))
