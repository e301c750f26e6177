"""What is said to the service, and what is said again, whichever way it travels.

A conversation is a generator: it yields a Request, which is to be answered with a Reply or NoReply, or a
Pause; it returns what was asked for. Client drives it in threads, AsyncClient on an event loop.
"""

import base64
import json
import random
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from app.command_line import CommandError
from app.outcome import Outcome
from app.snowflake.wire import BATCH_ID_HEADER

DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_HEADER = "X-API-Key"
BATCH_ROWS = 64
BATCH_BYTES = 16 * 1024 * 1024
CONCURRENT_BATCHES = 4
TIMEOUT_SECONDS = 60.0
# So long, a service that is busy, or being replaced, is waited for.
PATIENCE_SECONDS = 300.0
# A batch that was answered 202 is asked for so often.
POLL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 10.0
_RETRYABLE = frozenset({429, 500, 502, 503, 504})
_LONGEST_MESSAGE = 500

Image: TypeAlias = bytes | Path | str
"""An image's bytes, a file that holds them, or what a row may name: a URL, a stage path, base64."""

Rows: TypeAlias = list[list[Any]]
_Result = TypeVar("_Result")


class ClientError(CommandError):
    """The service cannot be reached, or refuses the whole request, with `status` and `code`."""

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    retry_after_seconds: float | None = None


@dataclass(frozen=True)
class NoReply:
    reason: str


@dataclass(frozen=True)
class Pause:
    seconds: float


Conversation: TypeAlias = Generator[Request | Pause, Reply | NoReply | None, _Result]


@dataclass(frozen=True)
class Service:
    """Where it is, who asks, and how long a service that is busy or begins anew is waited for."""

    url: str
    api_key: str | None
    patience_seconds: float

    def __post_init__(self) -> None:
        """Raises ClientError."""
        if not _is_http_url(self.url):
            raise ClientError(
                f"The service's URL must begin with http:// or https:// and name a host. Received: {self.url}"
            )

    @property
    def credentials(self) -> dict[str, str]:
        return {} if self.api_key is None else {API_KEY_HEADER: self.api_key}

    def where(self, path: str) -> str:
        return self.url.rstrip("/") + path


def _is_http_url(url: str) -> bool:
    if not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def rows_of(images: Sequence[Image], *, evidence: bool) -> Rows:
    """As Snowflake would send them. Raises OSError for a file that cannot be read."""
    options: list[Any] = [{"evidence": True}] if evidence else []
    return [[number, source_of(image), *options] for number, image in enumerate(images)]


def source_of(image: Image) -> str:
    """What a row holds for it. Raises OSError."""
    if isinstance(image, str):
        return image
    return base64.b64encode(image if isinstance(image, bytes) else image.read_bytes()).decode()


def in_batches(images: Iterable[Image], batch_rows: int) -> Iterator[list[Image]]:
    """As many at a time as rows and bytes allow."""
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


def ask_batch(service: Service, rows: Rows, batch_id: str | None = None) -> Conversation[list[Outcome]]:
    """Outcomes in the order of the rows, which are sent under one id: a repeated batch is classified once.

    What is too large for one request, or its answer, is asked for in halves. Raises ClientError.
    """
    try:
        return (yield from _ask_whole_batch(service, rows, batch_id or str(uuid.uuid4())))
    except ClientError as error:
        if error.status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE or len(rows) == 1:
            raise
    middle = len(rows) // 2
    first = yield from ask_batch(service, rows[:middle])
    second = yield from ask_batch(service, rows[middle:])
    return first + second


def _ask_whole_batch(service: Service, rows: Rows, batch_id: str) -> Conversation[list[Outcome]]:
    headers = service.credentials | {BATCH_ID_HEADER: batch_id}
    body = json.dumps({"data": rows}).encode()
    post = Request("POST", "/classify", headers | {"Content-Type": "application/json"}, body)
    poll = Request("GET", "/classify", headers)
    patience = _Patience(service.patience_seconds)
    request = post
    while True:
        reply = yield request
        if isinstance(reply, Reply) and reply.status == HTTPStatus.OK:
            return _outcomes_of(reply, len(rows), service.url)
        if _status_of(reply) == HTTPStatus.ACCEPTED:
            request = poll
            yield patience.after_promise()
            continue
        # A batch that is unknown, and was promised, was known to somebody who is gone.
        is_forgotten = request is poll and _status_of(reply) == HTTPStatus.NOT_FOUND
        error = _error_of(reply, service.where(request.path))
        if not is_forgotten and not _is_passing(reply):
            raise error
        request = post
        yield patience.after_failure(reply, error)


def ask_model_version(service: Service) -> Conversation[str | None]:
    """Of the network that serves; None where a gateway lets nobody ask. Raises ClientError."""
    request = Request("GET", "/readyz", service.credentials)
    reply = yield request
    if _status_of(reply) in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
        return None
    if not isinstance(reply, Reply) or reply.status != HTTPStatus.OK:
        raise _error_of(reply, service.where(request.path))
    try:
        version: str = json.loads(reply.body)["model"]["version"]
    except (ValueError, TypeError, KeyError):
        raise ClientError(f"{service.url} answers, and is no ext-classify service.") from None
    return version


class _Patience:
    """Pauses that grow, until it is at an end; whoever promises an answer makes it whole again."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._failures = 0
        self._ends_at = time.monotonic() + seconds

    def after_promise(self) -> Pause:
        self._failures = 0
        self._ends_at = time.monotonic() + self._seconds
        return _shaken(POLL_SECONDS)

    def after_failure(self, reply: Reply | NoReply | None, error: ClientError) -> Pause:
        """Raises the error in the end."""
        self._failures += 1
        asked_for = reply.retry_after_seconds if isinstance(reply, Reply) else None
        seconds = asked_for or min(0.1 * 2 ** min(self._failures, 16), LONGEST_PAUSE_SECONDS)
        if time.monotonic() + seconds > self._ends_at:
            raise error
        return _shaken(seconds)


def _shaken(seconds: float) -> Pause:
    """So that many who were refused together do not come back together."""
    return Pause(random.uniform(seconds / 2, seconds))  # noqa: S311 - no secret


def _status_of(reply: Reply | NoReply | None) -> int | None:
    return reply.status if isinstance(reply, Reply) else None


def _is_passing(reply: Reply | NoReply | None) -> bool:
    """What may be answered another time."""
    return not isinstance(reply, Reply) or reply.status in _RETRYABLE


def _error_of(reply: Reply | NoReply | None, where: str) -> ClientError:
    if not isinstance(reply, Reply):
        reason = reply.reason if reply else "nothing was asked"
        return ClientError(f"{where} does not answer ({reason}); start it with: ext-classify serve")
    code, message = _said_of(reply)
    return ClientError(f"{where} answered {reply.status}: {message}", status=reply.status, code=code)


def _said_of(reply: Reply) -> tuple[str | None, str]:
    """Code and message of an error's body, or of one that is not ours the beginning."""
    try:
        error = json.loads(reply.body)["error"]
        return str(error["code"]), f"{error['code']}: {error['message']}"
    except (ValueError, TypeError, KeyError):
        return None, reply.body[:_LONGEST_MESSAGE].decode(errors="replace")


def _outcomes_of(reply: Reply, rows: int, url: str) -> list[Outcome]:
    """Raises ClientError for what is no answer to so many rows."""
    try:
        data = json.loads(reply.body)["data"]
        outcomes = [outcome for _, outcome in sorted(data, key=lambda row: int(row[0]))]
    except (TypeError, KeyError, ValueError):
        outcomes = []
    if len(outcomes) != rows:
        raise ClientError(f"{url} answered with something other than {rows} outcomes.")
    return outcomes
