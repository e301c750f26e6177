import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import uvicorn
from starlette.responses import Response

from app import connection
from app.connection import MAX_HEAD_BYTES, BoundedConnection
from tests.running import free_port, wait_until

Answer = tuple[int, dict[str, Any]]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body, or with as many bytes as it is asked for."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = b"x" * int(body[4:]) if body.startswith(b"send") else b"%d" % len(body)
    headers = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


@contextmanager
def serving(asked: Any = None) -> Iterator[tuple[int, uvicorn.Server]]:
    port = free_port()
    options: Any = {"http": BoundedConnection, "lifespan": "off", "log_level": "critical", "ws": "none"}
    options |= {"proxy_headers": False, "timeout_keep_alive": 2}
    server = uvicorn.Server(uvicorn.Config(asked or application, port=port, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield port, server
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving() as (port, _):
        yield port


def connect(port: int) -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", port), timeout=10)
    connected.settimeout(10)
    return connected


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


def head_of(total: int) -> bytes:
    """A GET whose URL, header names and values have so many bytes."""
    return b"GET / HTTP/1.1\r\na: " + b"x" * (total - 2) + b"\r\n\r\n"


def test_head_may_have_exactly_so_many_bytes(port: int) -> None:
    with connect(port) as connected:
        connected.sendall(head_of(MAX_HEAD_BYTES - 20).replace(b"GET", b"GET", 1))
        assert connected.recv(100).startswith(b"HTTP/1.1 200")
    status, error = ask(port, head_of(MAX_HEAD_BYTES + 1))
    assert (status, error["code"]) == (431, "head_too_large")
    assert error["message"].endswith("at most 65536 bytes. Received: more.")


def test_head_that_never_ends_is_cut_off(port: int) -> None:
    with connect(port) as connected:
        connected.sendall(b"GET / HTTP/1.1\r\na: ")
        try:
            for _ in range(10_000):
                connected.sendall(b"x" * 1000)
        except (BrokenPipeError, ConnectionResetError):
            return
    pytest.fail("ten megabytes of a header were taken")


def test_long_url_is_cut_off(port: int) -> None:
    status, error = ask(port, b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n")
    assert (status, error["code"]) == (431, "head_too_large")


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
def test_what_two_servers_could_read_differently_is_refused(port: int, said: bytes) -> None:
    status, error = ask(port, said)
    assert (status, error["code"]) == (400, "malformed_request")
    assert error["retryable"] is False


def test_slow_head_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    with serving() as (port, _), connect(port) as slow:
        for byte in b"GET / HT":
            slow.sendall(bytes([byte]))
            time.sleep(0.01)
        status, error = refusal_of(read_all(slow))
        assert (status, error["code"]) == (408, "head_timeout")


def test_slow_head_of_a_later_request_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    with serving() as (port, _), connect(port) as slow:
        slow.sendall(GET)
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET")
        assert refusal_of(read_all(slow))[0] == 408


def test_connection_that_asks_for_nothing_is_closed_without_a_word() -> None:
    with serving() as (port, server), connect(port) as silent:
        wait_until(lambda: len(server.server_state.connections) == 1)
        assert read_all(silent) == b""


def test_hundreds_of_half_open_connections_shut_nobody_out(port: int) -> None:
    with ExitStack() as stack:
        for number in range(300):
            half_open = stack.enter_context(connect(port))
            half_open.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nx" if number % 2 else b"PO")
        for _ in range(20):
            with connect(port) as connected:
                connected.sendall(GET)
                assert connected.recv(100).startswith(b"HTTP/1.1 200")


def test_answer_that_is_not_taken_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TAKING_SECONDS", 0.3)
    with serving() as (port, server), connect(port) as deaf:
        deaf.sendall(b"POST / HTTP/1.1\r\nContent-Length: 12\r\n\r\nsend50000000")
        wait_until(lambda: server.server_state.total_requests == 1)
        wait_until(lambda: not server.server_state.connections)


def test_requests_go_on_over_one_connection(port: int) -> None:
    with connect(port) as connected:
        for length in (0, 5, 100_000):
            request = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % length
            connected.sendall(request + b"x" * length)
            received = b""
            while not received.endswith(b"\r\n\r\n%d" % length):
                received += connected.recv(1000)
            assert received.startswith(b"HTTP/1.1 200")


def test_answer_that_is_taken_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TAKING_SECONDS", 0.3)
    with serving() as (port, _), connect(port) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nContent-Length: 12\r\n\r\nsend50000000")
        received = 0
        while received < 50_000_000:
            piece = slow.recv(2_000_000, socket.MSG_WAITALL)
            assert piece
            received += len(piece)
            time.sleep(0.1)


def test_connection_is_not_kept_by_bytes_that_ask_for_nothing() -> None:
    with serving() as (port, server), connect(port) as idle:
        idle.sendall(GET)
        assert idle.recv(100).startswith(b"HTTP/1.1 200")
        idle.sendall(b"\r\n")
        wait_until(lambda: not server.server_state.connections)


def test_rest_of_a_body_that_was_refused_is_read_and_the_next_request_answered() -> None:
    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = [(b"content-length", b"2")]
            await send({"type": "http.response.start", "status": 429, "headers": headers})
            await send({"type": "http.response.body", "body": b"no"})

    with serving(refusing) as (port, server), connect(port) as refused:
        for _ in range(2):
            refused.sendall(b"POST / HTTP/1.1\r\nContent-Length: 500000\r\n\r\n")
            assert refused.recv(1000).endswith(b"no")
            refused.sendall(bytes(500_000))
        wait_until(lambda: not server.server_state.connections)


@pytest.mark.parametrize("asked_before", [False, True])
def test_request_on_its_way_when_the_service_ends_is_answered(*, asked_before: bool) -> None:
    with serving() as (port, server), connect(port) as late:
        if asked_before:
            late.sendall(GET)
            assert late.recv(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: len(server.server_state.connections) == 1)
        server.should_exit = True
        time.sleep(0.3)
        late.sendall(GET)
        answer = read_all(late)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer


class Busy:
    """Has no time for what is asked of /busy, and answers all else."""

    asked = 0
    answer: Any = staticmethod(application)

    def refuse_at_once(self, scope: Any) -> Response | None:
        return Response(b"no", 429, {"retry-after": "1"}) if scope["path"] == "/busy" else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += scope["type"] == "http"
        refusal = scope["type"] == "http" and self.refuse_at_once(scope)
        await (refusal or self.answer)(scope, receive, send)


BUSY = b"POST /busy HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n"


def test_what_there_is_no_time_for_is_answered_before_its_body_and_without_the_app() -> None:
    app = Busy()
    with serving(app) as (port, server), connect(port) as caller:
        for _ in range(3):
            caller.sendall(BUSY)
            answer = caller.recv(1000)
            assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
            assert answer.endswith(b"\r\n\r\nno")
            assert b"retry-after: 1\r\n" in answer
            assert b"content-length: 2\r\n" in answer
            assert b"\r\ndate: " in answer
            caller.sendall(bytes(500_000))
        assert app.asked == 0
        caller.sendall(GET)
        assert caller.recv(1000).endswith(b"0")
        assert app.asked == 1
        wait_until(lambda: not server.server_state.connections)  # idle for as long as any


@pytest.mark.parametrize(
    "head",
    [
        b"POST /busy HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"POST /busy HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_refusal_at_once_closes_for_whoever_asks_for_it(head: bytes) -> None:
    with serving(Busy()) as (port, _), connect(port) as caller:
        caller.sendall(head)
        answer = read_all(caller)
        assert answer.startswith(b"HTTP/1.1 429")
        assert b"connection: close" in answer


def test_refusal_at_once_waits_for_the_answers_before_it() -> None:
    ask = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
    busy = b"POST /busy HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
    last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with serving(Busy()) as (port, _), connect(port) as caller:
        caller.sendall(ask + busy + ask + busy + last)
        answers = read_all(caller)
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", answers)
    assert statuses == [b"200", b"429", b"200", b"429", b"200"]


def send_much(connected: socket.socket, heads: bytes) -> None:
    """Raises TimeoutError when nothing more has been taken for a while, however slowly it was before."""
    sent = 0
    while sent < 50_000_000:
        sent += connected.send(heads[sent % len(heads) :])


def test_whoever_takes_no_answers_gets_no_more_of_them_at_once() -> None:
    """They would pile up: what waits for the caller stops reading from it too."""
    app = Busy()
    heads = b"POST /busy HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" * 1000
    with serving(app) as (port, server), connect(port) as caller:
        caller.settimeout(3)
        with pytest.raises(TimeoutError):
            send_much(caller, heads)
        wait_until(lambda: app.asked >= 1)
        [there] = server.server_state.connections
        assert there.transport.get_write_buffer_size() < 1_000_000


def test_many_requests_at_once_behind_a_slow_one_are_all_refused_in_turn() -> None:
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


def test_many_small_requests_in_one_piece_are_no_long_head(port: int) -> None:
    """Cut where the last of them is not whole."""
    with connect(port) as caller:
        caller.sendall(GET * 20_000 + GET[:-4])
        taken = 0
        while taken < 20_000:
            piece = caller.recv(1_000_000)
            assert b" 431 " not in piece
            taken += piece.count(b"HTTP/1.1 200")
