"""Uploaded files out of a multipart/form-data body (RFC 7578), in memory and in order."""

import asyncio
import logging
from collections.abc import AsyncIterable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import InvalidBatch, MalformedBody, PayloadTooLarge
from app.pieces import join_pieces

# It logs each bad byte; the caller is told what is wrong.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

# The parser takes a few milliseconds for it, if it holds nothing but parts.
PIECE_BYTES = 16 * 1024
# The parser takes less than a millisecond for them, in a chunk of whatever size.
_FEW_BOUNDARIES = 16
# Of a Content-Type or a Content-Disposition. A file name has at most 255 characters on most file systems.
_MAX_HEADER_BYTES = 2048
# The parser of options takes almost a microsecond for each.
_MAX_SEMICOLONS = 32


async def parse_files(
    content_type: str, chunks: AsyncIterable[bytes], max_files: int
) -> list[tuple[str, bytes]]:
    """The name and content of every file.

    Raises MalformedBody when the body is broken or cut off, InvalidBatch when it holds anything but
    files, PayloadTooLarge when it holds more than `max_files`.
    """
    boundary = _options(content_type.encode("latin-1"), "multipart body's Content-Type").get(b"boundary")
    if not boundary:
        raise MalformedBody("A multipart body's Content-Type must name its boundary.")
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
        async for chunk in chunks:
            boundaries = chunk.count(delimiter)
            parts.refuse_boundaries(boundaries)
            # Content costs the parser little, whatever it holds.
            piece_bytes = PIECE_BYTES if boundaries > _FEW_BOUNDARIES else len(chunk) or 1
            for start in range(0, len(chunk), piece_bytes):
                parser.write(chunk[start : start + piece_bytes])
                if start:
                    await asyncio.sleep(0)
    except FormParserError as error:
        raise MalformedBody(f"A multipart body must be valid (RFC 7578): {error}.") from None
    if not parts.ended:
        raise MalformedBody("A multipart body must end with its closing boundary.")
    if not parts.files:
        raise InvalidBatch("A multipart body must hold a file. Received: none.")
    return [(name, await join_pieces(pieces, sum(map(len, pieces)))) for name, pieces in parts.files]


def _options(header: bytes, name: str) -> dict[bytes, bytes]:
    """The parameters of a header. Raises MalformedBody for one that would take long to parse."""
    if len(header) > _MAX_HEADER_BYTES:
        raise MalformedBody(f"A {name} must have at most {_MAX_HEADER_BYTES} bytes. Received: {len(header)}.")
    if (semicolons := header.count(b";")) > _MAX_SEMICOLONS:
        raise MalformedBody(
            f"A {name} must have at most {_MAX_SEMICOLONS} semicolons. Received: {semicolons}."
        )
    return parse_options_header(header)[1]


class _Parts:
    """What python-multipart's parser calls as it goes; every part must be a file."""

    def __init__(self, max_files: int) -> None:
        self.files: list[tuple[str, list[bytes]]] = []
        self.ended = False
        self._max_files = max_files
        self._boundaries = 0

    def refuse_boundaries(self, boundaries: int) -> None:
        """Count those that follow. Raises PayloadTooLarge for more than the files have.

        One ends each file, and one may begin the first. No file holds one (RFC 2046, section 5.1.1), and the
        parser takes long to find that what follows makes it none.
        """
        self._boundaries += boundaries
        if self._boundaries > self._max_files + 1:
            raise self._too_many_files()

    def begin(self) -> None:
        self._disposition = b""
        self._header_name = bytearray()
        self._header_value = bytearray()

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def open_file(self) -> None:
        parameters = _options(self._disposition, "part's Content-Disposition")
        if b"filename" not in parameters:
            name = parameters.get(b"name", b"").decode(errors="replace")
            raise InvalidBatch(f"Every part must be a file. Received: a text field {name[:40]!r}.")
        if len(self.files) == self._max_files:
            raise self._too_many_files()
        self.files.append((parameters[b"filename"].decode(errors="replace"), []))

    def add_content(self, data: bytes, start: int, end: int) -> None:
        self.files[-1][1].append(data[start:end])

    def end(self) -> None:
        self.ended = True

    def _too_many_files(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"A request must have at most {self._max_files} files. Received: more.")
