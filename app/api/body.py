"""Read a request's body under a cap: refuse early, inflate what Snowflake compressed."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Awaitable, Iterator
from typing import TypeVar

from starlette.requests import Request

from app.errors import BodyTimeout, MalformedBody, PayloadTooLarge, UnsupportedMediaType
from app.pending import PendingBody
from app.pieces import join_pieces

T = TypeVar("T")

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
# Half a millisecond's work; others are served between two.
_INFLATED_AT_ONCE_BYTES = 256 * 1024
_COMPRESSED_AT_ONCE_BYTES = 64 * 1024


async def arriving_within(seconds: float, reading: Awaitable[T], pending: PendingBody) -> T:
    """What is read of a body. Raises BodyTimeout when it takes longer, Overloaded when it is evicted."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds) as deadline:
            with pending.evictable(lambda: deadline.reschedule(loop.time()), is_in_transit=True):
                return await reading
    except TimeoutError:
        pass
    # An error raised while another is handled keeps that one, its frames, and what they have received.
    raise pending.eviction or BodyTimeout(
        f"A body must arrive within {seconds:g} seconds. Received: a part of it."
    )


async def capped_stream(
    request: Request, max_bytes: int, pending: PendingBody
) -> AsyncGenerator[bytes, None]:
    """The body in chunks, for which room is taken.

    Raises PayloadTooLarge, before the first one when its length says so, or Overloaded.
    """
    _refuse_bytes(length_of(request), max_bytes)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        _refuse_bytes(received, max_bytes)
        pending.take(len(chunk))
        yield chunk


async def read_body(request: Request, max_bytes: int, pending: PendingBody) -> bytes:
    """The whole body, as sent. Raises PayloadTooLarge, Overloaded, or MalformedBody when there is none."""
    chunks = [chunk async for chunk in capped_stream(request, max_bytes, pending)]
    body = await join_pieces(chunks, pending.held_bytes)
    if not body:
        raise MalformedBody("A request must have a body. Received: 0 bytes.")
    return body


def refuse_encoded(request: Request) -> None:
    """Raises UnsupportedMediaType for a Content-Encoding: only JSON gains from one."""
    encoding = encoding_of(request)
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"Only a JSON body may have a Content-Encoding. Received: {encoding[:40]!r}."
        )


async def inflate(body: bytes, encoding: str, max_bytes: int, pending: PendingBody) -> bytes:
    """Undo gzip or deflate. Raises PayloadTooLarge before growing past `max_bytes`, or Overloaded.

    `pending` holds both until then, and only what is returned afterwards. A gateway may inflate a body and
    leave its header, so the bytes decide before the header does.
    """
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise UnsupportedMediaType(
            f"A body may be compressed with gzip or deflate. Received: {encoding[:40]!r}."
        )
    with pending.evictable():
        if body.startswith(_GZIP_MAGIC):
            body = await _inflate(body, _GZIP_WINDOW, max_bytes, pending)
        elif encoding == "deflate":
            body = await _inflate_deflate(body, max_bytes, pending)
    pending.complete()
    return body


def length_of(request: Request) -> int:
    """As declared; 0 when it is not."""
    length = request.headers.get("content-length", "0")
    try:
        return int(length)
    except ValueError:  # too many digits for Python to convert
        raise MalformedBody(f"A Content-Length must be a number. Received: {len(length)} digits.") from None


def encoding_of(request: Request) -> str:
    return request.headers.get("content-encoding", "").strip().lower() or "identity"


async def _inflate_deflate(body: bytes, max_bytes: int, pending: PendingBody) -> bytes:
    """Deflate means zlib (RFC 1950) to the standard and raw (RFC 1951) to many senders."""
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
            _refuse_bytes(inflated_bytes, max_bytes)
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
    """Piece by piece. Raises MalformedBody for what is not one whole stream."""
    decompressor, end = zlib.decompressobj(window), 0
    try:
        for start in range(0, len(body), _COMPRESSED_AT_ONCE_BYTES):
            if decompressor.eof:
                break
            compressed = body[start : start + _COMPRESSED_AT_ONCE_BYTES]
            while compressed:
                yield decompressor.decompress(compressed, _INFLATED_AT_ONCE_BYTES)
                compressed = decompressor.unconsumed_tail
            end = start + _COMPRESSED_AT_ONCE_BYTES
        while not decompressor.eof and (rest := decompressor.decompress(b"", _INFLATED_AT_ONCE_BYTES)):
            yield rest
    except zlib.error:
        raise MalformedBody("A compressed body must be valid gzip or deflate.") from None
    if not decompressor.eof or decompressor.unused_data or end < len(body):
        raise MalformedBody("A compressed body must be one whole gzip or deflate stream.")


def _refuse_bytes(body_bytes: int, max_bytes: int) -> None:
    if body_bytes > max_bytes:
        raise PayloadTooLarge(
            f"A body must have at most {max_bytes} bytes, also once inflated. Received: more."
        )
