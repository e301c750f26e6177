"""The blocking client, for threads."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Self, TypeVar

from app.client.conversation import (
    BATCH_ROWS,
    CONCURRENT_BATCHES,
    DEFAULT_URL,
    PATIENCE_SECONDS,
    ClientError,
    Conversation,
    Image,
    Service,
    ask_batch,
    ask_model_version,
    in_batches,
    rows_of,
)
from app.client.transport import TIMEOUT_SECONDS, NoReply, Reply, Request, Transport, send_once
from app.outcome import Outcome

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
            rows = rows_of(batch, evidence=evidence)
            return self._run(ask_batch(self._service, rows), abandoned)

        def start(count: int) -> None:
            running.extend(in_thread(classify_batch, batch) for batch in islice(batches, count))

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
        return self._run(ask_batch(self._service, rows_of(images, evidence=evidence)))

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
                    reply = self._transport.send(step)
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


def is_ready(url: str) -> bool:
    """Whether the service at `url` is ready to classify."""
    reply = send_once(Request("GET", f"{url}/readyz"))
    return isinstance(reply, Reply) and reply.status == 200


_Argument = TypeVar("_Argument")


def in_thread(work: Callable[[_Argument], _Result], argument: _Argument) -> Future[_Result]:
    """Runs in a daemon thread: unlike an executor's threads, it does not delay the program's exit."""
    future: Future[_Result] = Future()
    future.set_running_or_notify_cancel()  # a cancelled future would refuse the result

    def run() -> None:
        try:
            result = work(argument)
        except Exception as error:  # noqa: BLE001 - raised again by Future.result()
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, daemon=True).start()
    return future
