"""Hosts that abuse HTTP are cut off early, and ordinary responses arrive complete."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from aiohttp.client_proto import ResponseHandler

from app.errors import FetchFailed
from app.images.http import (
    BODY_PIECE_BYTES,
    HEAD_PIECE_BYTES,
    MAX_INTERIM_RESPONSES,
    MAX_OVERHEAD_BYTES,
    BoundedResponseHandler,
    ImageFetcher,
)
from app.images.source import Url
from app.settings import Settings
from tests.app.images.https_server import FixedResolver, HttpsServer, Respond

HOST = "images.example.com"
LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
NewLoop = Callable[[], asyncio.AbstractEventLoop]
IMAGE = bytes(range(256)) * 12_000
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def send(content: bytes) -> Respond:
    async def respond(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()

    return respond


def send_endlessly(head: bytes, repeated: bytes) -> Respond:
    async def respond(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        for _ in range(10_000):
            writer.write(repeated)
            await writer.drain()
            await asyncio.sleep(0)
            if writer.is_closing():
                return
        raise AssertionError("The client reads without end.")

    return respond


def chunks_of(content: bytes, size: int) -> bytes:
    pieces = (content[start : start + size] for start in range(0, len(content), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def fetch(
    respond: Respond, new_loop: NewLoop = asyncio.new_event_loop, *, times: int = 1, **server_options: Any
) -> tuple[list[bytes], int]:
    """The fetched images, and the number of connections."""

    async def run() -> tuple[list[bytes], int]:
        async with HttpsServer(respond, HOST, **server_options) as server:
            settings = Settings(
                allowed_url_hosts=f"{HOST}:{server.port}",  # type: ignore[arg-type]
                allow_private_addresses=True,
                max_image_bytes=len(IMAGE),
            )
            resolver = FixedResolver("127.0.0.1")
            async with ImageFetcher(
                settings, resolver=resolver, ssl_context=server.client_context
            ) as fetcher:
                url = Url(f"https://{HOST}:{server.port}/a.png")
                return [await fetcher.fetch(url) for _ in range(times)], server.connections

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(run())


@LOOPS
@pytest.mark.parametrize(
    "response",
    [
        OK + b"Content-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE,
        OK + b"Connection: close\r\n\r\n" + IMAGE,
        CHUNKED + chunks_of(IMAGE, 100_000),
        CHUNKED + chunks_of(IMAGE, 100),
        b"HTTP/1.1 102 Processing\r\n\r\n" * 10 + CHUNKED + chunks_of(IMAGE, 8192),
        OK + b"A: " + b"a" * 8000 + b"\r\nContent-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE,
    ],
    ids=["length", "until close", "large chunks", "small chunks", "after interim responses", "long head"],
)
def test_image_arrives_whole_though_its_host_closes_behind_it(new_loop: NewLoop, response: bytes) -> None:
    assert fetch(send(response), new_loop)[0] == [IMAGE]


@LOOPS
def test_connection_is_used_again(new_loop: NewLoop) -> None:
    response = CHUNKED + chunks_of(IMAGE, 100_000)
    images, connections = fetch(send(response), new_loop, times=3, keep_alive=True)
    assert images == [IMAGE] * 3
    assert connections == 1


@LOOPS
@pytest.mark.parametrize(
    ("respond", "rule"),
    [
        (send_endlessly(b"", b"HTTP/1.1 102 x\r\n\r\n" * 2000), "interim"),
        (send_endlessly(CHUNKED, b"1\r\na\r\n" * 20_000), "in addition"),
        (send_endlessly(CHUNKED, b"1;" + b"x" * 5000 + b"\r\na\r\n"), "in addition"),
        (send_endlessly(CHUNKED + b"0\r\n", b"A: b\r\n" * 1000), "."),
        (send_endlessly(b"", b"\r\n" * 10_000), "."),
        (send(OK + (b"Set-Cookie: a=" + b"\\" * 8000 + b"\r\n") * 30 + b"\r\n"), "in addition"),
        (send(OK + (b"A: " + b"b" * 1000 + b"\r\n") * 100 + b"\r\n"), "in addition"),
    ],
    ids=["interim", "chunks of a byte", "chunk extensions", "trailers", "blank lines", "cookies", "head"],
)
def test_host_that_sends_more_than_an_image_is_disconnected(
    new_loop: NewLoop, respond: Respond, rule: str
) -> None:
    with pytest.raises(FetchFailed, match=rule):
        fetch(respond, new_loop)


class RecordingTransport(asyncio.Transport):
    """Records the calls of the handler."""

    def __init__(self) -> None:
        super().__init__()
        self.is_paused = False
        self.is_aborted = False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_aborted


def handle(monkeypatch: pytest.MonkeyPatch, content: bytes) -> tuple[RecordingTransport, list[int], int]:
    """Hand over `content` at once: the transport, the sizes of the parsed pieces, and the messages."""
    parsed: list[int] = []
    parse = ResponseHandler.data_received

    def count(handler: ResponseHandler, data: bytes) -> None:
        parsed.append(len(data))
        parse(handler, data)

    monkeypatch.setattr(ResponseHandler, "data_received", count)

    async def run() -> tuple[RecordingTransport, list[int], int]:
        transport = RecordingTransport()
        handler = BoundedResponseHandler(asyncio.get_running_loop())
        handler.connection_made(transport)
        handler.set_response_params(auto_decompress=False)
        handler.data_received(content)
        assert len(parsed) <= 2  # the rest is left to later turns of the event loop
        while transport.is_paused and not transport.is_aborted:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return transport, parsed, len(handler)

    return asyncio.run(run())


def test_interim_responses_are_parsed_no_further_than_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    interim = b"HTTP/1.1 102 x\r\n\r\n"
    transport, parsed, messages = handle(monkeypatch, interim * 20_000)
    assert transport.is_aborted
    assert messages <= MAX_INTERIM_RESPONSES + HEAD_PIECE_BYTES // len(interim) + 1
    assert max(parsed) == HEAD_PIECE_BYTES


def test_chunks_are_parsed_in_short_pieces_until_their_overhead_is_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transport, parsed, _ = handle(monkeypatch, CHUNKED + b"1\r\na\r\n" * 40_000)
    assert transport.is_aborted
    assert max(parsed) == BODY_PIECE_BYTES
    assert sum(parsed) < 2 * MAX_OVERHEAD_BYTES


def test_body_of_known_length_is_parsed_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    content = OK + b"Content-Length: 100000\r\n\r\n" + bytes(100_000)
    transport, parsed, messages = handle(monkeypatch, content)
    assert parsed == [HEAD_PIECE_BYTES, len(content) - HEAD_PIECE_BYTES]
    assert not transport.is_aborted
    assert messages == 1


def test_unsolicited_response_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    response = OK + b"Content-Length: 1\r\n\r\na"
    transport, _, messages = handle(monkeypatch, response + response * 1000)
    assert transport.is_aborted
    assert messages <= HEAD_PIECE_BYTES // len(response) + 1


def test_bytes_on_an_idle_connection_close_it() -> None:
    async def run() -> None:
        transport = RecordingTransport()
        handler = BoundedResponseHandler(asyncio.get_running_loop())
        handler.connection_made(transport)
        handler.set_response_params(auto_decompress=False)
        handler.data_received(OK + b"Content-Length: 1\r\n\r\na")
        message, body = await handler.read()
        assert (message.code, await body.read()) == (200, b"a")
        assert not transport.is_aborted
        handler.data_received(b"HTTP/1.1 102 x\r\n\r\n")
        assert transport.is_aborted
        assert not handler.is_connected()

    asyncio.run(run())
