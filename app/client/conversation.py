"""The client's protocol without I/O: which requests to send, and when to retry.

A conversation is a generator: it yields a Request, and is sent a Reply or NoReply, or it yields a Pause; it
returns the result. Client runs it in threads, AsyncClient on an event loop.
"""

import base64
import json
import random
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from app.client.transport import NoReply, Reply, Request, is_loopback
from app.errors import CommandError
from app.names import BATCH_ID_HEADER
from app.outcome import ErrorDetail, ModelIdentity, Outcome, blank_outcome

BATCH_BYTES = 16 * 1024 * 1024

Image: TypeAlias = bytes | Path | str
"""An image's bytes, the path of its file, or a row's source: a URL, a stage path, base64."""

Rows: TypeAlias = list[list[Any]]


def rows_of(images: Sequence[Image], *, evidence: bool) -> Rows:
    """Rows as Snowflake sends them. Raises OSError for a file that cannot be read."""
    options: list[Any] = [{"evidence": True}] if evidence else []
    return [[number, source_of(image), *options] for number, image in enumerate(images)]


def source_of(image: Image) -> str:
    """The image as a row's source: a string unchanged, bytes and files as base64. Raises OSError."""
    if isinstance(image, str):
        return image
    return base64.b64encode(image if isinstance(image, bytes) else image.read_bytes()).decode()


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


DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_HEADER = "X-API-Key"
BATCH_ROWS = 64
CONCURRENT_BATCHES = 4
# How long the client retries while the service is overloaded or restarting.
PATIENCE_SECONDS = 300.0
# How often the client polls for a deferred (202) response.
POLL_SECONDS = 1.0
# How long the client polls for a deferred response, which the service keeps for minutes once it is ready.
MAX_DEFERRED_SECONDS = 3600.0
LONGEST_PAUSE_SECONDS = 10.0
_RETRYABLE = frozenset({429, 500, 502, 503, 504})
_LONGEST_MESSAGE = 500

_Result = TypeVar("_Result")


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
class Pause:
    seconds: float


Conversation: TypeAlias = Generator[Request | Pause, Reply | NoReply | None, _Result]


@dataclass(frozen=True)
class Service:
    """The service's URL, the API key, and how long to retry while the service is busy or restarting."""

    url: str
    api_key: str | None
    patience_seconds: float

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


def ask_batch(service: Service, rows: Rows) -> Conversation[list[Outcome]]:
    """Outcomes in the order of the rows. Retries keep the batch id, so the service classifies a batch once.

    If the request or response is too large, the batch is split in half; a single row that is too large gets
    that error as its outcome. Raises ClientError.
    """
    try:
        return (yield from _send_whole_batch(service, rows))
    except ClientError as error:
        if error.status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            raise
        if len(rows) == 1:
            return [_too_large(error)]
    middle = len(rows) // 2
    first = yield from ask_batch(service, rows[:middle])
    second = yield from ask_batch(service, rows[middle:])
    return first + second


def _too_large(error: ClientError) -> Outcome:
    outcome = blank_outcome(ModelIdentity(name="", version=""))
    code = error.code or "payload_too_large"
    outcome["error"] = ErrorDetail(code=code, message=error.said or str(error), retryable=False)
    return outcome


def _send_whole_batch(service: Service, rows: Rows) -> Conversation[list[Outcome]]:
    headers = service.credentials | {BATCH_ID_HEADER: str(uuid.uuid4())}
    body = json.dumps({"data": rows}).encode()
    url = service.url_of("/classify")
    post = Request("POST", url, headers | {"Content-Type": "application/json"}, body)
    poll = Request("GET", url, headers)
    retries = _Retries(service.patience_seconds)
    request = post
    while True:
        reply = yield request
        if isinstance(reply, Reply) and reply.status == HTTPStatus.OK:
            return _outcomes_of(reply, len(rows), service.url)
        if _status_of(reply) == HTTPStatus.ACCEPTED:
            request = poll
            yield retries.after_deferral(service.url)
            continue
        # 404 for a deferred batch: the instance that accepted it is gone. The client sends the batch again.
        is_lost = request is poll and _status_of(reply) == HTTPStatus.NOT_FOUND
        error = _error_of(reply, url)
        if not is_lost and not _is_retryable(reply):
            raise error
        request = post
        yield retries.after_failure(reply, error)


def ask_model_version(service: Service) -> Conversation[str | None]:
    """The version of the model that serves; None if a gateway blocks the endpoint. Raises ClientError."""
    url = service.url_of("/readyz")
    reply = yield Request("GET", url, service.credentials)
    if _status_of(reply) in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
        return None
    if not isinstance(reply, Reply) or reply.status != HTTPStatus.OK:
        raise _error_of(reply, url)
    try:
        version: str = json.loads(reply.body)["model"]["version"]
    except (ValueError, TypeError, KeyError):
        raise ClientError(f"{service.url} answers but is not an ext-classify service.") from None
    return version


class _Retries:
    """Pauses between attempts, which grow until the time limit; a deferred response restarts the limit."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._failures = 0
        self._deferred_at: float | None = None
        self._ends_at = time.monotonic() + seconds

    def after_deferral(self, url: str) -> Pause:
        """The pause before the next poll. Raises ClientError if the response is deferred for too long."""
        self._deferred_at = self._deferred_at or time.monotonic()
        if time.monotonic() - self._deferred_at > MAX_DEFERRED_SECONDS:
            raise ClientError(f"{url} has deferred its response for {MAX_DEFERRED_SECONDS / 60:.0f} minutes.")
        self._failures = 0
        self._ends_at = time.monotonic() + self._seconds
        return _with_jitter(POLL_SECONDS)

    def after_failure(self, reply: Reply | NoReply | None, error: ClientError) -> Pause:
        """The pause before the next attempt. Raises `error` if the time limit comes first."""
        self._failures += 1
        pause = _with_jitter(
            min(0.1 * 2 ** min(self._failures, 16), LONGEST_PAUSE_SECONDS), at_least=_retry_after_of(reply)
        )
        if time.monotonic() + pause.seconds > self._ends_at:
            raise error
        return pause


def _with_jitter(seconds: float, at_least: float = 0.0) -> Pause:
    """A pause with jitter, so that clients rejected together do not retry together."""
    return Pause(at_least + random.uniform(seconds / 2, seconds))  # noqa: S311 - no secret


def _retry_after_of(reply: Reply | NoReply | None) -> float:
    """Seconds that the service asks the client to wait; 0 if it does not."""
    seconds = reply.headers.get("Retry-After", "") if isinstance(reply, Reply) else ""
    return float(seconds) if seconds.isdecimal() else 0.0


def _status_of(reply: Reply | NoReply | None) -> int | None:
    return reply.status if isinstance(reply, Reply) else None


def _is_retryable(reply: Reply | NoReply | None) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(reply, Reply):
        return reply.status in _RETRYABLE
    return reply is None or not reply.is_final


def _error_of(reply: Reply | NoReply | None, url: str) -> ClientError:
    if not isinstance(reply, Reply):
        reason = reply.reason if reply else "no request was sent"
        advice = "; start it with: ext-classify serve" if is_loopback(url) else ""
        return ClientError(f"{url} does not answer ({reason}){advice}")
    code, said = _code_and_message(reply)
    message = f"{code}: {said}" if code else said
    return ClientError(f"{url} answered {reply.status}: {message}", status=reply.status, code=code, said=said)


def _code_and_message(reply: Reply) -> tuple[str | None, str]:
    """Code and message of an error body; None and the beginning of any other body."""
    try:
        error = json.loads(reply.body)["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, TypeError, KeyError):
        return None, reply.body[:_LONGEST_MESSAGE].decode(errors="replace")


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
