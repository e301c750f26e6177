"""Read a request's body under a cap: refuse early, inflate what Snowflake compressed."""

import zlib
from collections.abc import AsyncGenerator

from starlette.requests import Request

from app.errors import MalformedBody, PayloadTooLarge, UnsupportedMediaType

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


async def capped_stream(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body in chunks. Raises PayloadTooLarge, before the first one when its length says so."""
    _refuse_bytes(_length_of(request), max_bytes)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        _refuse_bytes(received, max_bytes)
        yield chunk


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, as sent. Raises PayloadTooLarge, or MalformedBody when there is none."""
    body = b"".join([chunk async for chunk in capped_stream(request, max_bytes)])
    if not body:
        raise MalformedBody("A request must have a body. Received: 0 bytes.")
    return body


def refuse_encoded(request: Request) -> None:
    """Raises UnsupportedMediaType for a Content-Encoding: only JSON gains from one."""
    encoding = _encoding_of(request)
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"Only a JSON body may have a Content-Encoding. Received: {encoding[:40]!r}."
        )


def is_compressed(body: bytes, request: Request) -> bool:
    """Whether there may be anything to inflate."""
    return body.startswith(_GZIP_MAGIC) or _encoding_of(request) != "identity"


def inflate(body: bytes, request: Request, max_bytes: int) -> bytes:
    """Undo gzip or deflate. Raises PayloadTooLarge before growing past `max_bytes`.

    A gateway may inflate a body and leave its header, so the bytes decide before the header does.
    """
    encoding = _encoding_of(request)
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise UnsupportedMediaType(
            f"A body may be compressed with gzip or deflate. Received: {encoding[:40]!r}."
        )
    if body.startswith(_GZIP_MAGIC):
        return _inflate(body, _GZIP_WINDOW, max_bytes)
    if encoding == "deflate":
        return _inflate_deflate(body, max_bytes)
    return body


def _inflate_deflate(body: bytes, max_bytes: int) -> bytes:
    """Deflate means zlib (RFC 1950) to the standard and raw (RFC 1951) to many senders."""
    for window in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        try:
            return _inflate(body, window, max_bytes)
        except MalformedBody:
            continue
    return body


def _inflate(body: bytes, window: int, max_bytes: int) -> bytes:
    decompressor = zlib.decompressobj(window)
    try:
        inflated = decompressor.decompress(body, max_bytes + 1)
    except zlib.error:
        raise MalformedBody("A compressed body must be valid gzip or deflate.") from None
    _refuse_bytes(len(inflated), max_bytes)
    if not decompressor.eof or decompressor.unused_data:
        raise MalformedBody("A compressed body must be one whole gzip or deflate stream.")
    return inflated


def _length_of(request: Request) -> int:
    length = request.headers.get("content-length", "0")
    try:
        return int(length)
    except ValueError:  # too many digits for Python to convert
        raise MalformedBody(f"A Content-Length must be a number. Received: {len(length)} digits.") from None


def _encoding_of(request: Request) -> str:
    return request.headers.get("content-encoding", "").strip().lower() or "identity"


def _refuse_bytes(body_bytes: int, max_bytes: int) -> None:
    if body_bytes > max_bytes:
        raise PayloadTooLarge(
            f"A body must have at most {max_bytes} bytes, also once inflated. Received: more."
        )
