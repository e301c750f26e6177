"""Client: splits images into batches, sends them, and retries.

Also what it is made of: the rows of a batch, the service's URL and API key, and the time limits of retries.
"""

import base64
import json
import random
import re
import ssl
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from io import BytesIO
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from socket import EAI_NONAME, gaierror
from typing import Any, Self, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError

from app.errors import CommandError
from app.names import BATCH_ID_HEADER
from app.outcome import ModelIdentity, Outcome, failed_outcome

TIMEOUT_SECONDS = 60.0
# More than the threads of a caller: above this number, urllib3 logs a warning for each connection.
_KEPT_CONNECTIONS = 1000
# The timeout applies to each piece of a body, because a large batch takes long over a slow connection.
_PIECE_BYTES = 64 * 1024
# What a request fails with if the server closes the connection before it responds.
_CLOSED = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, ssl.SSLEOFError)


@dataclass(frozen=True)
class Request:
    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    """Their names match in any case."""


@dataclass(frozen=True)
class NoReply:
    """No response; `is_final` if a retry cannot help: unknown host, untrusted certificate, invalid proxy."""

    reason: str
    is_final: bool = False
    is_closed: bool = False
    """Whether the server closed the connection."""
    status: None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Transport:
    """Connections to the host of `url`, which threads may share.

    They use the environment's proxy, except for this machine, and follow no redirects: a redirect must not
    forward the API key to another host.
    """

    def __init__(self, url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._url = url
        self._timeout = urllib3.Timeout(connect=timeout_seconds, read=timeout_seconds)
        self._connections = _connections(url, self._timeout)

    def send(self, request: Request) -> Reply | NoReply:
        """The response, also if the server rejects the body before it has read all of it.

        If the server closes the connection without a response, the request is repeated once over a new one: a
        server may close a kept-alive connection at the moment of its reuse.
        """
        reply = _send(self._connections, request)
        if isinstance(reply, NoReply) and reply.is_closed:
            new = _connections(self._url, self._timeout)
            reply = _send(new, request)
            _close(new)
        return reply

    def close(self) -> None:
        _close(self._connections)


def send_once(request: Request, timeout_seconds: float = TIMEOUT_SECONDS) -> Reply | NoReply:
    """Send one request over a connection of its own."""
    with closing(Transport(request.url, timeout_seconds)) as transport:
        return transport.send(request)


def is_loopback(url: str) -> bool:
    """Whether `url` points to this machine, which is reached without a proxy."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _connections(url: str, timeout: urllib3.Timeout) -> urllib3.PoolManager | NoReply:
    """Connections through the proxy, if one applies; NoReply if urllib3 does not accept the proxy's URL."""
    proxy = _proxy_for(url)
    options: Any = {"maxsize": _KEPT_CONNECTIONS, "timeout": timeout, "blocksize": _PIECE_BYTES}
    if proxy is None:
        return urllib3.PoolManager(**options)
    try:
        user = urllib3.util.parse_url(proxy).auth
        credentials = None if user is None else urllib3.make_headers(proxy_basic_auth=unquote(user))
        return urllib3.ProxyManager(proxy, proxy_headers=credentials, **options)
    except (HTTPError, ValueError):
        # The message leaves out the proxy's URL, which may hold a password.
        rule = f"{urlsplit(url).scheme}_proxy must be an http:// or https:// URL with a valid host and port"
        return NoReply(rule, is_final=True)


def _send(connections: urllib3.PoolManager | NoReply, request: Request) -> Reply | NoReply:
    if isinstance(connections, NoReply):
        return connections
    headers = dict(request.headers)
    if request.body is not None:
        headers["Content-Length"] = str(len(request.body))
    try:
        response = connections.request(
            request.method,
            request.url,
            body=None if request.body is None else BytesIO(request.body),
            headers=headers,
            retries=False,
            redirect=False,
        )
    except (HTTPError, OSError, ValueError) as error:
        cause = _cause_of(error)
        is_closed = isinstance(cause, _CLOSED)
        said = cause.strerror if isinstance(cause, OSError) else None  # without its errno
        reason = said or str(cause) or type(cause).__name__
        return NoReply(reason, _is_final(error, cause), is_closed)
    return Reply(response.status, response.data, response.headers)


def _close(connections: urllib3.PoolManager | NoReply) -> None:
    if not isinstance(connections, NoReply):
        connections.clear()


def _proxy_for(url: str) -> str | None:
    parts = urlsplit(url)
    if is_loopback(url) or proxy_bypass(parts.netloc):
        return None
    proxy = getproxies().get(parts.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _cause_of(error: BaseException) -> BaseException:
    """The error that urllib3 wraps, whose message is shorter."""
    wrapped = error.__cause__ or next((one for one in error.args if isinstance(one, Exception)), None)
    return error if wrapped is None else _cause_of(wrapped)


def _is_final(error: BaseException, cause: BaseException) -> bool:
    """Whether a retry would fail the same way: invalid URL, unknown host, untrusted certificate."""
    if isinstance(cause, gaierror):
        return cause.errno == EAI_NONAME
    return isinstance(error, ValueError) or isinstance(cause, ssl.SSLCertVerificationError)


DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_HEADER = "X-API-Key"
BATCH_ROWS = 64
BATCH_BYTES = 16 * 1024 * 1024
CONCURRENT_BATCHES = 4
# How long the client retries while the service is overloaded or restarting.
PATIENCE_SECONDS = 300.0
# How often the client polls for a deferred (202) response.
POLL_SECONDS = 1.0
# How long the client polls for a deferred response, which the service keeps for minutes once it is ready.
MAX_DEFERRED_SECONDS = 3600.0
LONGEST_PAUSE_SECONDS = 10.0
# How often a pause checks whether the caller has stopped iterating.
_CHECK_SECONDS = 0.1
_RETRYABLE = frozenset({429, 500, 502, 503, 504})
# Snowflake follows no redirects.
_WITHOUT_ROUTE = frozenset({301, 302, 303, 307, 308, 404, 405, 501})
_JSON = {"Content-Type": "application/json"}
_LONGEST_MESSAGE = 500
_TAG = re.compile(r"<[^>]*>")

Image: TypeAlias = bytes | Path | str
"""An image's bytes, the path of its file, or a row's source: a URL, a stage path, base64."""

Rows: TypeAlias = list[list[Any]]
"""Each row's source and options, without its number."""

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


def rows_of(images: Sequence[Image], *, evidence: bool) -> Rows:
    """The rows of the images. Raises OSError for a file that cannot be read."""
    options: list[Any] = [{"evidence": True}] if evidence else []
    return [[source_of(image), *options] for image in images]


def source_of(image: Image) -> str:
    """The image as a row's source: a string unchanged, bytes and files as base64. Raises OSError."""
    if isinstance(image, str):
        return image
    text = base64.b64encode(image if isinstance(image, bytes) else image.read_bytes()).decode()
    return text or "data:;base64,"  # an empty image; an empty source is none


def in_batches(images: Iterable[Image], batch_rows: int) -> Iterator[list[Image]]:
    """Split into batches of at most `batch_rows` images and, if they hold more than one, BATCH_BYTES."""
    batch: list[Image] = []
    batch_bytes = 0
    for image in images:
        image_bytes = image.stat().st_size if isinstance(image, Path) else len(image)
        if batch and (len(batch) == batch_rows or batch_bytes + image_bytes > BATCH_BYTES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(image)
        batch_bytes += image_bytes
    if batch:
        yield batch


class ClientError(CommandError):
    """The service cannot be reached, or rejects the request with `status`, `code` and message (`said`)."""

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, said: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.said = said


@dataclass(frozen=True)
class Service:
    url: str
    api_key: str | None

    def __post_init__(self) -> None:
        """Raises ClientError."""
        if not _is_http_url(self.url):
            shown = self.url.rpartition("@")[2]  # what precedes the @ may hold a password
            raise ClientError(
                "The service's URL must begin with http:// or https:// and name a host, without a user. "
                f"Received: {shown}"
            )
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ClientError("An API key must be one line of printable ASCII characters.")

    @property
    def credentials(self) -> dict[str, str]:
        return {} if self.api_key is None else {API_KEY_HEADER: self.api_key}

    def url_of(self, path: str) -> str:
        return self.url.rstrip("/") + path


def _is_http_url(url: str) -> bool:
    if not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
        return parts.scheme in ("http", "https") and has_host and parts.username is None
    except ValueError:
        return False


class Client:
    """A client of one service; threads may share it.

    The client retries a request that is rejected temporarily (429, 5xx) or gets no response, for up to
    `patience_seconds`; each deferred (202) response restarts that limit. All methods raise ClientError if the
    service does not respond or rejects a request permanently. An image that cannot be classified does not
    raise: its outcome holds the error.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._service = Service(url, api_key)
        self._patience_seconds = patience_seconds
        self._transport = Transport(url, timeout_seconds)
        self._closed = threading.Event()
        self._why_closed = "the client is closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, why: str | None = None) -> None:
        """Stop retrying: pending requests end with a ClientError whose message includes `why`."""
        self._why_closed = why or self._why_closed
        self._closed.set()
        self._transport.close()

    def classify(self, image: Image, *, evidence: bool = False) -> Outcome:
        """The outcome of one image. Raises OSError for a file that cannot be read."""
        [outcome] = self.classify_batch([image], evidence=evidence)
        return outcome

    def classify_all(
        self,
        images: Iterable[Image],
        *,
        evidence: bool = False,
        batch_rows: int = BATCH_ROWS,
        concurrent_batches: int = CONCURRENT_BATCHES,
    ) -> Iterator[Outcome]:
        """Yield outcomes in the order of the images, which are read lazily.

        Closing the iterator early does not wait for pending batches. Raises OSError for an unreadable file.
        """
        batches = in_batches(images, batch_rows)
        abandoned = threading.Event()

        def classify_batch(batch: list[Image]) -> list[Outcome]:
            return self._classify_rows(rows_of(batch, evidence=evidence), abandoned)

        def start(count: int) -> None:
            running.extend(_in_thread(classify_batch, batch) for batch in islice(batches, count))

        running: deque[Future[list[Outcome]]] = deque()
        try:
            start(concurrent_batches)
            while running:
                outcomes = running.popleft().result()
                start(1)
                yield from outcomes
        finally:
            abandoned.set()

    def classify_batch(self, images: Sequence[Image], *, evidence: bool = False) -> list[Outcome]:
        """Outcomes of the images, sent in one request. Raises OSError for a file that cannot be read."""
        return self._classify_rows(rows_of(images, evidence=evidence))

    def model(self) -> ModelIdentity | None:
        """Name and version of the model that serves; None if a gateway blocks the endpoint. Not retried."""
        url = self._service.url_of("/readyz")
        reply = self._send(Request("GET", url, self._service.credentials))
        if reply.status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            return None
        if not isinstance(reply, Reply) or reply.status != HTTPStatus.OK:
            raise _error_of(reply, url)
        try:
            model = json.loads(reply.body)["model"]
            return ModelIdentity(name=model["name"], version=model["version"])
        except (ValueError, TypeError, KeyError):
            raise ClientError(f"{self._service.url} answers but is not an ext-classify service.") from None

    def model_version(self) -> str | None:
        model = self.model()
        return None if model is None else model["version"]

    def _classify_rows(self, rows: Rows, abandoned: threading.Event | None = None) -> list[Outcome]:
        """Outcomes in the order of the rows.

        If the request or response is too large, the batch is split in half; a single row that is too large
        gets that error as its outcome. Raises ClientError.
        """
        try:
            return self._classify_batch(rows, abandoned)
        except ClientError as error:
            if error.status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise
            if len(rows) == 1:
                code, message = error.code or "payload_too_large", error.said or str(error)
                return [failed_outcome(code, message, retryable=False)]
        middle = len(rows) // 2
        first = self._classify_rows(rows[:middle], abandoned)
        return first + self._classify_rows(rows[middle:], abandoned)

    def _classify_batch(self, rows: Rows, abandoned: threading.Event | None) -> list[Outcome]:
        """Retries keep the batch id, so the service classifies a batch once. Raises ClientError."""
        headers = self._service.credentials | {BATCH_ID_HEADER: str(uuid.uuid4())}
        body = json.dumps({"data": [[number, *row] for number, row in enumerate(rows)]}).encode()
        url = self._service.url_of("/classify")
        post = Request("POST", url, headers | _JSON, body)
        poll = Request("GET", url, headers)
        retries = _Retries(self._patience_seconds)
        request = post
        while True:
            reply = self._send(request, abandoned)
            if isinstance(reply, Reply) and reply.status == HTTPStatus.OK:
                return _outcomes_of(reply, len(rows), self._service.url)
            if reply.status == HTTPStatus.ACCEPTED:
                request = poll
                self._pause(retries.after_deferral(self._service.url), abandoned)
                continue
            # 404 for a deferred batch: the instance that accepted it is gone, so the batch is sent again.
            is_lost = request is poll and reply.status == HTTPStatus.NOT_FOUND
            is_final = reply.is_final if isinstance(reply, NoReply) else reply.status not in _RETRYABLE
            error = _error_of(reply, url)
            if is_final and not is_lost:
                raise error
            request = post
            self._pause(retries.after_failure(reply, error), abandoned)

    def _send(self, request: Request, abandoned: threading.Event | None = None) -> Reply | NoReply:
        """Raises ClientError if the client is closed or `abandoned` is set."""
        if self._closed.is_set() or (abandoned and abandoned.is_set()):
            raise ClientError(f"Requests to {self._service.url} were stopped: {self._why_closed}.")
        return self._transport.send(request)

    def _pause(self, seconds: float, abandoned: threading.Event | None) -> None:
        """Shorter if the client is closed or `abandoned` is set."""
        ends_at = time.monotonic() + seconds
        while (remaining := ends_at - time.monotonic()) > 0 and not (abandoned and abandoned.is_set()):
            if self._closed.wait(min(remaining, _CHECK_SECONDS)):
                break


def is_ready(url: str) -> bool:
    return send_once(Request("GET", f"{url}/readyz")).status == HTTPStatus.OK


def require_route(url: str, timeout_seconds: float) -> None:
    """Raises ClientError unless POST has a route at `url`; a server that rejects the client has one."""
    Service(url, None)  # raises ClientError for what is no URL
    reply = send_once(Request("POST", url, _JSON, b'{"data": []}'), timeout_seconds)
    if isinstance(reply, NoReply) or reply.status in _WITHOUT_ROUTE:
        raise _error_of(reply, url)


def _in_thread(work: Callable[[_Argument], _Result], argument: _Argument) -> Future[_Result]:
    """Runs in a daemon thread: unlike an executor's threads, it does not delay the program's exit."""
    future: Future[_Result] = Future()
    future.set_running_or_notify_cancel()  # a cancelled future would refuse the result

    def run() -> None:
        try:
            future.set_result(work(argument))
        except Exception as error:  # noqa: BLE001 - raised again by Future.result()
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class _Retries:
    """Pauses between attempts, which grow until the time limit; a deferred response restarts the limit."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._failures = 0
        self._deferred_at: float | None = None
        self._ends_at = time.monotonic() + seconds

    def after_deferral(self, url: str) -> float:
        """The pause before the next poll. Raises ClientError if the response is deferred for too long."""
        self._deferred_at = self._deferred_at or time.monotonic()
        if time.monotonic() - self._deferred_at > MAX_DEFERRED_SECONDS:
            raise ClientError(f"{url} has deferred its response for {MAX_DEFERRED_SECONDS / 60:.0f} minutes.")
        self._failures = 0
        self._ends_at = time.monotonic() + self._seconds
        return _with_jitter(POLL_SECONDS)

    def after_failure(self, reply: Reply | NoReply, error: ClientError) -> float:
        """The pause before the next attempt. Raises `error` if the time limit comes first."""
        self._failures += 1
        asked = reply.headers.get("Retry-After", "")
        pause = _with_jitter(min(0.1 * 2 ** min(self._failures, 16), LONGEST_PAUSE_SECONDS))
        pause += float(asked) if asked.isdecimal() else 0.0
        if time.monotonic() + pause > self._ends_at:
            raise error
        return pause


def _with_jitter(seconds: float) -> float:
    """Seconds with jitter, so that clients rejected together do not retry together."""
    return random.uniform(seconds / 2, seconds)  # noqa: S311 - no secret


def _error_of(reply: Reply | NoReply, url: str) -> ClientError:
    if not isinstance(reply, Reply):
        is_ours = is_loopback(url) and url.startswith("http:")  # `serve` speaks no TLS
        advice = "; start it with: ext-classify serve" if is_ours else ""
        return ClientError(f"{url} does not answer ({reply.reason}){advice}")
    code, said = _code_and_message(reply)
    message = ": ".join(filter(None, (f"{url} answered {reply.status}", code, said)))
    return ClientError(message, status=reply.status, code=code, said=said)


def _code_and_message(reply: Reply) -> tuple[str | None, str]:
    """Code and message of an error body; None and the first words of any other body, such as a page's."""
    try:
        error = json.loads(reply.body)["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, TypeError, KeyError):
        text = _TAG.sub(" ", reply.body[:_LONGEST_MESSAGE].decode(errors="replace"))
        return None, " ".join(text.split())


def _outcomes_of(reply: Reply, rows: int, url: str) -> list[Outcome]:
    """Outcomes in row order. Raises ClientError unless the response has each of `rows` rows exactly once."""
    try:
        by_number = {int(number): outcome for number, outcome in json.loads(reply.body)["data"]}
        outcomes = [by_number.pop(number) for number in range(rows)]
    except (TypeError, KeyError, ValueError):
        outcomes = []
    if len(outcomes) != rows or by_number or not all(isinstance(one, dict) for one in outcomes):
        raise ClientError(f"{url} answered with something other than {rows} outcomes.")
    return outcomes
