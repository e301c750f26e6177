from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.server.framing import (
    MAX_CHUNK_LINE_BYTES,
    MAX_CHUNKS_A_CALL,
    MAX_TRAILER_BYTES,
    BadRequest,
    BodyFraming,
    ChunkedBody,
    FramingTooLarge,
    LengthBody,
    TrailersTooLarge,
)

REST = b"GET / HTTP/1.1\r\n"


def chunked(body: bytes, sizes: list[int], extension: bytes = b"", trailers: bytes = b"") -> bytes:
    pieces, start = [], 0
    for size in sizes:
        chunk = body[start : start + size]
        if chunk:
            pieces.append(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk))
        start += size
    if body[start:]:
        pieces.append(b"%X\r\n%b\r\n" % (len(body) - start, body[start:]))
    return b"".join([*pieces, b"0%b\r\n" % extension, trailers, b"\r\n"])


def take_all(framing: BodyFraming, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """The body, and the bytes after it."""
    body, rest = list[bytes](), b""
    for piece in pieces:
        position = 0
        while position < len(piece) and not framing.is_complete:
            position = framing.take(piece, position, body)
        rest += piece[position:]
    return b"".join(body), rest


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


@given(
    st.binary(max_size=300),
    st.lists(st.integers(1, 50), max_size=20),
    st.lists(st.integers(0, 2000), max_size=20),
    st.sampled_from([b"", b";a=b", b" \t; a", b';name="quoted value"', b";" + b"x" * 200]),
    st.sampled_from([b"", b"X-Checksum: 1\r\n", b"a:b\r\nc: d\r\n"]),
)
def test_body_does_not_depend_on_chunks_and_packets(
    body: bytes, sizes: list[int], places: list[int], extension: bytes, trailers: bytes
) -> None:
    sent = chunked(body, sizes, extension, trailers) + REST
    assert take_all(ChunkedBody(), cut(sent, places)) == (body, REST)
    assert take_all(LengthBody(len(body)), cut(body + REST, places)) == (body, REST)


@pytest.mark.parametrize(
    "sent",
    [
        b"0x5\r\nabcde\r\n0\r\n\r\n",
        b"+5\r\nabcde\r\n0\r\n\r\n",
        b"-5\r\nabcde\r\n0\r\n\r\n",
        b"5 \r\nabcde\r\n0\r\n\r\n",
        b" 5\r\nabcde\r\n0\r\n\r\n",
        b"1_0\r\nabcde\r\n0\r\n\r\n",
        b"\r\n0\r\n\r\n",
        b"5\nabcde\r\n0\r\n\r\n",
        b"5\r\nabcde\n0\r\n\r\n",
        b"5\r\nabcdef\r\n0\r\n\r\n",
        b"5\r\nabcd\r\n0\r\n\r\n",
        b"5;a\rb\r\nabcde\r\n0\r\n\r\n",
        b"5;a\x00b\r\nabcde\r\n0\r\n\r\n",
        b"11111111111111111\r\n",
        b"0\r\nno trailer\r\n\r\n",
        b"0\r\na:b\n\r\n\r\n",
        b"0\r\n a:b\r\n\r\n",
        b"0\n\n",
    ],
)
def test_ambiguous_chunk_is_rejected(sent: bytes) -> None:
    for pieces in ([sent], [bytes([byte]) for byte in sent]):
        with pytest.raises(BadRequest) as refused:
            take_all(ChunkedBody(), pieces)
        assert refused.value.status in (400, 413)


@pytest.mark.parametrize(
    ("sent", "refusal"),
    [
        (b"0\r\n" + b"a:b\r\n" * MAX_TRAILER_BYTES, TrailersTooLarge),
        (b"0\r\na:" + b"b" * MAX_TRAILER_BYTES, TrailersTooLarge),
        (b"5;" + b"x" * MAX_CHUNK_LINE_BYTES, FramingTooLarge),
        (b"1;" + b"x" * 900 + b"\r\na\r\n", FramingTooLarge),
        (b"0" * 15 + b"1;" + b"x" * 80 + b"\r\na\r\n", FramingTooLarge),
    ],
)
def test_endless_framing_is_rejected_before_it_uses_memory(sent: bytes, refusal: type[BadRequest]) -> None:
    stream = sent * (1 + 3_000_000 // len(sent))
    packets = [stream[start : start + 1000] for start in range(0, len(stream), 1000)]
    with pytest.raises(refusal):
        take_all(ChunkedBody(), packets)


def test_trailers_may_have_as_many_bytes_as_the_limit() -> None:
    line = b"a: " + b"b" * (MAX_TRAILER_BYTES - 7) + b"\r\n"
    assert len(line) + 2 == MAX_TRAILER_BYTES
    assert take_all(ChunkedBody(), [b"1\r\na\r\n0\r\n" + line + b"\r\n" + REST]) == (b"a", REST)


def test_one_call_parses_a_limited_number_of_chunks() -> None:
    """A packet of tens of thousands of chunks must not block the event loop."""
    sent = b"1\r\nx\r\n" * 40_000
    framing, body, position, calls = ChunkedBody(), list[bytes](), 0, 0
    while position < len(sent):
        before = len(body)
        position = framing.take(sent, position, body)
        calls += 1
        assert len(body) - before <= MAX_CHUNKS_A_CALL
    assert len(body) == 40_000
    assert calls >= 40_000 // MAX_CHUNKS_A_CALL


def test_large_body_in_one_byte_chunks_is_accepted() -> None:
    body = bytes(range(256)) * 400
    assert take_all(ChunkedBody(), [chunked(body, [1] * len(body))]) == (body, b"")
