"""What is said to the service, and what is said again, whichever way it travels.

A conversation is a generator: it yields a Request, which is to be answered with a Reply or NoReply, or a
Pause; it returns what was asked for. Client drives it in threads, AsyncClient on an event loop.
"""

import json
import random
import time
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address
from typing import TypeAlias, TypeVar
from urllib.parse import urlsplit

from app.client.rows import Rows
from app.command_line import CommandError
from app.outcome import ErrorDetail, ModelIdentity, Outcome, blank_outcome
from app.snowflake.wire import BATCH_ID_HEADER

DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_HEADER = "X-API-Key"
BATCH_ROWS = 64
CONCURRENT_BATCHES = 4
TIMEOUT_SECONDS = 60.0
# So long, a service that is busy, or being replaced, is waited for.
PATIENCE_SECONDS = 300.0
# A batch that was answered 202 is asked for so often.
POLL_SECONDS = 1.0
# So long, an answer that was promised is asked for: it is remembered for some minutes once it is there.
PROMISE_SECONDS = 3600.0
LONGEST_PAUSE_SECONDS = 10.0
_RETRYABLE = frozenset({429, 500, 502, 503, 504})
_LONGEST_MESSAGE = 500

_Result = TypeVar("_Result")


class ClientError(CommandError):
    """The service cannot be reached, or refuses the whole request: with `status`, and `code` as it `said`."""

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, said: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.said = said


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
    """`is_final` where another time would be no different: a host that is none, a certificate of nobody's."""

    reason: str
    is_final: bool = False


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
            shown = self.url.rpartition("@")[2]  # before it may stand a password
            raise ClientError(
                "The service's URL must begin with http:// or https:// and name a host, without a user. "
                f"Received: {shown}"
            )
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ClientError("An API key must be one line of printable ASCII characters.")

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
        has_host = bool(parts.hostname) and parts.port != 0
        return parts.scheme in ("http", "https") and has_host and parts.username is None
    except ValueError:
        return False


def ask_batch(service: Service, rows: Rows, batch_id: str | None = None) -> Conversation[list[Outcome]]:
    """Outcomes in the order of the rows, which are sent under one id: a repeated batch is classified once.

    What is too large for one request, or its answer, is asked for in halves; a row that is too large alone
    has that for its error. Raises ClientError.
    """
    try:
        return (yield from _ask_whole_batch(service, rows, batch_id or str(uuid.uuid4())))
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
            yield patience.after_promise(service.url)
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
    """Pauses that grow, until it is at an end; a promise makes it whole again."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._failures = 0
        self._promised_at: float | None = None
        self._ends_at = time.monotonic() + seconds

    def after_promise(self, url: str) -> Pause:
        """Raises ClientError for one that is kept for too long."""
        self._promised_at = self._promised_at or time.monotonic()
        if time.monotonic() - self._promised_at > PROMISE_SECONDS:
            raise ClientError(f"{url} has promised an answer for {PROMISE_SECONDS / 60:.0f} minutes.")
        self._failures = 0
        self._ends_at = time.monotonic() + self._seconds
        return _shaken(POLL_SECONDS)

    def after_failure(self, reply: Reply | NoReply | None, error: ClientError) -> Pause:
        """Raises the error in the end."""
        self._failures += 1
        asked_for = (reply.retry_after_seconds if isinstance(reply, Reply) else None) or 0.0
        pause = _shaken(min(0.1 * 2 ** min(self._failures, 16), LONGEST_PAUSE_SECONDS), at_least=asked_for)
        if time.monotonic() + pause.seconds > self._ends_at:
            raise error
        return pause


def _shaken(seconds: float, at_least: float = 0.0) -> Pause:
    """So that many who were refused together do not come back together."""
    return Pause(at_least + random.uniform(seconds / 2, seconds))  # noqa: S311 - no secret


def _status_of(reply: Reply | NoReply | None) -> int | None:
    return reply.status if isinstance(reply, Reply) else None


def _is_passing(reply: Reply | NoReply | None) -> bool:
    """What may be answered another time."""
    if isinstance(reply, Reply):
        return reply.status in _RETRYABLE
    return reply is None or not reply.is_final


def _error_of(reply: Reply | NoReply | None, where: str) -> ClientError:
    if not isinstance(reply, Reply):
        reason = reply.reason if reply else "nothing was asked"
        advice = "; start it with: ext-classify serve" if is_loopback(where) else ""
        return ClientError(f"{where} does not answer ({reason}){advice}")
    code, said = _said_of(reply)
    message = f"{code}: {said}" if code else said
    return ClientError(
        f"{where} answered {reply.status}: {message}", status=reply.status, code=code, said=said
    )


def is_loopback(url: str) -> bool:
    """Whether it leads to this machine, which no proxy does."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _said_of(reply: Reply) -> tuple[str | None, str]:
    """Code and message of an error's body, or of one that is not ours the beginning."""
    try:
        error = json.loads(reply.body)["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, TypeError, KeyError):
        return None, reply.body[:_LONGEST_MESSAGE].decode(errors="replace")


def _outcomes_of(reply: Reply, rows: int, url: str) -> list[Outcome]:
    """Raises ClientError for what is no answer to so many rows, each once."""
    try:
        by_number = {int(number): outcome for number, outcome in json.loads(reply.body)["data"]}
        outcomes = [by_number.pop(number) for number in range(rows)]
    except (TypeError, KeyError, ValueError):
        outcomes = []
    if len(outcomes) != rows or by_number or not all(isinstance(one, dict) for one in outcomes):
        raise ClientError(f"{url} answered with something other than {rows} outcomes.")
    return outcomes
