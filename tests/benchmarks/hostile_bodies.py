"""Request bodies chosen to cost the service much: each is near a limit, or over it, or hard to parse."""

import gzip
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

BOUNDARY = b"ext-classify-benchmark"
_JSON = "application/json"
_MULTIPART = f"multipart/form-data; boundary={BOUNDARY.decode()}"
_PART_HEAD = b'Content-Disposition: form-data; name="file"; filename="a.png"\r\n'
_MEGABYTE = 1_000_000
_LIMIT_BYTES = 64 * 1024 * 1024
"""The default of MAX_BODY_BYTES."""


class HostileRequest(NamedTuple):
    media_type: str
    body: bytes
    """As it goes over the wire: compressed, and with the chunks' sizes."""
    is_gzipped: bool = False
    is_chunked: bool = False

    def message(self, path: str) -> bytes:
        """The whole HTTP/1.1 request; the server closes the connection after its answer."""
        framing = "Transfer-Encoding: chunked" if self.is_chunked else f"Content-Length: {len(self.body)}"
        lines = [
            f"POST {path} HTTP/1.1",
            "Host: 127.0.0.1",
            "Connection: close",
            f"Content-Type: {self.media_type}",
            framing,
            *(["Content-Encoding: gzip"] if self.is_gzipped else []),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


def repeated(unit: bytes, size_bytes: int) -> bytes:
    return unit * (size_bytes // len(unit))


def one_row(filler: bytes, size_bytes: int) -> HostileRequest:
    """A batch of one row whose source is about `size_bytes` of `filler`."""
    return HostileRequest(_JSON, b'{"data":[[0,"' + repeated(filler, size_bytes) + b'"]]}')


def gzipped(make: Callable[[int], HostileRequest], size_bytes: int) -> HostileRequest:
    plain = make(size_bytes)
    return plain._replace(body=gzip.compress(plain.body, compresslevel=1), is_gzipped=True)


def blanks_between_tokens(size_bytes: int) -> HostileRequest:
    return HostileRequest(_JSON, b'{"data":' + b" " * size_bytes + b'[[0,"AAAA"]]}')


def equal_rows(count: int, source: bytes, size_bytes: int) -> HostileRequest:
    """A batch of `count` rows, each with a source of an equal share of `size_bytes` of `source`."""
    text = repeated(source, size_bytes // count)
    return HostileRequest(
        _JSON, b'{"data":[' + b",".join(b'[%d,"%b"]' % (number, text) for number in range(count)) + b"]}"
    )


def long_file_urls(path: bytes, size_bytes: int, *, count: int = 1000) -> HostileRequest:
    """A batch of `count` URLs of staged files, which share `size_bytes`."""
    url = b"https://myorg-mill.snowflakecomputing.com/api/files/" + repeated(path, size_bytes // count)
    return equal_rows(count, url, count * len(url))


def small_rows(size_bytes: int) -> HostileRequest:
    return HostileRequest(_JSON, b'{"data":[' + repeated(b'[0,""],', size_bytes) + b'[0,""]]}')


def deep_nesting(size_bytes: int) -> HostileRequest:
    return HostileRequest(_JSON, b'{"data":' + b"[" * (size_bytes // 2) + b"]" * (size_bytes // 2) + b"}")


def long_number(size_bytes: int) -> HostileRequest:
    return HostileRequest(_JSON, b'{"data":[[' + b"1" * size_bytes + b',"AAAA"]]}')


def repeated_keys(size_bytes: int) -> HostileRequest:
    return HostileRequest(_JSON, b"{" + repeated(b'"data":[],', size_bytes) + b'"data":[[0,"AAAA"]]}')


def long_part_header(size_bytes: int) -> HostileRequest:
    """A form of one file; a header of the part takes half of the body."""
    half = size_bytes // 2
    part = _PART_HEAD + b"X-Long: " + b"a" * half + b"\r\n\r\n" + b"A" * half
    return HostileRequest(_MULTIPART, b"--%b\r\n%b\r\n--%b--\r\n" % (BOUNDARY, part, BOUNDARY))


def small_parts(size_bytes: int, *, count: int = 4096) -> HostileRequest:
    """A form of `count` files, which share `size_bytes`."""
    content = b"A" * (size_bytes // count)
    part = b"--%b\r\n%b\r\n%b\r\n" % (BOUNDARY, _PART_HEAD, content)
    return HostileRequest(_MULTIPART, part * count + b"--%b--\r\n" % BOUNDARY)


def one_byte_chunks(size_bytes: int) -> HostileRequest:
    """One row of `size_bytes`, each byte of it in a chunk of its own: six bytes on the wire."""

    def in_chunks(text: bytes) -> bytes:
        return b"".join(b"1\r\n%c\r\n" % byte for byte in text)

    begin, end = in_chunks(b'{"data":[[0,"'), in_chunks(b'"]]}')
    return HostileRequest(_JSON, begin + b"1\r\nA\r\n" * size_bytes + end + b"0\r\n\r\n", is_chunked=True)


class HostileBody(NamedTuple):
    name: str
    make: Callable[[int], HostileRequest]
    """Makes a request whose body is of about so many bytes, before compression and chunks."""
    size_bytes: int

    def request(self) -> HostileRequest:
        return self.make(self.size_bytes)


_FILLERS: Mapping[str, bytes] = {
    r"escaped quotes, \":": rb"\":",
    "blanks": b" ",
    r"backslashes, \\": rb"\\",
    r"escapes, \u0041": rb"\u0041",
    'quotes, ":"': b'":"',
}
HOSTILE_BODIES = tuple(
    HostileBody(name, make, size_bytes)
    for name, make, size_bytes in itertools.chain(
        (
            (f"one row of {name}, gzip", partial(gzipped, partial(one_row, filler)), 62 * _MEGABYTE)
            for name, filler in _FILLERS.items()
        ),
        (
            ("blanks between tokens", blanks_between_tokens, 62 * _MEGABYTE),
            ("blanks between tokens, gzip", partial(gzipped, blanks_between_tokens), 62 * _MEGABYTE),
            ("one row of base64", partial(one_row, b"QUJD"), 60 * _MEGABYTE),
            ("4,096 rows of 14 kB", partial(equal_rows, 4096, b"QUJD"), 4096 * 14_000),
            ("1,000 rows of 64 kB", partial(equal_rows, 1000, b"QUJD"), _LIMIT_BYTES - 20_000),
            ("1,000 file URLs of %22.", partial(long_file_urls, b"%22."), 60 * _MEGABYTE),
            ("1,000 file URLs of /", partial(long_file_urls, b"/"), 60 * _MEGABYTE),
            ("1,000,000 small rows", small_rows, 7 * _MEGABYTE),
            ("deep nesting", deep_nesting, 60 * _MEGABYTE),
            ("a number", long_number, 60 * _MEGABYTE),
            ("repeated keys", repeated_keys, 60 * _MEGABYTE),
            ("a form with a long part header", long_part_header, 60 * _MEGABYTE),
            ("a form of 4,096 small parts", small_parts, _MEGABYTE),
            ("one-byte chunks", one_byte_chunks, 10 * _MEGABYTE),
        ),
    )
)
