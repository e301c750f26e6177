"""Requests as bytes on a connection, through the real protocol and an application that echoes them."""

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import h11

from app.server.connection import ConnectionLimits, HttpProtocol

_MAX_TURNS = 2000
_RUNNER = asyncio.Runner()
_ANSWER = re.compile(
    rb"HTTP/1\.1 (\d{3})[^\r]*\r\n(?:[^\r]+\r\n)*?content-length: (\d+)\r\n(?:[^\r]+\r\n)*\r\n"
)

Exchange = tuple[bytes, bytes, bytes]
"""A request's method, target's path and body, as the application saw them."""


class _Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_paused = False
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_closed, "written after the connection was closed"
        self.written += data

    def write_eof(self) -> None:
        self.is_closed = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


def answer_requests(data: bytes) -> None:
    """The first byte says into what packets the others are cut: their answers are the same in any."""
    if not data:
        return
    packet_bytes, stream = 1 + data[0], data[1:]
    at_once, in_packets = (_RUNNER.run(_exchange(stream, size)) for size in (1 << 20, packet_bytes))
    assert at_once == in_packets, "requests are the same however they are cut"
    requests, error = at_once
    assert error in (b"", b"400", b"413", b"414", b"431", b"501", b"505"), error
    _compare_with_h11(stream, requests)


async def _exchange(stream: bytes, packet_bytes: int) -> tuple[list[Exchange], bytes]:
    """The requests that were answered, and the status of the error that ended the connection, if any."""
    seen: list[Exchange] = []

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        assert all(name == name.lower() for name, _ in scope["headers"])
        seen.append((scope["method"].encode(), scope["raw_path"], body))
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    limits = ConnectionLimits()
    config: Any = SimpleNamespace(
        loaded=True, loaded_app=echo, timeout_keep_alive=60, asgi_version="3.0", root_path=""
    )
    state: Any = SimpleNamespace(connections=set(), tasks=set(), default_headers=[], total_requests=0)
    connection, transport = HttpProtocol(limits)(config, state, {}), _Transport()
    transport.get_extra_info = lambda name, default=None: default  # type: ignore[method-assign]
    connection.connection_made(transport)
    for start in range(0, len(stream), packet_bytes):
        await _settle(transport)
        if transport.is_closed or transport.is_paused:
            break
        connection.data_received(stream[start : start + packet_bytes])
    await _settle(transport)
    error = _check_answers(bytes(transport.written), seen)
    connection.connection_lost(None)
    await asyncio.gather(*state.tasks)
    assert limits.buffered_bytes == 0
    return seen, error


async def _settle(transport: _Transport) -> None:
    """Until what has arrived is answered or waits for more."""
    for turn in range(_MAX_TURNS):
        await asyncio.sleep(0)
        if turn >= 8 and not transport.is_paused:
            return


def _check_answers(written: bytes, seen: list[Exchange]) -> bytes:
    """One well-formed answer for each request, and at most one error after them, whose status is returned."""
    written = written.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    position, answers = 0, []
    while position < len(written):
        answer = _ANSWER.match(written, position)
        assert answer is not None, written[position : position + 100]
        # The refusal of a HEAD request has no body either.
        is_refused_head = answer[1] != b"200" and answer.end() == len(written)
        has_body = not is_refused_head and not _is_head(len(answers), seen)
        position = answer.end() + (int(answer[2]) if has_body else 0)
        answers.append((answer[1], written[answer.end() : position]))
    assert position == len(written)
    echoed = [body for status, body in answers if status == b"200"]
    assert echoed == [b"" if method == b"HEAD" else body for method, _, body in seen]
    errors = [status for status, _ in answers if status != b"200"]
    assert errors in ([], [answers[-1][0]] if answers else [])
    return errors[0] if errors else b""


def _is_head(place: int, seen: list[Exchange]) -> bool:
    return place < len(seen) and seen[place][0] == b"HEAD"


def _compare_with_h11(stream: bytes, requests: list[Exchange]) -> None:
    """A strict parser reads the same requests as ours, as far as it reads."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    parser.receive_data(stream)
    for _, _, body in requests:
        try:
            read = _read_request(parser)
        except h11.RemoteProtocolError:
            return  # stricter than our parser
        if read is None:  # it waits for an answer to a proposed upgrade, or the connection ends
            return
        assert read == body, "another parser would frame this request differently"


def _read_request(parser: h11.Connection) -> bytes | None:
    body = b""
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            parser.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            parser.send(h11.EndOfMessage())
            if parser.our_state is h11.DONE and parser.their_state is h11.DONE:
                parser.start_next_cycle()
            return body
        elif not isinstance(event, h11.Request | h11.InformationalResponse):
            return None
