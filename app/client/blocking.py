"""A client for threads."""

import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from http.client import HTTPException
from itertools import islice
from typing import Self, TypeVar

from app.client.conversation import (
    BATCH_ROWS,
    CONCURRENT_BATCHES,
    DEFAULT_URL,
    PATIENCE_SECONDS,
    TIMEOUT_SECONDS,
    ClientError,
    Conversation,
    NoReply,
    Reply,
    Request,
    Service,
    ask_batch,
    ask_model_version,
)
from app.client.opening import is_final, opener_for
from app.client.rows import Image, Rows, in_batches, rows_of
from app.outcome import Outcome

# Whoever pauses looks up so often whether somebody still waits.
_LOOK_SECONDS = 0.1
_Result = TypeVar("_Result")


class Client:
    """Of one service; threads may share it.

    A request that is refused for now (429, 5xx) or not answered is repeated for `patience_seconds`, which
    begin anew with a promise (202). All methods raise ClientError when the service does not answer, or
    refuses a request for good; an image that cannot be classified is no such error: its outcome says so.
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
        self._why_closed = "it was given up"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, why: str | None = None) -> None:
        """Nothing more is asked for: what waits to be repeated ends with ClientError, which says why."""
        self._why_closed = why or self._why_closed
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

        Whoever leaves early waits for nothing. Raises OSError for a file that cannot be read.
        """
        batches = in_batches(images, batch_rows)
        left = threading.Event()

        def classify_batch(batch: list[Image]) -> list[Outcome]:
            rows = rows_of(batch, evidence=evidence)
            return self._hold(ask_batch(self._service, rows), left)

        running = deque(_in_thread(classify_batch, batch) for batch in islice(batches, concurrent_batches))
        try:
            while running:
                outcomes = running.popleft().result()
                running.extend(_in_thread(classify_batch, batch) for batch in islice(batches, 1))
                yield from outcomes
        finally:
            left.set()

    def classify_batch(self, images: Sequence[Image], *, evidence: bool = False) -> list[Outcome]:
        """In one request. Raises OSError for a file that cannot be read."""
        return self.classify_rows(rows_of(images, evidence=evidence))

    def classify_rows(self, rows: Rows, batch_id: str | None = None) -> list[Outcome]:
        """Rows as Snowflake sends them, `[number, source]`, in one request with that id."""
        return self._hold(ask_batch(self._service, rows, batch_id))

    def model_version(self) -> str | None:
        """Of the network that serves now; None where a gateway lets nobody ask. It is asked once."""
        return self._hold(ask_model_version(self._service))

    def _hold(self, conversation: Conversation[_Result], left: threading.Event | None = None) -> _Result:
        """Until its end, or until the client is closed or whoever asked has left."""
        reply: Reply | NoReply | None = None
        try:
            while True:
                step = conversation.send(reply)
                self._leave_off(left)
                if isinstance(step, Request):
                    reply = self._exchange(step)
                else:
                    self._pause(step.seconds, left)
                    reply = None
        except StopIteration as end:
            result: _Result = end.value
            return result

    def _pause(self, seconds: float, left: threading.Event | None) -> None:
        ends_at = time.monotonic() + seconds
        while (remaining := ends_at - time.monotonic()) > 0 and not (left and left.is_set()):
            if self._closed.wait(min(remaining, _LOOK_SECONDS)):
                break

    def _leave_off(self, left: threading.Event | None) -> None:
        """Raises ClientError."""
        if self._closed.is_set() or (left and left.is_set()):
            raise ClientError(f"{self._service.url} is not asked any more: {self._why_closed}.")

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
        except (OSError, HTTPException, ValueError) as error:
            return NoReply(str(getattr(error, "reason", error)) or type(error).__name__, is_final(error))


def is_ready(url: str) -> bool:
    """Whether a service answers there, and would classify."""
    try:
        with opener_for(url).open(f"{url}/readyz", timeout=TIMEOUT_SECONDS):
            return True
    except (OSError, HTTPException):
        return False


def _in_thread(work: Callable[[list[Image]], list[Outcome]], batch: list[Image]) -> Future[list[Outcome]]:
    """That the end of the program does not wait for, unlike those of an executor."""
    answered: Future[list[Outcome]] = Future()

    def run() -> None:
        try:
            answered.set_result(work(batch))
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
            answered.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answered


def _reply_of_error(error: urllib.error.HTTPError) -> Reply | NoReply:
    try:
        body = error.read()
    except (OSError, HTTPException) as broken:
        return NoReply(str(broken))
    asked_for = error.headers.get("Retry-After", "")
    return Reply(error.code, body, float(asked_for) if asked_for.isdecimal() else None)
