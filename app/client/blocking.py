"""A client for threads."""

import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from itertools import islice
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
    rows_of,
)
from app.outcome import Outcome

_Result = TypeVar("_Result")


class Client:
    """Of one service; threads may share it.

    A request that is refused for now (429, 5xx) or not answered is repeated, for `patience_seconds` since the
    last sign of life. All methods raise ClientError when the service does not answer, or refuses a request
    for good; an image that cannot be classified is no such error: its outcome says so.
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
        # A key must not follow a redirect to somebody else.
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is asked for; what waits to be repeated ends with ClientError."""
        self._closed.set()

    def classify(self, image: Image, *, evidence: bool = False) -> Outcome:
        """Raises OSError for a file that cannot be read."""
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
        """Outcomes in the order of the images, which are read as they are needed.

        Raises OSError for a file that cannot be read.
        """
        batches = in_batches(images, batch_rows)
        with _threads(concurrent_batches) as threads:

            def begin(count: int) -> Iterator[Future[list[Outcome]]]:
                for batch in islice(batches, count):
                    yield threads.submit(self.classify_batch, batch, evidence=evidence)

            running = deque(begin(concurrent_batches + 1))
            while running:
                yield from running.popleft().result()
                running.extend(begin(1))

    def classify_batch(self, images: Sequence[Image], *, evidence: bool = False) -> list[Outcome]:
        """In one request. Raises OSError for a file that cannot be read."""
        return self.classify_rows(rows_of(images, evidence=evidence))

    def classify_rows(self, rows: Rows, batch_id: str | None = None) -> list[Outcome]:
        """Rows as Snowflake sends them, `[number, source]`, in one request with that id."""
        return self._hold(ask_batch(self._service, rows, batch_id))

    def model_version(self) -> str | None:
        """Of the network that serves now; None where a gateway lets nobody ask. It is asked once."""
        return self._hold(ask_model_version(self._service))

    def _hold(self, conversation: Conversation[_Result]) -> _Result:
        reply: Reply | NoReply | None = None
        failure: Reply | NoReply | None = None
        try:
            while True:
                step = conversation.send(reply)
                if isinstance(step, Request):
                    reply = failure = self._exchange(step)
                    continue
                if self._closed.wait(step.seconds):
                    raise ClientError(f"{self._service.url} was given up: {_described(failure)}")
                reply = None
        except StopIteration as end:
            result: _Result = end.value
            return result

    def _exchange(self, request: Request) -> Reply | NoReply:
        asked = urllib.request.Request(  # noqa: S310 - the service's URL is checked
            self._service.where(request.path), request.body, dict(request.headers), method=request.method
        )
        try:
            with self._opener.open(asked, timeout=self._timeout_seconds) as response:
                return Reply(response.status, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return _reply_of_error(error)
        except (OSError, HTTPException) as error:
            return NoReply(str(getattr(error, "reason", error)) or type(error).__name__)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Then the redirect itself is the answer."""


def is_ready(url: str) -> bool:
    """Whether a service answers there, and would classify."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=TIMEOUT_SECONDS):  # noqa: S310 - our own URL
            return True
    except (OSError, HTTPException):
        return False


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """What has not begun is not begun any more once whoever asked has left."""
    threads = ThreadPoolExecutor(count)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _reply_of_error(error: urllib.error.HTTPError) -> Reply | NoReply:
    try:
        body = error.read()
    except (OSError, HTTPException) as broken:
        return NoReply(str(broken))
    asked_for = error.headers.get("Retry-After", "")
    return Reply(error.code, body, float(asked_for) if asked_for.isdecimal() else None)


def _described(reply: Reply | NoReply | None) -> str:
    return (
        f"it answered {reply.status}" if isinstance(reply, Reply) else getattr(reply, "reason", "no answer")
    )
