"""The blocking client, for threads."""

import http.client
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from http.client import HTTPException
from itertools import islice
from socket import EAI_NONAME, gaierror
from typing import Any, Self, TypeVar

from app.client.conversation import (
    BATCH_ROWS,
    CONCURRENT_BATCHES,
    DEFAULT_URL,
    PATIENCE_SECONDS,
    TIMEOUT_SECONDS,
    ClientError,
    Conversation,
    Image,
    NoReply,
    Reply,
    Request,
    Rows,
    Service,
    ask_batch,
    ask_model_version,
    in_batches,
    is_loopback,
    rows_of,
)
from app.outcome import Outcome


def opener_for(url: str) -> urllib.request.OpenerDirector:
    """An opener that uses the environment's proxy, except for this machine, and follows no redirects.

    A redirect must not forward the API key to another host: the caller gets the redirect as the response.
    """
    proxies = urllib.request.ProxyHandler({} if is_loopback(url) else None)
    return urllib.request.build_opener(proxies, _NoRedirects, _Handler, _SecureHandler)


def is_final(error: Exception) -> bool:
    """Whether a retry would fail the same way."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, gaierror):
        return reason.errno == EAI_NONAME
    return isinstance(reason, ssl.SSLCertVerificationError | http.client.InvalidURL | ValueError)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Return None, so that urllib raises the redirect as an HTTPError."""


class _EarlyResponseConnection(http.client.HTTPConnection):
    """Reads the response even if the server rejects the body and closes before it has read all of it."""

    def send(self, data: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            super().send(data)


class _EarlyResponseHTTPSConnection(_EarlyResponseConnection, http.client.HTTPSConnection):
    pass


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_EarlyResponseConnection, request)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_EarlyResponseHTTPSConnection, request)


# How often a pause checks whether the caller has stopped iterating.
_CHECK_SECONDS = 0.1
_Result = TypeVar("_Result")


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
        self._service = Service(url, api_key, patience_seconds)
        self._timeout_seconds = timeout_seconds
        self._opener = opener_for(url)
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
            rows = rows_of(batch, evidence=evidence)
            return self._run(ask_batch(self._service, rows), abandoned)

        running = deque(_in_thread(classify_batch, batch) for batch in islice(batches, concurrent_batches))
        try:
            while running:
                outcomes = running.popleft().result()
                running.extend(_in_thread(classify_batch, batch) for batch in islice(batches, 1))
                yield from outcomes
        finally:
            abandoned.set()

    def classify_batch(self, images: Sequence[Image], *, evidence: bool = False) -> list[Outcome]:
        """Outcomes of the images, sent in one request. Raises OSError for a file that cannot be read."""
        return self.classify_rows(rows_of(images, evidence=evidence))

    def classify_rows(self, rows: Rows, batch_id: str | None = None) -> list[Outcome]:
        """Outcomes of rows as Snowflake sends them, `[number, source]`, in one request with that batch id."""
        return self._run(ask_batch(self._service, rows, batch_id))

    def model_version(self) -> str | None:
        """The version of the model that serves now; None if a gateway blocks the endpoint. Not retried."""
        return self._run(ask_model_version(self._service))

    def _run(self, conversation: Conversation[_Result], abandoned: threading.Event | None = None) -> _Result:
        """Run it to its end. Raises ClientError once the client is closed or `abandoned` is set."""
        reply: Reply | NoReply | None = None
        try:
            while True:
                step = conversation.send(reply)
                self._raise_if_stopped(abandoned)
                if isinstance(step, Request):
                    reply = self._send(step)
                else:
                    self._pause(step.seconds, abandoned)
                    reply = None
        except StopIteration as end:
            result: _Result = end.value
            return result

    def _pause(self, seconds: float, abandoned: threading.Event | None) -> None:
        ends_at = time.monotonic() + seconds
        while (remaining := ends_at - time.monotonic()) > 0 and not (abandoned and abandoned.is_set()):
            if self._closed.wait(min(remaining, _CHECK_SECONDS)):
                break

    def _raise_if_stopped(self, abandoned: threading.Event | None) -> None:
        """Raises ClientError if the client is closed or `abandoned` is set."""
        if self._closed.is_set() or (abandoned and abandoned.is_set()):
            raise ClientError(f"Requests to {self._service.url} were stopped: {self._why_closed}.")

    def _send(self, request: Request) -> Reply | NoReply:
        http_request = urllib.request.Request(  # noqa: S310 - the service's URL is checked
            self._service.where(request.path), request.body, dict(request.headers), method=request.method
        )
        try:
            with self._opener.open(http_request, timeout=self._timeout_seconds) as response:
                return Reply(response.status, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return _reply_of_error(error)
        except (OSError, HTTPException, ValueError) as error:
            return NoReply(str(getattr(error, "reason", error)) or type(error).__name__, is_final(error))


def is_ready(url: str) -> bool:
    """Whether the service at `url` is ready to classify."""
    try:
        with opener_for(url).open(f"{url}/readyz", timeout=TIMEOUT_SECONDS):
            return True
    except (OSError, HTTPException):
        return False


def _in_thread(work: Callable[[list[Image]], list[Outcome]], batch: list[Image]) -> Future[list[Outcome]]:
    """Runs in a daemon thread: unlike an executor's threads, it does not delay the program's exit."""
    future: Future[list[Outcome]] = Future()

    def run() -> None:
        try:
            future.set_result(work(batch))
        except Exception as error:  # noqa: BLE001 - raised again by Future.result()
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _reply_of_error(error: urllib.error.HTTPError) -> Reply | NoReply:
    try:
        body = error.read()
    except (OSError, HTTPException) as broken:
        return NoReply(str(broken))
    retry_after = error.headers.get("Retry-After", "")
    return Reply(error.code, body, float(retry_after) if retry_after.isdecimal() else None)
