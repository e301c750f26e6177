import asyncio
from collections.abc import AsyncIterator

import pytest
from python_multipart.multipart import MultipartParser

from app.api import body as multipart
from app.errors import InvalidBatch, MalformedBody, PayloadTooLarge, ServiceError

CONTENT_TYPE = "multipart/form-data; boundary=b"


def part(content: bytes = b"x", name: str = "a.png") -> bytes:
    disposition = f'form-data; name="f"; filename="{name}"'.encode()
    return b"--b\r\nContent-Disposition: %b\r\n\r\n%b\r\n" % (disposition, content)


def parse(
    body: bytes, max_files: int = 10, chunk_bytes: int = 1 << 16, content_type: str = CONTENT_TYPE
) -> list[tuple[str, bytes]]:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), chunk_bytes):
            yield body[start : start + chunk_bytes]
        yield b""  # how a server ends a body

    return asyncio.run(multipart.parse_files(content_type, chunks(), max_files))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bytes of each call to the parser."""
    pieces: list[bytes] = []
    write = MultipartParser.write

    def note(self: MultipartParser, data: bytes) -> int:
        pieces.append(data)
        return write(self, data)

    monkeypatch.setattr(MultipartParser, "write", note)
    return pieces


@pytest.mark.parametrize("chunk_bytes", [1, 7, 50, 1 << 20])
@pytest.mark.parametrize("preamble", [b"", b"\r\n"])
def test_files_arrive_in_whatever_chunks(preamble: bytes, chunk_bytes: int) -> None:
    files = [(f"{number}.png", bytes([number]) * number) for number in range(10)]
    body = preamble + b"".join(part(content, name) for name, content in files) + b"--b--\r\n"
    assert parse(body, 10, chunk_bytes) == files
    with pytest.raises(PayloadTooLarge, match="at most 9 files"):
        parse(body, 9, chunk_bytes)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize("preamble", [b"For other programs.\r\n", b"--a line\r\n\r\n--\r\n", b"\r\n" * 9])
@pytest.mark.parametrize("epilogue", [b"", b"\r\n", b"\r\nThe end.\r\n", b"\r\n--b\r\n\r\n"])
def test_text_around_the_parts_is_ignored(preamble: bytes, epilogue: bytes, chunk_bytes: int) -> None:
    """RFC 2046, section 5.1.1."""
    body = preamble + part() + part(b"y", "b.png") + b"--b--" + epilogue
    assert parse(body, chunk_bytes=chunk_bytes) == [("a.png", b"x"), ("b.png", b"y")]


def test_long_text_before_the_parts_is_refused() -> None:
    with pytest.raises(MalformedBody, match="must begin with its boundary"):
        parse(b"x" * 2 * multipart.MAX_PREAMBLE_BYTES + part() + b"--b--\r\n", chunk_bytes=1000)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ("filename*=UTF-8''na%C3%AFve.png", "naïve.png"),
        ("filename*=utf-8'en'a%20b%3B.png", "a b;.png"),
        ("FILENAME*=\"UTF-8''a.png\"", "a.png"),
        ("filename*=ISO-8859-1''na%EFve.png", "naïve.png"),
        ("filename*=unicode_escape''%5Cud800.png", "\\ud800.png"),
        ("filename*=UTF-8''%ff.png", "\ufffd.png"),
        ("filename*=UTF-8''", ""),
        ("filename=\"a.png\"; filename*=UTF-8''b.png", "a.png"),
    ],
)
def test_file_may_have_an_extended_name_only(parameters: str, name: str) -> None:
    body = part().replace(b'filename="a.png"', parameters.encode())
    assert parse(body + b"--b--\r\n") == [(name, b"x")]


def test_chunk_of_many_parts_is_parsed_in_pieces(written: list[bytes]) -> None:
    body = part() * 4000 + b"--b--\r\n"
    assert len(parse(body, 4096, chunk_bytes=1 << 20)) == 4000
    assert max(map(len, written)) <= multipart.PIECE_BYTES
    assert b"".join(written) == body


@pytest.mark.parametrize("mark", [b"\r\n--bX", b"\r\n--b-X", b"\r\n--b\rX"])
def test_boundaries_inside_files_are_counted_before_the_parser_sees_them(
    mark: bytes, written: list[bytes]
) -> None:
    body = part(mark * 1_000_000) + b"--b--\r\n"
    with pytest.raises(PayloadTooLarge, match="at most 4096 files"):
        parse(body, 4096)
    assert sum(map(len, written)) < 4096 * len(mark)


def test_file_name_may_have_255_characters_of_any_script() -> None:
    name = "\U0001f600" * 255
    assert parse(part(name=name) + b"--b--\r\n") == [(name, b"x")]
    assert parse(part(name="a;b.png") + b"--b--\r\n") == [("a;b.png", b"x")]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("a" * 2048, "at most 2048 bytes"),
        (";" * 31, "32 semicolons. Received: 33"),
        (';"' * 900, "32 semicolons"),
    ],
)
def test_options_that_are_expensive_to_parse_are_refused(name: str, rule: str) -> None:
    with pytest.raises(MalformedBody, match=rf"part's Content-Disposition must have .*{rule}"):
        parse(part(name=name) + b"--b--\r\n")
    content_type = f'{CONTENT_TYPE}; x="{name}{name}"'
    with pytest.raises(MalformedBody, match=r"Content-Type must have at most \d+ (bytes|semicolons)"):
        parse(part() + b"--b--\r\n", content_type=content_type)


@pytest.mark.parametrize("extra", [b"a:\r\n" * 1000, b"a:" + b" " * 100_000, b"a" * 100_000])
def test_headers_of_a_part_have_a_maximum_length(extra: bytes) -> None:
    body = part().replace(b"\r\n\r\n", b"\r\n" + extra + b"\r\n\r\n")
    with pytest.raises(MalformedBody, match="header"):
        parse(body + b"--b--\r\n")


@pytest.mark.parametrize("encoding", ["base64", "Quoted-Printable"])
def test_content_of_a_part_is_not_encoded(encoding: str) -> None:
    header = b"\r\nContent-Transfer-Encoding: %b\r\n\r\n"
    with pytest.raises(InvalidBatch, match=encoding.lower()):
        parse(part().replace(b"\r\n\r\n", header % encoding.encode()) + b"--b--\r\n")
    files = parse(part().replace(b"\r\n\r\n", header % b"BINARY") + b"--b--\r\n")
    assert files == [("a.png", b"x")]


@pytest.mark.parametrize(
    "body", [b"", b"--b", b"--b--", b"--b\r\n\r\n\r\n--b--\r\n", b"x" * 100, b"\r\n" * 100, part()]
)
def test_what_holds_no_files_is_refused(body: bytes) -> None:
    with pytest.raises(ServiceError) as refused:
        parse(body)
    assert isinstance(refused.value, MalformedBody | InvalidBatch)
