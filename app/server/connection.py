"""One HTTP/1.1 connection between uvicorn's server and the ASGI application.

It parses one request at a time: pipelined requests stay unparsed until the previous one is answered, so that
a flood of requests in one packet costs no more than its bytes.
"""

import asyncio
import logging
import resource
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, cast

from pydantic_core import to_json
from starlette.responses import Response
from uvicorn import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from app.outcome import ErrorDetail
from app.server.framing import (
    MAX_HEAD_BYTES,
    BadRequest,
    BodyFraming,
    ChunkedBody,
    ConnectionOverload,
    HeadTimeout,
    HeadTooLarge,
    RequestHead,
)

HEAD_TIMEOUT_SECONDS = 10.0
# For the first request of a connection, however long the keep-alive between two requests is.
FIRST_REQUEST_SECONDS = 75.0
# Seconds after which a client that has shut down its side is probed. An answer usually comes sooner.
HALF_CLOSED_PROBES = (2.0, 1.0)
# A client that reads nothing of its answer for this long is disconnected.
WRITE_TIMEOUT_SECONDS = 30.0
# On shutdown, idle connections stay open this long, for requests that are already on their way.
SHUTDOWN_IDLE_SECONDS = 0.5
# On shutdown, the time for a client to read the rest of an answer.
SHUTDOWN_UNREAD_SECONDS = 5.0
# Limits for the rest of a body whose request was answered early: most clients send all before they read.
MAX_DISCARDED_BYTES = 256 * 1024 * 1024
DISCARD_TIMEOUT_SECONDS = 30.0
# RFC 9112, section 9.6: closing immediately would reset the connection, and the client would lose the answer.
LINGER_TIMEOUT_SECONDS = 10.0

# A connection uses about 10 kB of memory.
MAX_CONNECTIONS = 4096
# Incomplete heads, and pipelined requests.
MAX_BUFFERED_BYTES = 64 * 1024 * 1024
# A connection that buffers less, such as one request, is never refused because of the others.
FREE_BYTES = 8 * 1024
# Beyond it, requests wait for the next turn of the event loop: of a flood, one turn could otherwise reject a
# thousand requests, and take tens of milliseconds in which classifier processes receive no rows.
MAX_REQUESTS_A_TURN = 32
# One file in four is for the listening socket, the log, classifier processes and fetches.
_OTHER_FILES_SHARE = 4

_LOGGER = logging.getLogger("uvicorn.error")
_HEAD_END = b"\r\n\r\n"
# Every client has to skip it (RFC 9110, section 15.2).
_INTERIM_RESPONSE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Transport:
    """The transport of response cycles: closing leaves the client time to read the answer.

    It writes an answer's head together with the first piece of the body: each write is a packet.
    """

    __slots__ = ("_close", "_head", "_transport", "is_closing", "writes_head")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.writes_head = False
        """Whether the next write is an answer's head, to be written with what follows."""
        self.is_closing = transport.is_closing
        self._transport = transport
        self._close = close
        self._head = b""

    def write(self, data: bytes) -> None:
        if self.writes_head:
            self._head, self.writes_head = data, False
        else:
            self._transport.write(self._head + data)
            self._head = b""

    def flush(self) -> None:
        if self._head:  # of an answer without a body
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._close()


class _Flow(FlowControl):
    """Pauses reading while a pipelined request waits or the client does not read its answers."""

    is_input_waiting = False

    def resume_reading(self) -> None:
        if not self.is_input_waiting and not self.write_paused:
            super().resume_reading()


class _ExpectingCycle(RequestResponseCycle):
    """The response cycle of a request with `Expect: 100-continue`.

    If the answer comes instead of 100, the client may or may not send its body, so that the next bytes cannot
    be framed and the connection has to close (RFC 9110, section 10.1.1).
    """

    async def send(self, message: Any) -> None:
        if self.waiting_for_100_continue and message["type"] == "http.response.start":
            self.keep_alive = False
        await super().send(message)


class ConnectionLimits:
    """Limits of one server: its number of connections, and the bytes of unparsed requests in memory."""

    def __init__(
        self, max_connections: int | None = None, max_buffered_bytes: int = MAX_BUFFERED_BYTES
    ) -> None:
        self.buffered_bytes = 0
        self._max_connections = max_connections or _max_connections()
        self._max_buffered_bytes = max_buffered_bytes
        self._count = 0
        # Connections without a request in progress, in the order in which they are evicted.
        self._idle: OrderedDict[HttpConnection, None] = OrderedDict()
        self._begun = 0
        """Requests begun in this turn of the event loop."""
        self._late: deque[HttpConnection] = deque()

    def open(self, connection: "HttpConnection") -> bool:
        """Count one more connection. At the limit, an idle one is evicted; False if none is idle."""
        self._count += 1
        if self._count > self._max_connections:
            if not self._idle:
                return False
            next(iter(self._idle)).evict()
        self._idle[connection] = None
        return True

    def close(self, connection: "HttpConnection") -> None:
        self._count -= 1
        self._idle.pop(connection, None)

    def note_idle(self, connection: "HttpConnection", *, is_answered: bool = False) -> None:
        """Allow its eviction, before all others if only its client keeps it open (`is_answered`)."""
        self._idle[connection] = None
        self._idle.move_to_end(connection, last=not is_answered)

    def note_busy(self, connection: "HttpConnection") -> None:
        self._idle.pop(connection, None)

    def begins_now(self, connection: "HttpConnection") -> bool:
        """Whether a request may begin in this turn of the event loop, else its `begin_late` will be called.

        Those that wait must not fill the memory for unparsed requests.
        """
        if not self._begun:
            connection.loop.call_soon(self._begin_turn, connection.loop)
        self._begun += 1
        is_full = self.buffered_bytes > self._max_buffered_bytes / 2
        if is_full or (self._begun <= MAX_REQUESTS_A_TURN and not self._late):
            return True
        self._late.append(connection)
        return False

    def _begin_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._begun = min(len(self._late), MAX_REQUESTS_A_TURN)
        if self._begun:
            loop.call_soon(self._begin_turn, loop)
        for connection in [self._late.popleft() for _ in range(self._begun)]:
            connection.begin_late()

    def buffer(self, more_bytes: int, held_bytes: int) -> None:
        """Count a change of a connection's buffered bytes; `held_bytes` is their number after the change.

        Raises ConnectionOverload.
        """
        self.buffered_bytes += more_bytes
        if more_bytes > 0 and held_bytes > FREE_BYTES and self.buffered_bytes > self._max_buffered_bytes:
            raise ConnectionOverload(
                f"Requests that wait to be read must have at most {self._max_buffered_bytes} bytes together. "
                f"Received: {self.buffered_bytes}."
            )


def _max_connections() -> int:
    """MAX_CONNECTIONS, or fewer if the limit of open files is lower."""
    max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if max_files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(8, min(MAX_CONNECTIONS, max_files - max_files // _OTHER_FILES_SHARE))


class HttpConnection(asyncio.Protocol):
    """Answers framing errors as the application answers errors: `{"error": {code, message, retryable}}`."""

    def __init__(
        self, limits: ConnectionLimits, config: Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        if not config.loaded:
            config.load()
        self.loop = asyncio.get_running_loop()
        self.cycle: RequestResponseCycle | None = None
        self.transport: asyncio.Transport
        self.flow: _Flow
        self._app = config.loaded_app
        self._refuse_at_once: Callable[[Any], Response | None] | None = getattr(
            self._app, "refuse_at_once", None
        )
        self._config = config
        self._limits = limits
        self._server_state = server_state
        self._app_state = app_state
        self._data = b""
        self._position = 0
        """Index of the first byte of `_data` that is not consumed yet."""
        self._buffered_bytes = 0
        self._head: RequestHead | None = None
        self._head_bytes = 0
        self._head_tail = b""
        self._body: BodyFraming | None = None
        """Framing of the current request's body, until all of it has arrived."""
        self._is_head_request = False
        self._discarded_bytes = 0
        self._is_lingering = False
        self._is_shutting_down = False
        self._is_scheduled = False
        self._is_half_closed = False
        """The client has shut down its side while a request waited."""
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unwritten_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.flow = _Flow(self.transport)
        self._cycle_transport: Any = _Transport(self.transport, self._finish)
        self._server = get_local_addr(self.transport)
        self._client = get_remote_addr(self.transport)
        self._server_state.connections.add(self)  # type: ignore[arg-type]
        if self._limits.open(self):
            self._set_timer(min(FIRST_REQUEST_SECONDS, self._config.timeout_keep_alive), self._end_idle)
        else:
            self._write_error(ConnectionOverload("The service has too many connections. Try again later."))
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio passes it
        self._limits.close(self)
        self._server_state.connections.discard(self)
        self._drop_input()
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._disconnect_cycle()
        self.flow.resume_writing()

    def eof_received(self) -> bool:
        """Answer a request that has arrived completely: the client may have shut down its side only.

        Returns whether the connection stays open.
        """
        if self._is_scheduled:  # answer what has arrived first
            self._is_half_closed = True
            return True
        if self.cycle is None or not self._is_answering or self._body is not None or self._is_lingering:
            self._close()
            return False
        self.cycle.keep_alive = False
        if self.cycle.scope["http_version"] == "1.1":
            self._probe_after(*HALF_CLOSED_PROBES)
        return True

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            self._discard(len(data))
            return
        self._data = data if self._position == len(self._data) else self._data[self._position :] + data
        self._position = 0
        if self._is_scheduled:
            self.flow.pause_reading()
        elif self._body is not None or self._is_answering or self._limits.begins_now(self):
            self._advance()
        else:
            self._is_scheduled = True
            self._limits.note_busy(self)  # or it could be evicted
            self._count_buffered()

    def begin_late(self) -> None:
        """Begin a request that had to wait for a later turn of the event loop."""
        if self._is_scheduled and not self.transport.is_closing():
            self._limits.note_idle(self)
            self._advance_if_scheduled()

    def pause_writing(self) -> None:
        """Also pause reading: a client that does not read its answers gets no more of them."""
        self.flow.pause_writing()
        self.flow.pause_reading()
        self._await_writing()

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self.flow.resume_writing()
        self.flow.resume_reading()

    def shutdown(self) -> None:
        """Called by the server after it has stopped listening."""
        self._is_shutting_down = True
        if self._is_answering and self.cycle is not None:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(SHUTDOWN_IDLE_SECONDS, self._close_unless_answering)

    def evict(self) -> None:
        """Close immediately: no request is in progress, or only the client keeps the connection open."""
        self._limits.note_busy(self)
        self.transport.abort()

    def _probe_after(self, seconds: float, *more: float) -> None:
        """Write interim responses, which the system of a client that has disconnected rejects.

        Until something is written, such a client looks like one that has shut down its side only. The first
        write makes it reset the connection, and the next one fails.
        """

        def probe() -> None:
            if self._is_answering and self.cycle is not None and not self.cycle.response_started:
                self.transport.write(_INTERIM_RESPONSE)
                if more:
                    self._probe_after(*more)

        self._set_timer(seconds, probe)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _advance(self) -> None:
        """Parse at most one head and one piece of a body of the received data."""
        self._is_scheduled = False
        if self._is_lingering or self.transport.is_closing():
            return
        try:
            begins = self._body is None and not self._is_answering
            if begins:
                self._take_head()
            if self._body is not None:
                self._take_body(self._body)
            if begins and self._body is not None:
                if self._is_answering:
                    self.flow.pause_reading()  # until the application reads the body
                else:
                    self._await_rest()
            self._count_buffered()
        except BadRequest as error:
            self._refuse(error)
        else:
            self._read_on_or_wait()

    def _read_on_or_wait(self) -> None:
        if self._is_lingering or self.transport.is_closing():
            return
        self.flow.is_input_waiting = self._position < len(self._data)
        if self.flow.is_input_waiting:
            self.flow.pause_reading()
            if self._body is not None or not self._is_answering:
                self._schedule()
            return
        self._data, self._position = b"", 0  # otherwise kept in memory while the connection is idle
        if self._body is None or not self._is_answering:
            self.flow.resume_reading()  # for the rest of a body, the application resumes it

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self.loop.call_soon(self._advance_if_scheduled)

    def _advance_if_scheduled(self) -> None:
        if self._is_scheduled:
            self._advance()
            if self._is_half_closed:
                self.eof_received()

    def _take_head(self) -> None:
        if self._head is None:
            self._skip_blank_lines()
            if self._position == len(self._data):
                return
            self._head, self._head_bytes, self._head_tail = RequestHead(), 0, b""
            self._is_head_request = False
        piece = self._data[self._position :] if self._position else self._data
        searched = self._head_tail + piece
        end = searched.find(_HEAD_END, 0, MAX_HEAD_BYTES + len(_HEAD_END))
        taken = piece if end < 0 else piece[: end + len(_HEAD_END) - len(self._head_tail)]
        self._head_bytes += len(taken)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge(
                f"A request line and headers must have at most {MAX_HEAD_BYTES} bytes. Received: more."
            )
        try:
            self._head.feed(taken)
        finally:
            self._is_head_request = self._head.is_head_request
        self._position += len(taken)
        if end >= 0:
            head, self._head = self._head, None
            head.finish()
            self._begin_request(head)
        else:
            if self._head_bytes == len(taken):
                self._set_timer(HEAD_TIMEOUT_SECONDS, self._end_slow_head)
            self._head_tail = searched[-3:]

    def _skip_blank_lines(self) -> None:
        """RFC 9112, section 2.2."""
        if self._data[self._position] in b"\r\n":
            self._data = self._data[self._position :].lstrip(b"\r\n")
            self._position = 0

    def _begin_request(self, head: RequestHead) -> None:
        path, raw_path, query = head.path_and_query()
        self._body = head.body()
        has_body = self._body is not None
        # RFC 9110, section 10.1.1: a client of HTTP/1.0 does not know 100.
        expects = (
            has_body
            and head.http_version == "1.1"
            and any(name == b"expect" and value.lower() == b"100-continue" for name, value in head.headers)
        )
        scope: Any = {
            "type": "http",
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.3"},
            "http_version": head.http_version,
            "server": self._server,
            "client": self._client,
            "scheme": "http",
            "method": head.method,
            "root_path": self._config.root_path,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": head.headers,
            "state": self._app_state.copy(),
        }
        self._discarded_bytes = 0
        # The application handles clients that do not read their answers, because it waits for them.
        if self._refuse_at_once is not None and not self.flow.write_paused:
            refusal = self._refuse_at_once(scope)
            if refusal is not None:
                keep_alive = head.keep_alive and not self._is_shutting_down and not expects
                self._answer_at_once(refusal, keep_alive=keep_alive)
                return
        make_cycle = _ExpectingCycle if expects else RequestResponseCycle
        self.cycle = make_cycle(
            scope=scope,
            transport=self._cycle_transport,
            flow=self.flow,
            logger=_LOGGER,
            access_logger=_LOGGER,
            access_log=False,
            default_headers=self._server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=expects,
            keep_alive=head.keep_alive and not self._is_shutting_down,
            on_response=self._end_response,
        )
        self._cycle_transport.writes_head = not expects  # 100 (Continue) comes first
        self._cancel_timer()
        self._limits.note_busy(self)
        if not has_body:
            self.cycle.more_body = False
            self.cycle.message_event.set()
        task = self.loop.create_task(self.cycle.run_asgi(self._app))
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)

    def _answer_at_once(self, refusal: Response, *, keep_alive: bool) -> None:
        """Answer by the head alone, without a task, and discard the body as it arrives."""
        body = bytes(refusal.body)
        self._write_answer(refusal.status_code, refusal.raw_headers, body, keep_alive=keep_alive)
        self._server_state.total_requests += 1
        if not keep_alive:
            self._finish()
        elif self._body is None:
            self._become_idle()

    def _take_body(self, body: BodyFraming) -> None:
        start = self._position
        pieces: list[bytes] = []
        self._position = body.take(self._data, start, pieces)
        if body.is_complete:
            self._body = None
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._discard(self._position - start)
            if body.is_complete:
                self._become_idle()
        elif self._position > start:
            # Of one piece, the application receives what the socket has read, without a copy.
            cycle.body = b"".join([cycle.body, *pieces] if cycle.body else pieces)  # type: ignore[assignment]
            cycle.more_body = not body.is_complete
            is_full = len(cycle.body) > HIGH_WATER_LIMIT
            if is_full:
                self.flow.pause_reading()
            if is_full or body.is_complete or self._position == len(self._data):
                cycle.message_event.set()

    def _end_response(self) -> None:
        self._cycle_transport.flush()
        self._server_state.total_requests += 1
        if self._is_lingering or self.transport.is_closing():
            return
        if self._body is None:
            self._become_idle()
        else:
            self._await_rest()
        if self._position < len(self._data):
            self._schedule()
        self.flow.resume_reading()

    def _await_rest(self) -> None:
        """Discard the rest of the body of a request that is answered."""
        if isinstance(self._body, ChunkedBody):
            self._linger()  # it discards without parsing
        else:
            self._limits.note_idle(self, is_answered=True)
            self._set_timer(DISCARD_TIMEOUT_SECONDS, self._linger)

    def _become_idle(self) -> None:
        if self._is_lingering or self.transport.is_closing():
            return
        self.cycle = None  # frees its headers until the next request
        self._limits.note_idle(self)
        self._set_timer(self._config.timeout_keep_alive, self._end_idle)

    def _discard(self, more_bytes: int) -> None:
        self._discarded_bytes += more_bytes
        if self._discarded_bytes <= MAX_DISCARDED_BYTES:
            return
        if self._is_lingering:
            self.transport.abort()
        else:
            self._linger()

    def _finish(self) -> None:
        """Close after the answer is written, without cutting off a client that is still sending."""
        if self._body is not None or self._position < len(self._data):
            self._linger()
        else:
            self._close()

    def _close(self) -> None:
        """Close after the written data is sent; a client that does not read it is disconnected."""
        if self.transport.is_closing():
            return
        self.transport.close()
        self._limits.note_idle(self, is_answered=True)
        if self._write_timer is None and self.transport.get_write_buffer_size():
            self._await_writing()

    def _linger(self) -> None:
        """Stop writing, and discard input until the client closes (RFC 9112, section 9.6)."""
        if self._is_lingering or self.transport.is_closing():
            return
        self._is_lingering = True
        self._limits.note_idle(self, is_answered=True)
        self._drop_input()
        self._disconnect_cycle()
        self._discarded_bytes = 0
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._set_timer(LINGER_TIMEOUT_SECONDS, self._end_linger)

    def _refuse(self, error: BadRequest) -> None:
        if self._is_lingering or self.transport.is_closing():
            return
        is_answered = self._body is not None and not self._is_answering
        if not is_answered and not (self._is_answering and self.cycle and self.cycle.response_started):
            self._write_error(error)
        self._linger()

    def _write_error(self, error: BadRequest) -> None:
        detail = ErrorDetail(code=error.code, message=error.message, retryable=error.retryable)
        headers = [(b"content-type", b"application/json"), *error.headers]
        self._write_answer(error.status, headers, to_json({"error": detail}), keep_alive=False)

    def _write_answer(
        self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, keep_alive: bool
    ) -> None:
        lines = [STATUS_LINE[status]]
        lines += [b"%b: %b\r\n" % header for header in (*self._server_state.default_headers, *headers)]
        if not any(name == b"content-length" for name, _ in headers):
            lines.append(b"content-length: %d\r\n" % len(body))
        if not keep_alive:
            lines.append(b"connection: close\r\n")
        self.transport.write(b"".join([*lines, b"\r\n", b"" if self._is_head_request else body]))

    def _drop_input(self) -> None:
        if self._head is not None:
            self._head.drop()
        self._data, self._position, self._head, self._body = b"", 0, None, None
        self.flow.is_input_waiting = False
        self._count_buffered()

    def _disconnect_cycle(self) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = not self.cycle.response_complete
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()

    def _count_buffered(self) -> None:
        """Report the number of unparsed bytes. Raises ConnectionOverload."""
        now = len(self._data) - self._position + (0 if self._head is None else self._head_bytes)
        if now != self._buffered_bytes:
            more, self._buffered_bytes = now - self._buffered_bytes, now
            self._limits.buffer(more, now)

    def _close_unless_answering(self) -> None:
        if self._is_answering:
            return
        self._close()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(SHUTDOWN_UNREAD_SECONDS, self.transport.abort)

    def _set_timer(self, seconds: float, end: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self.loop.call_later(seconds, end)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_idle(self) -> None:
        if self._write_timer is not None:  # the client is still reading its answer
            self._set_timer(self._config.timeout_keep_alive, self._end_idle)
        elif self.transport.get_write_buffer_size():
            self.transport.abort()  # close() would wait for the client to read the rest
        else:
            self._close()

    def _end_slow_head(self) -> None:
        self._refuse(HeadTimeout(f"A request's headers must arrive within {HEAD_TIMEOUT_SECONDS:g} seconds."))

    def _end_linger(self) -> None:
        if self._write_timer is not None:
            self._set_timer(LINGER_TIMEOUT_SECONDS, self._end_linger)
        else:
            self.transport.abort()

    def _await_writing(self) -> None:
        """Disconnect a client that reads nothing for WRITE_TIMEOUT_SECONDS."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._unwritten_bytes = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(WRITE_TIMEOUT_SECONDS, self._end_writing)

    def _end_writing(self) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() >= self._unwritten_bytes:
            self.transport.abort()
        else:
            self._await_writing()


class HttpProtocol:
    """The value of uvicorn's `http` option: creates a server's connections, which share their limits.

    It is pickled, because uvicorn passes it to its workers.
    """

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        self.limits = limits or ConnectionLimits()

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> HttpConnection:
        return HttpConnection(self.limits, config, server_state, app_state)
