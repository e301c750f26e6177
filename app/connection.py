"""One HTTP/1.1 connection, within bounds that uvicorn leaves open: header bytes, and time for each thing.

A head that comes byte by byte, or never, holds a socket for no longer than a whole one would take.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.outcome import ErrorDetail

# Gateways send a few kilobytes; context headers of Snowflake at most eight, encoded twice.
MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0
# For a caller who does not take its answer; what fits into the socket's buffers is gone at once.
TAKING_SECONDS = 30.0
# When the service ends, what is on its way over a connection that is idle is answered still.
LEAVING_SECONDS = 0.5


class HeadRefused(Exception):
    """Raised inside the parser, which stops."""


class BoundedConnection(HttpToolsProtocol):
    """Refuses in the service's own shape, `{"error": {code, message, retryable}}`, and closes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._taking_timer: asyncio.TimerHandle | None = None
        self._untaken_bytes = 0
        self._received_bytes = 0
        self._heads = 0
        self._has_head_begun = False
        self._answered_at = 0.0
        self._is_leaving = False
        self._refusal: Callable[[], None] = self._refuse_malformed

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.timeout_keep_alive, self._refuse_slow_head)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._idle_timer, self._taking_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        heads_before = self._heads
        super().data_received(data)
        if self._has_head_begun:
            # Of the piece in which a head begins, most may be of the requests before it.
            self._await_rest_of_head(len(data) if self._heads == heads_before else 0)
        elif self._is_idle():  # what came asks for nothing, such as the rest of a body that was refused
            self._idle_timer = self.loop.call_later(
                self._idle_seconds_left(), self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()  # an answer to what came in the same piece may have set it
        self._has_head_begun = True
        self._heads += 1
        self._received_bytes = 0
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def on_headers_complete(self) -> None:
        self._has_head_begun = False
        self._stop_awaiting_head()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refusal = self._refuse_long_head
            raise HeadRefused
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in self.headers}:
            raise HeadRefused  # RFC 9112, section 6.1: smuggling
        super().on_headers_complete()
        if self._is_leaving:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Or answer at once what the app has no time for: to refuse a flood is to cost next to nothing."""
        # Whoever takes no answers, or has asked for many at once, is answered in the usual way, which waits.
        is_alone = not self.pipeline and not self.flow.write_paused
        refuse_at_once = getattr(app, "refuse_at_once", None) if is_alone else None
        refusal = refuse_at_once and refuse_at_once(cycle.scope)
        if not refusal:
            super()._start_asgi_task(cycle, app)
            return
        headers = [*cycle.default_headers, *refusal.raw_headers]
        if not cycle.keep_alive:
            headers.append((b"connection", b"close"))
        lines = (b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"".join([STATUS_LINE[refusal.status_code], *lines, b"\r\n", refusal.body]))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def on_response_complete(self) -> None:
        self._answered_at = self.loop.time()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._await_taker()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        if self._taking_timer is not None:  # it has not come to be idle yet
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif self.transport.get_write_buffer_size():
            self.transport.abort()  # to close it would be to wait for what is left to be taken
        else:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        if self._is_unasked():
            self._is_leaving = True
            self.loop.call_later(LEAVING_SECONDS, self._leave)
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_taker()

    def resume_writing(self) -> None:
        self._stop_awaiting_taker()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's own words
        self._refusal()

    def _is_unasked(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _leave(self) -> None:
        if self._is_unasked():
            self.transport.close()

    def _await_rest_of_head(self, received_bytes: int) -> None:
        self._received_bytes += received_bytes
        if self._received_bytes > MAX_HEAD_BYTES:
            self._refuse_long_head()
        elif self._head_timer is None or self._received_bytes == received_bytes:
            self._await_head()

    def _await_head(self) -> None:
        self._stop_awaiting_head()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._refuse_slow_head)

    def _stop_awaiting_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse_malformed(self) -> None:
        self._refuse(400, "malformed_request", "A request must be HTTP/1.1 (RFC 9112).")

    def _refuse_long_head(self) -> None:
        message = f"A request line and headers must have at most {MAX_HEAD_BYTES} bytes. Received: more."
        self._refuse(431, "head_too_large", message)

    def _refuse_slow_head(self) -> None:
        if not self._is_unasked():
            self._await_head()  # nothing more is read until the request before it is answered
        elif not self._has_head_begun:
            self.transport.close()  # nobody has asked for anything
        else:
            message = f"A request's headers must arrive within {HEAD_SECONDS:g} seconds."
            self._refuse(408, "head_timeout", message)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._stop_awaiting_head()
        if self.transport.is_closing():
            return
        if self._may_answer():
            detail = ErrorDetail(code=code, message=message, retryable=False)
            body = to_json({"error": detail})
            head = (
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(b"".join([STATUS_LINE[status], head.encode(), body]))
        self.transport.close()

    def _may_answer(self) -> bool:
        """Whether what is said now is not taken for the answer to a request before this one."""
        return self._is_unasked() or (self.cycle.more_body and not self.cycle.response_started)

    def _is_idle(self) -> bool:
        """Answered, and nobody's timer runs."""
        is_answered = self.cycle is not None and self._is_unasked()
        timers = (self._head_timer, self._idle_timer, self.timeout_keep_alive_task)
        is_timed = any(timer is not None for timer in timers)
        return is_answered and not is_timed and not self.transport.is_closing()

    def _idle_seconds_left(self) -> float:
        return max(0.0, self._answered_at + self.timeout_keep_alive - self.loop.time())

    def _await_taker(self) -> None:
        """Of what does not fit into the socket's buffers; it is waited for while some of it is taken."""
        self._stop_awaiting_taker()
        self._untaken_bytes = self.transport.get_write_buffer_size()
        self._taking_timer = self.loop.call_later(TAKING_SECONDS, self._abort_untaken)

    def _stop_awaiting_taker(self) -> None:
        if self._taking_timer is not None:
            self._taking_timer.cancel()
            self._taking_timer = None

    def _abort_untaken(self) -> None:
        self._taking_timer = None
        if self.transport.get_write_buffer_size() >= self._untaken_bytes:
            self.transport.abort()
        else:
            self._await_taker()
