"""The ASGI application: it authenticates requests, enforces deadlines and sets security headers.

ServiceState has the parts that requests share.
"""

from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from time import perf_counter
from typing import Any, NoReturn

from fastapi import FastAPI, Request, Response
from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.admission import Admission
from app.api.auth import Guards
from app.api.classify import ADMITTED, ClassifyEndpoint
from app.api.shutdown import Shutdown
from app.batches.batches import Batches
from app.errors import Overloaded, ServiceError
from app.event_loop import Deadline
from app.outcome import ErrorDetail
from app.pipeline import Pipeline
from app.settings import Settings
from app.snowflake.self_check import SelfCheck
from app.telemetry import metrics
from app.telemetry.record import RefusalLog
from app.telemetry.tracing import TRACING
from app.workers.pool import LiveClassifiers


@dataclass(frozen=True)
class ServiceState:
    """Its connections and classifier processes open when the application starts up, once."""

    settings: Settings
    guards: Guards | None
    """None if the service accepts every client."""
    shutdown: Shutdown
    refusals: RefusalLog
    classifiers: LiveClassifiers
    pipeline: Pipeline
    admission: Admission
    batches: Batches
    self_check: SelfCheck


# OWASP Secure Headers. A response of POST /classify needs only these: each header costs a single image a
# microsecond or two.
_RESPONSE_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_PAGE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
# Defaults for pages that set no policy of their own.
_CONTENT_SECURITY_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_NO_STORE = (b"cache-control", b"no-store")
_CLASSIFY_PATH = "/classify"
_CLASSIFY_METHODS = "GET, HEAD, POST"
# What the API reads and returns beyond the headers that every script may use (Fetch standard).
_CORS: dict[str, Any] = {
    "allow_methods": ("GET", "HEAD", "POST"),
    "allow_headers": ("*",),
    "expose_headers": ("Allow", "ETag", "Retry-After", "WWW-Authenticate"),
}
# The deadline of probes, metrics, pages and polls.
_PAGE_SECONDS = 30.0
# Errors that are part of normal operation; any other is raised again for the server to log.
_EXPECTED = (ServiceError, HTTPException, ClientDisconnect)


class Service:
    """Answers /classify itself, and mounts the FastAPI application `pages` for every other path.

    FastAPI's middleware and routing would take about 100 microseconds a request, more than half of what this
    process spends on a small one.
    """

    def __init__(self, state: ServiceState, endpoint: ClassifyEndpoint, pages: FastAPI) -> None:
        self.state = state
        self.pages = pages
        self._endpoint = endpoint
        self._deadline_seconds = state.settings.request_timeout_seconds
        self._page_deadline_seconds = min(_PAGE_SECONDS, self._deadline_seconds)
        self._root_path = state.settings.root_path
        origins = state.settings.cors_origins
        # CORSMiddleware answers preflights, which carry no credentials, and adds its headers to errors too.
        self._entry: ASGIApp = (
            CORSMiddleware(self._serve_traced, allow_origins=origins, **_CORS)
            if origins
            else self._serve_traced
        )

    def add_middleware(self, *_: object, **__: object) -> NoReturn:
        """Raises RuntimeError: FastAPI's middleware would not see requests to /classify."""
        raise RuntimeError(
            "Middleware must cover /classify, which does not pass through FastAPI. Wrap the ASGI application "
            "instead, such as GZipMiddleware(create_app(settings)), or configure the gateway."
        )

    middleware = add_middleware

    def refuse_at_once(self, scope: Scope) -> Response | None:
        """The 429 for a single image that would wait too long; reads no body and starts no task.

        Returns None for any other request, and where the request needs the full path: a trace, a shutdown,
        CORS.
        """
        scope = _without_root_path(scope, self._root_path)
        if not _is_post_to_classify(scope) or not _is_image(scope):
            return None
        if TRACING.is_on or self.state.shutdown.has_begun or self.state.settings.cors_origins:
            return None
        guards = self.state.guards
        # Without a name, the full path authenticates the request, or rejects it.
        caller = None if guards is None else guards.caller_at_once(Request(scope))
        try:
            self.state.admission.refuse_rows(1, caller=caller)
        except Overloaded as error:
            metrics.count_request(error.status, 0.0)
            self.state.refusals.add(error, Headers(scope=scope), caller)
            return _overload_response(error.message, int(error.headers["retry-after"]))
        scope.setdefault("state", {})[ADMITTED] = caller
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the lifespan
            await self.pages(scope, receive, send)
            return
        if not self.state.classifiers.has_started:
            raise RuntimeError(
                "The service must start up before it serves: the server must run the lifespan."
            )
        scope = _without_root_path(scope, self._root_path)
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        await self._entry(scope, receive, send)

    async def _serve_traced(self, scope: Scope, receive: Receive, send: Send) -> None:
        with TRACING.request(scope, send) as traced_send:
            await self._serve(Request(scope, receive), _TrackedSend(traced_send))

    async def _serve(self, request: Request, send: "_TrackedSend") -> None:
        started = perf_counter()
        scope = request.scope
        is_classification = _is_post_to_classify(scope)
        caller: str | None = None
        seconds = self._deadline_seconds if is_classification else self._page_deadline_seconds
        try:
            with Deadline(seconds):
                if self.state.guards is not None:
                    caller = await self.state.guards.authenticate(request)
                if scope["path"] != _CLASSIFY_PATH:
                    await self.pages(_without_cookies_and_query(scope), request.receive, _secured(send))
                    return
                response = await self._classify(request, caller)
                if is_classification:
                    metrics.count_request(response.status_code, perf_counter() - started)
                    response.raw_headers.extend(_RESPONSE_HEADERS)
                    await response(scope, request.receive, send)
                else:
                    await response(scope, request.receive, _secured(send))
        except Exception as error:
            if isinstance(error, ServiceError):
                self.state.refusals.add(error, request.headers, caller)
            if not send.has_started:  # otherwise the server closes the connection
                response = error_response(error, scope)
                if is_classification:
                    metrics.count_request(response.status_code, perf_counter() - started)
                await response(scope, request.receive, _secured(send))
            if not isinstance(error, _EXPECTED):
                raise

    async def _classify(self, request: Request, caller: str | None) -> Response:
        if request.method == "GET":
            return await self._endpoint.poll(request, caller)
        if request.method != "POST":
            raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"allow": _CLASSIFY_METHODS})
        shutdown = self.state.shutdown
        with shutdown.request():
            response = await self._endpoint.classify(request, caller)
        if shutdown.has_begun:
            response.headers["connection"] = "close"
        return response


def error_response(error: Exception, scope: Scope | None = None) -> Response:
    """The response to a request that failed as a whole, of the given scope."""
    match error:
        case ServiceError():
            detail = ErrorDetail(code=error.code, message=error.message, retryable=error.retryable)
            status, headers = error.status, error.headers
        case HTTPException():
            phrase = HTTPStatus(error.status_code).phrase
            received = f" Received: {scope['method']} {scope['path'][:80]!r}." if scope else ""
            detail = ErrorDetail(
                code=phrase.lower().replace(" ", "_"), message=f"{phrase}.{received}", retryable=False
            )
            status, headers = error.status_code, error.headers or {}
        case ClientDisconnect():
            return Response(status_code=HTTPStatus.BAD_REQUEST)
        case _:
            detail = ErrorDetail(code="internal_error", message="The service failed.", retryable=True)
            status, headers = HTTPStatus.INTERNAL_SERVER_ERROR, {}
    # A message may quote an unpaired surrogate, which UTF-8 cannot encode.
    detail["message"] = detail["message"].encode("utf-8", "backslashreplace").decode()
    return Response(to_json({"error": detail}), status, headers, media_type="application/json")


@lru_cache
def _overload_response(message: str, retry_after_seconds: int) -> Response:
    """Cached: to format it takes a quarter of what such a request costs, and most differ in no byte."""
    response = error_response(Overloaded(message, retry_after_seconds))
    response.raw_headers.extend(_RESPONSE_HEADERS)
    return response


class _TrackedSend:
    """Passes messages on, and knows whether the response has started."""

    def __init__(self, send: Send) -> None:
        self.has_started = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        self.has_started = True
        await self._send(message)


def _is_post_to_classify(scope: Scope) -> bool:
    return (scope["method"], scope["path"]) == ("POST", _CLASSIFY_PATH)


def _is_image(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"content-type":
            return bool(value.startswith((b"image/", b"application/octet-stream")))
    return False


def _secured(send: Send) -> Send:
    async def send_secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"]
            names = {name for name, _ in headers}
            headers.extend(_PAGE_HEADERS)
            if _CONTENT_SECURITY_POLICY[0] not in names:
                headers.append(_CONTENT_SECURITY_POLICY)
            if not names & {b"cache-control", b"etag"}:
                headers.append(_NO_STORE)
        await send(message)

    return send_secured


def _without_body(send: Send) -> Send:
    """A response to HEAD has the headers of GET and no body (RFC 9110, section 9.3.2)."""

    async def send_without_body(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_without_body


def _without_root_path(scope: Scope, root_path: str) -> Scope:
    """The scope without the prefix that a gateway, or the application that mounts this one, adds to paths."""
    for prefix in (scope.get("root_path", ""), root_path):
        if prefix and scope["path"].startswith(f"{prefix}/"):
            scope = {**scope, "path": scope["path"][len(prefix) :], "root_path": ""}
    return scope


def _without_cookies_and_query(scope: Scope) -> Scope:
    """FastAPI parses both for every route, and no route of `pages` reads them.

    Python before 3.11.10 and 3.12.6 parses a cookie in time quadratic in its backslashes (CVE-2024-7592).
    """
    headers = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
    return {**scope, "headers": headers, "query_string": b""}
