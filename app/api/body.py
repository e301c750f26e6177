"""Reads what a request holds under limits: headers, query, compressed JSON bodies and multipart forms."""

import asyncio
import logging
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterator, Mapping
from typing import Self, TypeVar
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from app.admission import PendingBody
from app.errors import (
    BodyTimeout,
    DeadlineExceeded,
    InvalidBatch,
    MalformedBody,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from app.event_loop import GZIP_MAGIC, Deadline, join_pieces

T = TypeVar("T")

_GZIP_WINDOW = 16 + zlib.MAX_WBITS
# Each costs some microseconds, also if it is empty. A file in blocks (BGZF) has one for each 64 KiB.
MAX_GZIP_MEMBERS = 10_000
# About half a millisecond of work; other requests are served between two pieces.
_INFLATED_AT_ONCE_BYTES = 256 * 1024
_COMPRESSED_AT_ONCE_BYTES = 64 * 1024


async def arriving_within(seconds: float, reading: Awaitable[T], pending: PendingBody) -> T:
    """The result of `reading` a body. Raises BodyTimeout if it takes longer, Overloaded if it is evicted."""
    try:
        with Deadline(seconds) as deadline, pending.evictable(deadline.end, is_in_transit=True):
            return await reading
    except DeadlineExceeded:
        pass
    # Raised outside of the handler: a chained error would keep its frames alive, and the bytes in them.
    raise pending.eviction or BodyTimeout(
        f"A body must arrive within {seconds:g} seconds. Received: part of it."
    )


class CappedStream:
    """The body in chunks, each of which is added to `pending`.

    Raises ClientDisconnect, Overloaded, or PayloadTooLarge, which a Content-Length raises before the first
    chunk. The event loop keeps account of asynchronous generators, which takes as long as to read a body.
    """

    def __init__(self, request: Request, max_bytes: int, pending: PendingBody) -> None:
        _check_size(length_of(request), max_bytes)
        self._request = request
        self._max_bytes = max_bytes
        self._pending = pending
        self._received_bytes = 0
        self._has_more = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._has_more:
            raise StopAsyncIteration
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._has_more = message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        self._received_bytes += len(chunk)
        _check_size(self._received_bytes, self._max_bytes)
        self._pending.take(len(chunk))
        return chunk


async def read_body(request: Request, max_bytes: int, pending: PendingBody) -> bytes:
    """The whole body, as sent. Raises PayloadTooLarge, Overloaded, or MalformedBody if it is empty."""
    chunks = [chunk async for chunk in CappedStream(request, max_bytes, pending)]
    body = await join_pieces(chunks, pending.held_bytes)
    if not body:
        raise MalformedBody("A request must have a body. Received: 0 bytes.")
    return body


def check_not_encoded(request: Request) -> None:
    """Raises UnsupportedMediaType for a Content-Encoding: only JSON is worth compressing."""
    encoding = encoding_of(request)
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"Only a JSON body may have a Content-Encoding. Received: {encoding[:40]!r}."
        )


async def inflate(body: bytes, encoding: str, max_bytes: int, pending: PendingBody) -> bytes:
    """Undo gzip or deflate. Raises PayloadTooLarge before growing past `max_bytes`, or Overloaded.

    Until it returns, `pending` counts both bodies, and then only the returned one. A gateway may inflate a
    body and keep the header, so the first bytes take precedence over the header.
    """
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise UnsupportedMediaType(
            f"A body may be compressed with gzip or deflate. Received: {encoding[:40]!r}."
        )
    is_gzip = body.startswith(GZIP_MAGIC)
    if is_gzip or encoding == "deflate":
        with pending.evictable():
            if is_gzip:
                body = await _inflate(body, _GZIP_WINDOW, max_bytes, pending)
            else:
                body = await _inflate_deflate(body, max_bytes, pending)
    pending.complete()
    return body


def length_of(request: Request) -> int:
    """The Content-Length, 0 without one."""
    length = request.headers.get("content-length", "0")
    try:
        return int(length)
    except ValueError:  # more digits than int() accepts
        raise MalformedBody(f"A Content-Length must be a number. Received: {len(length)} digits.") from None


def encoding_of(request: Request) -> str:
    return request.headers.get("content-encoding", "").strip().lower() or "identity"


async def _inflate_deflate(body: bytes, max_bytes: int, pending: PendingBody) -> bytes:
    """Deflate is zlib (RFC 1950) in the standard, and raw (RFC 1951) in many clients."""
    for window in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        try:
            return await _inflate(body, window, max_bytes, pending)
        except MalformedBody:
            continue
    return body


async def _inflate(body: bytes, window: int, max_bytes: int, pending: PendingBody) -> bytes:
    inflated_bytes, pieces = 0, []
    try:
        for piece in _inflated(body, window):
            inflated_bytes += len(piece)
            _check_size(inflated_bytes, max_bytes)
            pending.take(len(piece))
            pieces.append(piece)
            await asyncio.sleep(0)
    except MalformedBody:
        pending.drop(inflated_bytes)
        raise
    inflated = await join_pieces(pieces, inflated_bytes)
    pending.drop(len(body))
    return inflated


def _inflated(body: bytes, window: int) -> Iterator[bytes]:
    """Yields pieces. Raises MalformedBody unless the body is one complete stream, or several members of gzip.

    RFC 1952, section 2.2: the members follow each other, with nothing between or after them.
    """
    decompressor, members = zlib.decompressobj(window), 1
    try:
        for start in range(0, len(body), _COMPRESSED_AT_ONCE_BYTES):
            compressed = body[start : start + _COMPRESSED_AT_ONCE_BYTES]
            while compressed:
                if decompressor.eof:
                    decompressor, members = zlib.decompressobj(window), members + 1
                    _refuse_member(compressed, window, members)
                yield decompressor.decompress(compressed, _INFLATED_AT_ONCE_BYTES)
                compressed = decompressor.unconsumed_tail or decompressor.unused_data
        while not decompressor.eof and (rest := decompressor.decompress(b"", _INFLATED_AT_ONCE_BYTES)):
            yield rest
    except zlib.error as error:
        raise MalformedBody(f"A compressed body must be valid gzip or deflate. Received: {error}.") from None
    if not decompressor.eof:
        raise MalformedBody(
            "A compressed body must be complete. Received: a gzip or deflate stream without its end."
        )


def _refuse_member(compressed: bytes, window: int, members: int) -> None:
    """Raises MalformedBody for bytes after a stream that begin no member, and for too many members."""
    if window != _GZIP_WINDOW or not compressed.startswith(GZIP_MAGIC[: len(compressed)]):
        raise MalformedBody(
            "A compressed body must end with its gzip or deflate stream. Received: more bytes after it."
        )
    if members > MAX_GZIP_MEMBERS:
        raise MalformedBody(f"A gzip body must have at most {MAX_GZIP_MEMBERS} members. Received: more.")


def _check_size(body_bytes: int, max_bytes: int) -> None:
    if body_bytes > max_bytes:
        raise PayloadTooLarge(
            f"A body must have at most {max_bytes} bytes, as sent and inflated. Received: more."
        )


# It logs every invalid byte; the response already says what is wrong.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

# The parser takes a few milliseconds for a piece that consists of nothing but parts.
PIECE_BYTES = 16 * 1024
# The parser takes less than a millisecond for so many, however large their chunk.
_FEW_BOUNDARIES = 16
# For a Content-Type or Content-Disposition. Most file systems limit a file name to 255 characters.
_MAX_HEADER_BYTES = 2048
# The options parser takes almost a microsecond for each.
_MAX_SEMICOLONS = 32
# Text before the first boundary, for programs that do not know the format (RFC 2046, section 5.1.1).
MAX_PREAMBLE_BYTES = 16 * 1024
# RFC 2045, section 6.2: those that leave the content as it is.
_IDENTITY_ENCODINGS = (b"", b"binary", b"8bit", b"7bit")
# RFC 8187, section 3.2.1: charset, language, and bytes with escapes.
_EXTENDED_NAME = re.compile(rb""";\s*filename\*\s*=\s*"?([\w-]*)'[^']*'([^;"\s]*)""", re.IGNORECASE)


async def parse_files(
    content_type: str, chunks: AsyncIterable[bytes], max_files: int
) -> list[tuple[str, bytes]]:
    """The name and content of every file.

    Raises MalformedBody for an invalid or truncated body, InvalidBatch if a part is not a file, and
    PayloadTooLarge for more than `max_files` files.
    """
    boundary = _options(content_type.encode("latin-1"), "multipart body's Content-Type").get(b"boundary")
    if not boundary:
        raise MalformedBody(
            f"A multipart body's Content-Type must name its boundary. Received: {content_type[:80]!r}."
        )
    parts = _Parts(max_files)
    delimiter = b"\r\n--" + boundary
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_header_field": parts.add_header_name,
                "on_header_value": parts.add_header_value,
                "on_header_end": parts.end_header,
                "on_headers_finished": parts.open_file,
                "on_part_data": parts.add_content,
                "on_end": parts.end,
            },
        )
        async for chunk in _without_preamble(chunks, delimiter):
            boundaries = chunk.count(delimiter)
            parts.count_boundaries(boundaries)
            # Content without boundaries is cheap to parse.
            piece_bytes = PIECE_BYTES if boundaries > _FEW_BOUNDARIES else len(chunk) or 1
            for start in range(0, len(chunk), piece_bytes):
                parser.write(chunk[start : start + piece_bytes])
                if start:
                    await asyncio.sleep(0)
    except FormParserError as error:
        raise MalformedBody(f"A multipart body must be valid (RFC 7578): {error}.") from None
    if not parts.ended:
        raise MalformedBody(
            "A multipart body must end with its closing boundary. "
            f"Received: none like {(delimiter[2:] + b'--')[:80].decode('latin-1')!r}."
        )
    if not parts.files:
        raise InvalidBatch("A multipart body must hold a file. Received: none.")
    return [(name, await join_pieces(pieces, sum(map(len, pieces)))) for name, pieces in parts.files]


async def _without_preamble(chunks: AsyncIterable[bytes], delimiter: bytes) -> AsyncGenerator[bytes, None]:
    """The body from its first boundary. Raises MalformedBody for a long text before it."""
    preamble, is_over = b"\r\n", False
    async for chunk in chunks:
        if is_over:
            yield chunk
            continue
        preamble += chunk
        start = preamble.find(delimiter)
        if start >= 0:
            is_over = True
            yield preamble[start + 2 :]
        elif len(preamble) > MAX_PREAMBLE_BYTES:
            raise MalformedBody(
                "A multipart body must begin with its boundary (RFC 7578). Received: other content."
            )


def _options(header: bytes, name: str) -> dict[bytes, bytes]:
    """The parameters of a header. Raises MalformedBody for a header that is expensive to parse."""
    if len(header) > _MAX_HEADER_BYTES:
        raise MalformedBody(f"A {name} must have at most {_MAX_HEADER_BYTES} bytes. Received: {len(header)}.")
    if (semicolons := header.count(b";")) > _MAX_SEMICOLONS:
        raise MalformedBody(
            f"A {name} must have at most {_MAX_SEMICOLONS} semicolons. Received: {semicolons}."
        )
    return parse_options_header(header)[1]


def _file_name(parameters: Mapping[bytes, bytes], disposition: bytes) -> str | None:
    """`filename`, or else `filename*`, which some clients send in its place; None without either."""
    if b"filename" in parameters:
        return parameters[b"filename"].decode(errors="replace")
    if (extended := _EXTENDED_NAME.search(disposition)) is None:
        return None
    charset = "latin-1" if extended[1].lower() == b"iso-8859-1" else "utf-8"
    return unquote_to_bytes(extended[2]).decode(charset, "replace")


class _Parts:
    """The callbacks of python-multipart's parser. Every part must be a file."""

    def __init__(self, max_files: int) -> None:
        self.files: list[tuple[str, list[bytes]]] = []
        self.ended = False
        self._max_files = max_files
        self._boundaries = 0

    def count_boundaries(self, boundaries: int) -> None:
        """Count boundaries before they are parsed. Raises PayloadTooLarge for more than `max_files` need.

        One boundary ends each file, and one may precede the first. File content must not hold any (RFC 2046,
        section 5.1.1), and the parser is slow to reject those that it does hold.
        """
        self._boundaries += boundaries
        if self._boundaries > self._max_files + 1:
            raise self._too_many_files()

    def begin(self) -> None:
        self._disposition = b""
        self._encoding = b""
        self._header_name = bytearray()
        self._header_value = bytearray()

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        elif self._header_name.lower() == b"content-transfer-encoding":
            self._encoding = bytes(self._header_value).strip().lower()
        self._header_name.clear()
        self._header_value.clear()

    def open_file(self) -> None:
        parameters = _options(self._disposition, "part's Content-Disposition")
        filename = _file_name(parameters, self._disposition)
        if filename is None:
            name = parameters.get(b"name", b"").decode(errors="replace")
            raise InvalidBatch(f"Every part must be a file. Received: a text field {name[:40]!r}.")
        if self._encoding not in _IDENTITY_ENCODINGS:
            raise InvalidBatch(
                "A part's Content-Transfer-Encoding must be binary, as RFC 7578 has it. "
                f"Received: {self._encoding[:40].decode(errors='replace')!r}."
            )
        if len(self.files) == self._max_files:
            raise self._too_many_files()
        self.files.append((filename, []))

    def add_content(self, data: bytes, start: int, end: int) -> None:
        self.files[-1][1].append(data[start:end])

    def end(self) -> None:
        self.ended = True

    def _too_many_files(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"A request must have at most {self._max_files} files. Received: more.")


# Starlette takes half a microsecond to parse a byte of a query.
MAX_QUERY_BYTES = 1024


def evidence_of(request: Request) -> bool:
    """The query parameter `evidence`, which applies to every image of the request. Raises InvalidBatch."""
    query_bytes = len(request.scope["query_string"])
    if not query_bytes:
        return False
    if query_bytes > MAX_QUERY_BYTES:
        raise InvalidBatch(f"A query must have at most {MAX_QUERY_BYTES} bytes. Received: {query_bytes}.")
    given = request.query_params.get("evidence", "false")
    if given not in ("true", "false"):
        raise InvalidBatch(f"The query parameter evidence must be true or false. Received: {given[:40]!r}.")
    return given == "true"
