"""POST /classify without the framework's way to it, and what is said and asked for of every request."""

import asyncio
from time import perf_counter

from fastapi import FastAPI, Response
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from app.api.answers import FORESEEN, refusal_of
from app.api.auth import Guards
from app.api.classify import classify
from app.api.shutdown import Stopping
from app.errors import DeadlineExceeded, Overloaded, ServiceError, Stopped
from app.event_loop import Deadline
from app.telemetry import metrics
from app.telemetry.tracing import TRACING

# What is answered here is no page to frame, no script, and nobody else's to keep (OWASP Secure Headers).
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
SECURITY_HEADERS = (
    _NO_SNIFFING,
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
# For what does not say otherwise of itself.
_NOTHING_ALLOWED = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_NOT_TO_BE_KEPT = (b"cache-control", b"no-store")
_CLASSIFY = ("POST", "/classify")
# Longest for anything but a classification: probes, figures, pages, and to ask for a batch.
_PAGE_SECONDS = 30.0
# All that matters to an answer that is no page; each header costs a single image a microsecond or two.
_NO_PAGE = (_NO_SNIFFING, _NOT_TO_BE_KEPT)


class DirectFastAPI(FastAPI):
    """FastAPI, with its middleware and routing spared to the request that comes by the thousand.

    They take a third of what a single image costs beside its decoding and prediction. Whatever is added to
    the app as middleware or dependency does not hold for that request.
    """

    def refuse_at_once(self, scope: Scope) -> Response | None:
        """What answers a single image that would wait for too long, without reading or asking further.

        None where it is to be asked for in the usual way: a batch may be known, a trace wanted, the end near.
        """
        if (scope["method"], scope["path"]) != _CLASSIFY or not _is_image(scope):
            return None
        if TRACING.is_on or self.state.stopping.has_begun:
            return None
        try:
            self.state.admission.refuse_rows(1)
        except Overloaded as error:
            metrics.count_request(error.status, 0.0)
            self.state.refusals.note(error, Headers(scope=scope))
            response = refusal_of(error)
            response.raw_headers.extend(_NO_PAGE)
            return response
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        with TRACING.request(scope, send) as send_traced:
            await self._answer_in_time(scope, receive, send_traced)

    async def _answer_in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        seconds: float = self.state.settings.request_timeout_seconds
        if (scope["method"], scope["path"]) != _CLASSIFY:
            seconds = min(seconds, _PAGE_SECONDS)
        answering, started = _Answering(send), perf_counter()
        try:
            async with Deadline(seconds):
                await self._answer(scope, receive, answering)
        except DeadlineExceeded as error:
            record_if_refused(error, Request(scope))
            if scope["path"] == "/classify":
                metrics.count_request(error.status, perf_counter() - started)
            if not answering.has_started:  # or the server cuts the connection
                await refusal_of(error)(scope, receive, _securing(send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        guards: Guards | None = self.state.guards
        if guards is not None and not await _admit(guards, scope, receive, send):
            return
        if (scope["method"], scope["path"]) == _CLASSIFY:
            await _classify(scope, receive, send, self.state.stopping)
        else:
            await super().__call__(_without_cookies_and_query(scope), receive, _securing(send))


def _without_cookies_and_query(scope: Scope) -> Scope:
    """No page or probe reads them, but FastAPI parses both for every route.

    Python before 3.11.10 and 3.12.6 takes a time quadratic in a cookie's backslashes (CVE-2024-7592).
    """
    headers = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
    return {**scope, "headers": headers, "query_string": b""}


class _Answering:
    """Passes an answer on, and knows whether it has begun."""

    def __init__(self, send: Send) -> None:
        self.has_started = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        self.has_started = True
        await self._send(message)


def _is_image(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"content-type":
            return bool(value.startswith((b"image/", b"application/octet-stream")))
    return False


def _securing(send: Send) -> Send:
    async def send_secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"]
            said = {name for name, _ in headers}
            headers.extend(SECURITY_HEADERS)
            if _NOTHING_ALLOWED[0] not in said:
                headers.append(_NOTHING_ALLOWED)
            if not said & {b"cache-control", b"etag"}:
                headers.append(_NOT_TO_BE_KEPT)
        await send(message)

    return send_secured


async def _admit(guards: Guards, scope: Scope, receive: Receive, send: Send) -> bool:
    """Whether whoever calls may; otherwise it has been told so."""
    started = perf_counter()
    try:
        await guards.admit(Request(scope))
    except ServiceError as error:
        record_if_refused(error, Request(scope))
        if scope["path"] == "/classify":
            metrics.count_request(error.status, perf_counter() - started)
        await refusal_of(error)(scope, receive, _securing(send))
        return False
    return True


async def _classify(scope: Scope, receive: Receive, send: Send, stopping: Stopping) -> None:
    started = perf_counter()
    failure: Exception | None = None
    request = Request(scope, receive)
    try:
        response = await _classify_while_there_is_time(request, stopping)
    except Exception as error:  # noqa: BLE001 - it is raised again once it is answered
        record_if_refused(error, request)
        failure, response = error, refusal_of(error)
    metrics.count_request(response.status_code, perf_counter() - started)
    response.raw_headers.extend(_NO_PAGE)
    await response(scope, receive, send)
    if failure is not None and not isinstance(failure, FORESEEN):
        raise failure  # for the server to log


def record_if_refused(error: Exception, request: Request) -> None:
    """Log a request that failed as a whole, unless the framework logs it."""
    if isinstance(error, ServiceError):
        request.app.state.refusals.note(error, request.headers)


def _no_time() -> Stopped:
    return Stopped("The service ends, and has no time for this request. Send it again.")


async def _classify_while_there_is_time(request: Request, stopping: Stopping) -> Response:
    if stopping.is_hastened:
        raise _no_time()
    task = stopping.begin_request()
    try:
        response = await classify(request)
    except asyncio.CancelledError:
        if not stopping.is_hastened:
            raise
        raise _no_time() from None
    finally:
        stopping.end_request(task)
    if stopping.has_begun:
        response.headers["connection"] = "close"
    return response
