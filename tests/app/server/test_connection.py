import asyncio
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from select import select
from typing import Any

import pytest
import uvicorn
from starlette.responses import Response

from app.server import connection
from app.server.connection import ConnectionLimits, HttpProtocol
from app.server.framing import MAX_HEAD_BYTES, MAX_HEADERS, MAX_TARGET_BYTES
from tests.running import free_port, wait_until

Answer = tuple[int, dict[str, Any]]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body, or with the requested number of bytes."""
    if scope["type"] != "http":
        return
    body = await read_body(receive)
    answer = b"x" * int(body[4:]) if body.startswith(b"send") else b"%d" % len(body)
    await send_answer(send, answer)


async def read_body(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def send_answer(send: Any, answer: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


# No test waits for so long: whatever the machine does meanwhile, the service closes nothing by its clock.
PATIENCE_SECONDS = 120


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD", "WRITE", "DISCARD", "LINGER"):
        monkeypatch.setattr(connection, f"{name}_TIMEOUT_SECONDS", PATIENCE_SECONDS)


@contextmanager
def serving(
    asked: Any = None,
    limits: ConnectionLimits | None = None,
    keep_alive_seconds: int = PATIENCE_SECONDS,
    loop: str = "auto",
) -> Iterator[tuple[int, uvicorn.Server]]:
    port = free_port()
    options: Any = {"http": HttpProtocol(limits), "lifespan": "off", "log_config": None, "ws": "none"}
    options |= {"proxy_headers": False, "timeout_keep_alive": keep_alive_seconds, "loop": loop}
    server = uvicorn.Server(uvicorn.Config(asked or application, port=port, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield port, server
    finally:
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving() as (port, _):
        yield port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)


def read_until(connected: socket.socket, end: bytes) -> bytes:
    """The head and the body of an answer may arrive apart."""
    received = b""
    while not received.endswith(end):
        piece = connected.recv(65536)
        assert piece, received
        received += piece
    return received


def read_bytes(connected: socket.socket, count: int) -> None:
    while count:
        piece = connected.recv(min(count, 1_000_000))
        assert piece
        count -= len(piece)


def requests_in_progress(server: uvicorn.Server) -> int:
    return sum(there.cycle is not None for there in server.server_state.connections)


def read_all(connected: socket.socket) -> bytes:
    """Until the service closes the connection."""
    received = b""
    while piece := connected.recv(65536):
        received += piece
    return received


def refusal_of(received: bytes) -> Answer:
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert f"content-length: {len(body)}".encode() in head
    error = json.loads(body)["error"]
    return int(head.split()[1]), error


def ask(port: int, said: bytes) -> Answer:
    with connect(port) as connected:
        connected.sendall(said)
        return refusal_of(read_all(connected))


def head_of(total_bytes: int) -> bytes:
    begin, end = b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"\r\n\r\n"
    return begin + b"x" * (total_bytes - len(begin) - len(end)) + end


@pytest.mark.parametrize("piece_bytes", [1_000_000, 1000])
def test_head_larger_than_the_limit_is_rejected(port: int, piece_bytes: int) -> None:
    for more, status in ((0, b"200"), (1, b"431")):
        head = head_of(MAX_HEAD_BYTES + more)
        with connect(port) as connected:
            for start in range(0, len(head), piece_bytes):
                connected.sendall(head[start : start + piece_bytes])
                time.sleep(0.001)
            assert connected.recv(100).startswith(b"HTTP/1.1 " + status)
    status, error = ask(port, head)
    assert (status, error["code"]) == (431, "head_too_large")
    assert error["message"].endswith("at most 65536 bytes. Received: more.")


def test_endless_head_is_rejected(port: int) -> None:
    with connect(port) as connected:
        connected.sendall(b"GET / HTTP/1.1\r\na: " + b"x" * MAX_HEAD_BYTES)
        assert refusal_of(read_all(connected))[0] == 431


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (b"GET /" + b"x" * MAX_TARGET_BYTES + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri_too_long"),
        (b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431, "head_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:b\r\n" * MAX_HEADERS + b"\r\n", 431, "head_too_large"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400, "malformed_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_request"),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "malformed_request"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            501,
            "unknown_transfer_coding",
        ),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, "http_version_not_supported"),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505, "http_version_not_supported"),
        (b"OPTIONS / RTSP/1.0\r\nHost: a\r\n\r\n", 505, "http_version_not_supported"),
        (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "malformed_request"),
    ],
)
def test_invalid_head_is_rejected(port: int, head: bytes, status: int, code: str) -> None:
    answered, error = ask(port, head)
    assert (answered, error["code"]) == (status, code)


def test_content_length_may_have_leading_zeros(echo_port: int) -> None:
    sent = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"0" * 5000 + b"2\r\n\r\nhi"
    first, _ = answers_to(echo_port, sent + LAST)
    assert first.endswith(b"|hi>")


def test_blanks_after_a_value_are_no_part_of_it(echo_port: int) -> None:
    """RFC 9112, section 5."""
    sent = b"POST / HTTP/1.1\r\nHost: a \t\r\nTransfer-Encoding: chunked \r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    first, _ = answers_to(echo_port, sent + LAST)
    assert first.endswith(b"|hi>")


@pytest.mark.parametrize(
    "sent", [b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x02", b"SSH-2.0-x\r\n"]
)
def test_unknown_method_is_named(port: int, sent: bytes) -> None:
    assert "unknown method" in ask(port, sent)[1]["message"]


def test_http_1_0_needs_no_host(port: int) -> None:
    with connect(port) as connected:
        connected.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert read_all(connected).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "said",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5x\r\n\r\nabcde",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nabcde",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"not http at all\r\n\r\n",
    ],
)
def test_ambiguous_framing_is_rejected(port: int, said: bytes) -> None:
    status, error = ask(port, said)
    assert (status, error["code"]) == (400, "malformed_request")
    assert error["retryable"] is False


@pytest.mark.slow
def test_slow_head_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_SECONDS", 0.3)
    with serving() as (port, _), connect(port) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        while not select([slow], [], [], 0.01)[0]:
            slow.sendall(b"x")
        status, error = refusal_of(read_all(slow))
        assert (status, error["code"]) == (408, "head_timeout")


def test_slow_head_of_a_later_request_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_SECONDS", 0.3)
    with serving() as (port, _), connect(port) as slow:
        slow.sendall(GET)
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET")
        assert refusal_of(read_all(slow))[0] == 408


@pytest.mark.slow
def test_idle_connection_is_closed_without_an_answer() -> None:
    with serving(keep_alive_seconds=1) as (port, _), connect(port) as silent:
        assert read_all(silent) == b""


def test_hundreds_of_incomplete_requests_do_not_block_other_clients(port: int) -> None:
    with ExitStack() as stack:
        for number in range(300):
            half_open = stack.enter_context(connect(port))
            half_open.sendall(
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx" if number % 2 else b"PO"
            )
        for _ in range(20):
            with connect(port) as connected:
                connected.sendall(GET)
                assert connected.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_client_that_does_not_read_its_answer_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WRITE_TIMEOUT_SECONDS", 0.3)
    with serving() as (port, server), connect(port) as deaf:
        deaf.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\nsend50000000")
        wait_until(lambda: server.server_state.total_requests == 1)
        wait_until(lambda: not server.server_state.connections)


def test_connection_serves_several_requests(port: int) -> None:
    with connect(port) as connected:
        for length in (0, 5, 100_000):
            request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length
            connected.sendall(request + b"x" * length)
            assert read_until(connected, b"\r\n\r\n%d" % length).startswith(b"HTTP/1.1 200")


def test_head_and_body_of_a_small_answer_are_one_packet(port: int) -> None:
    with connect(port) as connected:
        for _ in range(20):
            connected.sendall(GET)
            assert connected.recv(64 * 1024).endswith(b"\r\n\r\n0")


async def without_body(scope: Any, receive: Any, send: Any) -> None:
    """Breaks off after the head of its answer, unless the method is HEAD."""
    if scope["type"] == "http":
        headers = [(b"content-length", b"7")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("rest", ["Connection: close\r\n\r\n", "Content-Length: 9\r\n\r\nunre"])
@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_head_of_an_answer_without_a_body_is_sent(method: str, rest: str) -> None:
    with serving(without_body) as (port, _), connect(port) as connected:
        connected.sendall(f"{method} / HTTP/1.1\r\nHost: a\r\n{rest}".encode())
        assert read_until(connected, b"\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_client_that_reads_slowly_gets_its_whole_answer() -> None:
    with serving() as (port, server), connect(port) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\nsend50000000")
        read_bytes(slow, 1)
        [there] = server.server_state.connections
        for _ in range(4):
            unwritten_bytes = there.transport.get_write_buffer_size()
            read_bytes(slow, 10_000_000)
            wait_until(lambda before=unwritten_bytes: there.transport.get_write_buffer_size() < before)  # type: ignore[misc]
            # As if the write timeout passed after each piece, and never twice in one step of the event loop.
            ended = threading.Event()
            there.loop.call_soon_threadsafe(there._end_writing)  # noqa: SLF001
            there.loop.call_soon_threadsafe(ended.set)
            assert ended.wait(PATIENCE_SECONDS)
        read_bytes(slow, 10_000_000)


@pytest.mark.slow
def test_blank_lines_do_not_keep_a_connection_open() -> None:
    with serving(keep_alive_seconds=1) as (port, server), connect(port) as idle:
        idle.sendall(GET)
        assert idle.recv(100).startswith(b"HTTP/1.1 200")
        idle.sendall(b"\r\n")
        wait_until(lambda: not server.server_state.connections)


@pytest.mark.slow
@pytest.mark.parametrize("asked_before", [False, True])
def test_request_that_arrives_during_shutdown_is_answered(
    monkeypatch: pytest.MonkeyPatch, *, asked_before: bool
) -> None:
    monkeypatch.setattr(connection, "SHUTDOWN_IDLE_SECONDS", PATIENCE_SECONDS)
    with serving() as (port, server), connect(port) as late:
        if asked_before:
            late.sendall(GET)
            assert late.recv(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: len(server.server_state.connections) == 1)
        server.should_exit = True
        wait_until(lambda: not server.servers[0].is_serving())
        late.sendall(GET)
        answer = read_all(late)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer


class Busy:
    """Rejects requests to /busy early, and answers all others."""

    asked = 0
    answer: Any = staticmethod(application)

    def refuse_at_once(self, scope: Any) -> Response | None:
        return Response(b"no", 429, {"retry-after": "1"}) if scope["path"] == "/busy" else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += scope["type"] == "http"
        refusal = scope["type"] == "http" and self.refuse_at_once(scope)
        await (refusal or self.answer)(scope, receive, send)


BUSY = b"POST /busy HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n"


@pytest.mark.slow
def test_early_rejection_needs_neither_the_body_nor_the_app() -> None:
    app = Busy()
    with serving(app, keep_alive_seconds=1) as (port, server), connect(port) as caller:
        for _ in range(3):
            caller.sendall(BUSY)
            answer = read_until(caller, b"\r\n\r\nno")
            assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
            assert b"retry-after: 1\r\n" in answer
            assert b"content-length: 2\r\n" in answer
            assert b"\r\ndate: " in answer
            caller.sendall(bytes(500_000))
        assert app.asked == 0
        caller.sendall(GET)
        read_until(caller, b"\r\n\r\n0")
        assert app.asked == 1
        wait_until(lambda: not server.server_state.connections)  # idle for as long as any


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 2\r\n\r\nhi", b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"]
)
def test_early_rejection_of_a_request_that_has_arrived_whole_keeps_the_connection(
    framing: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in a callback of the event loop appears in the log alone."""
    app = Busy()
    with serving(app) as (port, server), connect(port) as caller:
        for number in range(1, 4):
            caller.sendall(b"POST /busy HTTP/1.1\r\nHost: a\r\n" + framing)
            assert read_until(caller, b"\r\n\r\nno").startswith(b"HTTP/1.1 429")
            assert server.server_state.total_requests == number
        caller.sendall(GET)
        read_until(caller, b"\r\n\r\n0")
    assert app.asked == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "head",
    [
        b"POST /busy HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"POST /busy HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_early_rejection_closes_the_connection_if_the_client_asks_for_it(head: bytes) -> None:
    with serving(Busy()) as (port, _), connect(port) as caller:
        caller.sendall(head)
        answer = read_all(caller)
        assert answer.startswith(b"HTTP/1.1 429")
        assert b"connection: close" in answer


def test_early_rejection_waits_for_earlier_answers() -> None:
    ask = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
    busy = b"POST /busy HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
    last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with serving(Busy()) as (port, _), connect(port) as caller:
        caller.sendall(ask + busy + ask + busy + last)
        answers = read_all(caller)
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", answers)
    assert statuses == [b"200", b"429", b"200", b"429", b"200"]


class Flooded(Busy):
    """Blocks the event loop for /block, and counts the requests between two of its turns."""

    def __init__(self) -> None:
        self.in_turns = [0]
        self.is_blocked, self.may_go_on = threading.Event(), threading.Event()

    def refuse_at_once(self, scope: Any) -> Response | None:
        self.in_turns[-1] += scope["path"] == "/busy"
        return super().refuse_at_once(scope)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.count_turns()
        self.is_blocked.set()
        self.may_go_on.wait(PATIENCE_SECONDS)
        await application(scope, receive, send)

    def count_turns(self) -> None:
        if sum(self.in_turns) < FLOOD:
            self.in_turns.append(0)
            asyncio.get_running_loop().call_soon(self.count_turns)


FLOOD = 50


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("rest", [b"hi", b""])
def test_flood_leaves_turns_to_the_rest_of_the_event_loop(
    loop: str, rest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_REQUESTS_A_TURN", 4)
    app, limits = Flooded(), ConnectionLimits(max_connections=FLOOD + 1)
    head = b"POST /busy HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(rest)
    with ExitStack() as stack:
        port, server = stack.enter_context(serving(app, limits, loop=loop))
        blocker = stack.enter_context(connect(port))
        callers = [stack.enter_context(connect(port)) for _ in range(FLOOD)]
        wait_until(lambda: len(server.server_state.connections) == FLOOD + 1)
        blocker.sendall(GET)
        assert app.is_blocked.wait(PATIENCE_SECONDS)
        for number, caller in enumerate(callers):
            caller.sendall(head + rest)
            if number % 2:
                caller.shutdown(socket.SHUT_WR)
        app.may_go_on.set()
        for caller in callers:
            assert read_until(caller, b"\r\n\r\nno").startswith(b"HTTP/1.1 429")
        read_until(blocker, b"\r\n\r\n0")
    assert sum(app.in_turns) == FLOOD
    assert max(app.in_turns) <= 2 * connection.MAX_REQUESTS_A_TURN
    assert limits.buffered_bytes == 0


def test_client_that_disconnects_before_its_turn_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_REQUESTS_A_TURN", 1)
    app, limits = Flooded(), ConnectionLimits(max_connections=FLOOD)
    with serving(app, limits) as (port, server), connect(port) as blocker:
        blocker.sendall(GET)
        assert app.is_blocked.wait(PATIENCE_SECONDS)
        for _ in range(FLOOD - 1):
            with connect(port) as caller:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # resets
                caller.sendall(BUSY)
        app.may_go_on.set()
        read_until(blocker, b"\r\n\r\n0")
        wait_until(lambda: len(server.server_state.connections) == 1)
        assert limits.buffered_bytes == 0
        with ExitStack() as stack:  # there is room for as many again
            for caller in [stack.enter_context(connect(port)) for _ in range(FLOOD - 1)]:
                caller.sendall(GET)
                read_until(caller, b"\r\n\r\n0")


def send_much(connected: socket.socket, heads: bytes) -> None:
    """Raises TimeoutError if the server reads nothing more for a while."""
    sent = 0
    while sent < 50_000_000:
        sent += connected.send(heads[sent % len(heads) :])


@pytest.mark.slow
def test_client_that_does_not_read_gets_no_early_rejections() -> None:
    """They would pile up; the application waits for the client and stops reading from it."""
    app = Busy()
    heads = b"POST /busy HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" * 1000
    with serving(app) as (port, server), connect(port) as caller:
        caller.settimeout(0.5)
        with pytest.raises(TimeoutError):
            send_much(caller, heads)
        wait_until(lambda: app.asked >= 1)
        [there] = server.server_state.connections
        assert there.transport.get_write_buffer_size() < 1_000_000


@pytest.mark.slow
def test_pipelined_requests_behind_a_slow_one_are_rejected_in_order() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.3)
        await application(scope, receive, send)

    app = Busy()
    app.answer = slow
    busy = b"POST /busy HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with serving(app) as (port, _), connect(port) as caller:
        caller.sendall(GET + busy * 600 + last)
        statuses = re.findall(rb"HTTP/1\.1 (\d+)", read_all(caller))
    assert statuses == [b"200", *[b"429"] * 600, b"200"]


@pytest.mark.slow
def test_many_pipelined_requests_do_not_count_as_one_head(port: int) -> None:
    """The last of them is incomplete."""
    with connect(port) as caller:
        caller.sendall(GET * 20_000 + GET[:-4])
        taken, rest = 0, b""
        while taken < 20_000:
            piece = rest + caller.recv(1_000_000)
            assert b" 431 " not in piece
            taken += piece.count(b"HTTP/1.1 200")
            rest = piece[max(piece.rfind(b"HTTP/1.1 200") + 1, 0) :]  # it may end within an answer


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the path, the names of the headers and the body."""
    if scope["type"] == "http":
        body = await read_body(receive)
        names = b",".join(name for name, _ in scope["headers"])
        await send_answer(send, b"<%b|%b|%b>" % (scope["raw_path"], names, body))


@pytest.fixture(scope="module")
def echo_port() -> Iterator[int]:
    with serving(echo) as (port, _):
        yield port


LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def answers_to(port: int, *pieces: bytes) -> list[bytes]:
    """For each answer the text in angle brackets, or the status of an error."""
    with connect(port) as connected:
        for piece in pieces:
            connected.sendall(piece)
            time.sleep(0.05)
        received = read_all(connected)
    return [
        told[2] if told[1] == b"200" else told[1]
        for told in re.finditer(rb"HTTP/1\.1 (\d+)[^<{]*(<[^>]*>|\{)", received)
    ]


@pytest.mark.slow
def test_trailers_do_not_become_headers(echo_port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = head + b"2\r\nhi\r\n0\r\nX-API-Key: secret\r\n\r\n"
    assert answers_to(echo_port, sent + LAST) == [
        b"</|host,transfer-encoding|hi>",
        b"</last|host,connection|>",
    ]
    assert answers_to(echo_port, *(sent[i : i + 7] for i in range(0, len(sent), 7)), LAST)[0].endswith(
        b"|hi>"
    )


def test_endless_trailers_are_rejected(echo_port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"
    status, error = ask(echo_port, head + b"a:b\r\n" * 10_000)
    assert (status, error["code"]) == (431, "trailers_too_large")


UPGRADES = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n",
    b"Connection: keep-alive, upgrade\r\nUpgrade: TLS/1.0, foo\r\n",
    b"Upgrade: h2c\r\n",
]
INNER = b"GET /inner HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_body_of_a_request_that_proposes_an_upgrade_is_read(
    echo_port: int, upgrade: bytes, framing: str
) -> None:
    if framing == "length":
        length, body = b"Content-Length: %d\r\n" % len(INNER), INNER
    else:
        length, body = b"Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(INNER), INNER)
    head = b"POST / HTTP/1.1\r\nHost: a\r\n" + length + upgrade + b"\r\n"
    for pieces in ([head + body + LAST], [head, body, LAST], [head + body[:5], body[5:] + LAST]):
        first, second = answers_to(echo_port, *pieces)
        assert first.endswith(b"|" + INNER + b">")
        assert second.startswith(b"</last|")


@pytest.mark.parametrize("upgrade", UPGRADES)
def test_upgrade_without_a_body_is_answered_and_the_next_request_too(echo_port: int, upgrade: bytes) -> None:
    first, second = answers_to(echo_port, b"GET / HTTP/1.1\r\nHost: a\r\n" + upgrade + b"\r\n" + LAST)
    assert first.startswith(b"</|")
    assert second.startswith(b"</last|")


def test_request_before_garbage_is_answered(echo_port: int) -> None:
    good = b"POST /good HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
    for garbage in (b"garbage\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"\x16\x03\x01\x02"):
        first, second = answers_to(echo_port, good + garbage)
        assert first.startswith(b"</good|")
        assert second == b"400"


def test_blank_lines_before_a_request_are_skipped(echo_port: int) -> None:
    assert answers_to(echo_port, b"\r\n\r\n\r\n" + INNER + b"\r\n" + LAST) == [
        b"</inner|host|>",
        b"</last|host,connection|>",
    ]


async def refusing(scope: Any, receive: Any, send: Any) -> None:
    """Answers 429 without reading the body, and closes the connection if the path says so."""
    if scope["type"] == "http":
        headers = [(b"content-length", b"2")]
        if scope["path"] == "/close":
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": b"no"})


@pytest.mark.parametrize("path", ["/", "/close"])
def test_client_that_is_still_sending_receives_the_rejection(path: str) -> None:
    with serving(refusing) as (port, server):
        with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)) as client:
            for _ in range(2):
                client.request("POST", path, bytes(30_000_000), {"Content-Type": "image/png"})
                answer = client.getresponse()
                assert (answer.status, answer.read()) == (429, b"no")
        wait_until(lambda: not server.server_state.connections)


def test_rest_of_a_refused_body_is_discarded_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_DISCARDED_BYTES", 1_000_000)
    with serving(refusing) as (port, server), connect(port) as refused:
        refused.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            refused.sendall(bytes(50_000_000))
        wait_until(lambda: not server.server_state.connections)


def test_rest_of_a_refused_chunked_body_is_discarded_without_parsing() -> None:
    with serving(refusing) as (port, _), connect(port) as refused:
        refused.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        refused.sendall(b"no chunk" * 100_000)
        assert read_all(refused).count(b"HTTP/1.1") == 1


@pytest.mark.slow
def test_rest_of_a_rejected_body_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "DISCARD_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(connection, "LINGER_TIMEOUT_SECONDS", 0.2)
    with serving(refusing) as (port, server), connect(port) as refused:
        refused.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\nx")
        assert read_all(refused).endswith(b"no")
        wait_until(lambda: not server.server_state.connections)


def test_client_that_received_no_100_continue_is_disconnected() -> None:
    """It may or may not send its body, so the next bytes cannot be framed."""
    with serving(refusing) as (port, _), connect(port) as expecting:
        expecting.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        answer = read_all(expecting)
        assert answer.startswith(b"HTTP/1.1 429")
        assert b"connection: close" in answer


def test_client_receives_100_continue(echo_port: int) -> None:
    with connect(echo_port) as expecting:
        expecting.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert expecting.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        expecting.sendall(b"hello")
        read_until(expecting, b"|hello>")


def test_client_of_http_1_0_receives_no_100_continue(echo_port: int) -> None:
    with connect(echo_port) as expecting:
        expecting.sendall(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
        assert read_all(expecting).startswith(b"HTTP/1.1 200")


def test_invalid_chunk_is_rejected_while_the_application_reads_the_body(echo_port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n"
    with connect(echo_port) as broken:
        broken.sendall(head)
        time.sleep(0.1)  # whenever the rest arrives, the answer is the same
        broken.sendall(b"xyz\r\n")
        assert refusal_of(read_all(broken))[0] == 400


def test_at_the_limit_the_connection_idle_for_longest_is_evicted() -> None:
    limits = ConnectionLimits(max_connections=3)
    with serving(limits=limits) as (port, server), ExitStack() as stack:
        first, busy, second = (stack.enter_context(connect(port)) for _ in range(3))
        wait_until(lambda: len(server.server_state.connections) == 3)
        busy.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n")
        wait_until(lambda: requests_in_progress(server) == 1)
        first.sendall(GET)
        assert first.recv(100).startswith(b"HTTP/1.1 200")
        one_more = stack.enter_context(connect(port))
        assert second.recv(100) == b""
        one_more.sendall(GET)
        assert one_more.recv(100).startswith(b"HTTP/1.1 200")
        busy.sendall(b"hi")
        assert busy.recv(100).startswith(b"HTTP/1.1 200")
        first.sendall(GET)
        assert first.recv(100).startswith(b"HTTP/1.1 200")


def test_connection_beyond_the_limit_is_refused_while_all_are_busy() -> None:
    with serving(limits=ConnectionLimits(max_connections=1)) as (port, server), connect(port) as busy:
        busy.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n")
        wait_until(lambda: requests_in_progress(server) == 1)
        with connect(port) as refused:
            status, error = refusal_of(read_all(refused))
            assert (status, error["code"], error["retryable"]) == (503, "overloaded", True)
        busy.sendall(b"hi")
        assert busy.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_memory_of_endless_heads_is_limited() -> None:
    limits = ConnectionLimits(max_buffered_bytes=200_000)
    with serving(limits=limits) as (port, server), ExitStack() as stack:
        half_open = [stack.enter_context(connect(port)) for _ in range(5)]
        for count, one in enumerate(half_open, start=1):
            one.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 60_000)
            if count <= 3:
                wait_until(lambda count=count: limits.buffered_bytes >= count * 60_000)  # type: ignore[misc]
            else:
                assert refusal_of(read_all(one))[0] == 503
        wait_until(lambda: limits.buffered_bytes <= 200_000)
        newcomer = stack.enter_context(connect(port))  # not affected by the others
        for piece in (GET[:5], GET[5:]):
            newcomer.sendall(piece)
            time.sleep(0.05)
        assert newcomer.recv(100).startswith(b"HTTP/1.1 200")
        for one in (*half_open, newcomer):
            one.close()
        wait_until(lambda: not server.server_state.connections)
        assert limits.buffered_bytes == 0


def test_answered_connection_with_an_incomplete_body_is_evicted_first() -> None:
    limits = ConnectionLimits(max_connections=2)
    with serving(refusing, limits) as (port, server), ExitStack() as stack:
        idle, answered = (stack.enter_context(connect(port)) for _ in range(2))
        wait_until(lambda: len(server.server_state.connections) == 2)
        answered.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
        read_until(answered, b"no")
        one_more = stack.enter_context(connect(port))
        one_more.sendall(GET)
        read_until(one_more, b"no")
        idle.sendall(GET)
        read_until(idle, b"no")
        assert answered.recv(100) == b""


@pytest.mark.slow
def test_client_that_half_closes_and_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little is unread that the transport never pauses writing."""
    monkeypatch.setattr(connection, "WRITE_TIMEOUT_SECONDS", 0.3)
    with serving() as (port, server), socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", port))
        wait_until(lambda: len(server.server_state.connections) == 1)
        [there] = server.server_state.connections
        sock = there.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        deaf.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nsend60000")
        wait_until(lambda: there.transport.get_write_buffer_size() > 0)
        deaf.sendall(GET)
        deaf.shutdown(socket.SHUT_WR)
        wait_until(lambda: not server.server_state.connections)


@pytest.mark.slow
def test_keep_alive_does_not_extend_the_time_for_a_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(keep_alive_seconds=60) as (port, _), connect(port) as used:
        used.sendall(GET)
        assert used.recv(1000).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(connection, "FIRST_REQUEST_SECONDS", 0.2)
        with connect(port) as idle:
            assert read_all(idle) == b""
        used.sendall(GET)
        assert used.recv(1000).startswith(b"HTTP/1.1 200")


REQUESTS = {
    "GET": GET,
    "1.0": b"GET / HTTP/1.0\r\n\r\n",
    "body": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody",
    "chunks": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("requests", [*([one] for one in REQUESTS.values()), [GET, REQUESTS["body"], GET]])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_client_that_shuts_down_its_side_gets_its_answers(
    requests: list[bytes], loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HALF_CLOSED_PROBES", (0.0, 0.0))

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.05)
        await application(scope, receive, send)

    with serving(late, loop=loop) as (port, server), connect(port) as caller:
        caller.sendall(b"".join(requests))
        caller.shutdown(socket.SHUT_WR)
        received = read_all(caller)
        wait_until(lambda: not server.server_state.connections)
    answers = received.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"").split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200"] * len(requests)


@pytest.mark.parametrize("cut", ["head", "body"])
def test_client_that_shuts_down_within_a_request_is_disconnected(port: int, cut: str) -> None:
    said = {"head": b"GET / HTT", "body": REQUESTS["body"][:-1]}[cut]
    with connect(port) as caller:
        caller.sendall(said)
        caller.shutdown(socket.SHUT_WR)
        assert b" 200 " not in read_all(caller)


@pytest.mark.parametrize(
    "head",
    [
        b"HEAD / HTTP/1.1\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n",
        b"HEAD / HTTP/9\r\n\r\n",
    ],
)
def test_refused_head_request_has_no_body(port: int, head: bytes) -> None:
    with connect(port) as caller:
        caller.sendall(head)
        lines, _, body = read_all(caller).partition(b"\r\n\r\n")
    assert int(lines.split()[1]) >= 400
    assert (b"content-length: 0" not in lines, body) == (True, b"")


@pytest.mark.slow
def test_body_is_not_read_until_the_application_asks_for_it() -> None:
    released = threading.Event()

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(released.wait)
        await application(scope, receive, send)

    with serving(late) as (port, server), connect(port) as caller:
        caller.settimeout(1)
        caller.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n")
        with pytest.raises(TimeoutError):
            caller.sendall(bytes(50_000_000))
        wait_until(lambda: requests_in_progress(server) == 1)
        [there] = server.server_state.connections
        assert there.cycle is not None
        assert len(there.cycle.body) <= 256 * 1024
        released.set()


@pytest.mark.parametrize("path", ["/", "/close"])
def test_broken_chunk_after_expect_is_refused_once(path: str, caplog: pytest.LogCaptureFixture) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving(echo) as (port, _):
        status, _ = ask(port, head % path.encode() + b"zz\r\n")
        time.sleep(0.1)
    assert status == 400
    assert not caplog.records


@pytest.mark.slow
def test_requests_pipelined_behind_a_slow_one_stay_in_the_socket() -> None:
    released = threading.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await receive()
        leaving = asyncio.ensure_future(receive())  # the disconnect, which resumes reading
        await asyncio.to_thread(released.wait)
        leaving.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    limits = ConnectionLimits()
    with serving(slow, limits) as (port, _), connect(port) as caller:
        caller.settimeout(1)
        caller.sendall(GET)
        with pytest.raises(TimeoutError):
            caller.sendall(GET * 500_000)
        wait_until(lambda: limits.buffered_bytes > 0)
        assert limits.buffered_bytes <= 1024 * 1024
        released.set()
        caller.settimeout(PATIENCE_SECONDS)
        assert caller.recv(100).startswith(b"HTTP/1.1 200")
