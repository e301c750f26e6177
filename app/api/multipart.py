"""Uploaded files out of a multipart/form-data body (RFC 7578), in memory and in order."""

import logging
from collections.abc import AsyncIterable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import InvalidBatch, MalformedBody, PayloadTooLarge

# It logs each bad byte; the caller is told what is wrong.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


async def parse_files(
    content_type: str, chunks: AsyncIterable[bytes], max_files: int
) -> list[tuple[str, bytes]]:
    """The name and content of every file.

    Raises MalformedBody when the body is broken or cut off, InvalidBatch when it holds anything but
    files, PayloadTooLarge when it holds more than `max_files`.
    """
    _, parameters = parse_options_header(content_type)
    if not parameters.get(b"boundary"):
        raise MalformedBody("A multipart body's Content-Type must name its boundary.")
    parts = _Parts(max_files)
    try:
        parser = MultipartParser(
            parameters[b"boundary"],
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
            parser.write(chunk)
    except FormParserError as error:
        raise MalformedBody(f"A multipart body must be valid (RFC 7578): {error}.") from None
    if not parts.ended:
        raise MalformedBody("A multipart body must end with its closing boundary.")
    if not parts.files:
        raise InvalidBatch("A multipart body must hold a file. Received: none.")
    return [(name, bytes(content)) for name, content in parts.files]


class _Parts:
    """What python-multipart's parser calls as it goes; every part must be a file."""

    def __init__(self, max_files: int) -> None:
        self.files: list[tuple[str, bytearray]] = []
        self.ended = False
        self._max_files = max_files

    def begin(self) -> None:
        self._disposition = b""
        self._header_name = b""
        self._header_value = b""

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def open_file(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        if b"filename" not in parameters:
            name = parameters.get(b"name", b"").decode(errors="replace")
            raise InvalidBatch(f"Every part must be a file. Received: a text field {name[:40]!r}.")
        if len(self.files) == self._max_files:
            raise PayloadTooLarge(f"A request must have at most {self._max_files} files. Received: more.")
        self.files.append((parameters[b"filename"].decode(errors="replace"), bytearray()))

    def add_content(self, data: bytes, start: int, end: int) -> None:
        self.files[-1][1].extend(memoryview(data)[start:end])

    def end(self) -> None:
        self.ended = True
