"""Calls functions over HTTP as Snowflake does: retries, polling, and network faults for tests.

Snowflake retries an external function for some minutes, however often. It retries a service function, of
Snowpark Container Services, MAX_BATCH_RETRIES times: 429 counts as a failed try, and so does a call without
an answer after 30 seconds. Then the query fails, or with ON_BATCH_FAILURE = RETURN_NULL the batch is NULL.
BATCH_TIMEOUT_SECS includes all tries and polls.

Source: Snowflake documentation, "Remote service implementation", CREATE FUNCTION (Snowpark Container
Services), behavior change 1938, and "Snowpark Container Services troubleshooting".
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal

import urllib3
from snowflake.connector.errors import Error, ProgrammingError

from app.emulator.catalog import ExternalFunction
from app.emulator.errors import unsupported
from app.emulator.query import Query
from app.emulator.wire import Batch, outcome_of

# Default of MAX_BATCH_ROWS. Snowflake estimates a size for each query; this is the largest one observed.
DEFAULT_BATCH_ROWS = 4096
CONCURRENT_BATCHES = 8
# Snowflake documents the polling limit, but neither how long it retries nor how long a request may take.
RETRY_SECONDS = 60.0
REQUEST_SECONDS = 30.0
POLLING_SECONDS = 600.0
# Instead of a status: the service's port is closed.
_REFUSED = -1
_RETRIED_OF_SERVICES = frozenset({0, _REFUSED, 404, 429, 500, 502, 503, 504})
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0

# Network faults.

MAX_DELAY_SECONDS = 0.2
FaultKind = Literal["none", "repeated", "delayed", "dropped"]
_KINDS: tuple[FaultKind, ...] = ("none", "repeated", "delayed", "dropped")


@dataclass(frozen=True)
class Fault:
    """The network fault of one batch."""

    kind: FaultKind = "none"
    delay_seconds: float = 0.0

    def apply(self, send: Callable[[], bytes]) -> bytes:
        """Send the batch under this fault and return the response, the second one if it was sent twice.

        Raises ValueError if the service answers a repeated batch differently.
        """
        if self.kind == "delayed":
            time.sleep(self.delay_seconds)
        answer = send()
        if self.kind in {"repeated", "dropped"}:
            first, answer = answer, send()
            if self.kind == "repeated" and first != answer:
                raise ValueError("a repeated batch must get the same answer")
        return answer


class Chaos:
    """Chooses faults at random; the same seed and the same sequence of calls give the same faults."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secrets
        self._lock = threading.Lock()

    def plan(self, count: int) -> tuple[list[int], list[Fault]]:
        """The order in which to send `count` batches, and the fault of each."""
        with self._lock:
            order = self._random.sample(range(count), count)
            return order, [self._fault() for _ in range(count)]

    def _fault(self) -> Fault:
        return Fault(self._random.choice(_KINDS), self._random.uniform(0, MAX_DELAY_SECONDS))


# Calls.


class RemoteService:
    """The HTTP client for external and service functions. Thread-safe."""

    def __init__(
        self,
        chaos: Chaos | None = None,
        *,
        retry_seconds: float = RETRY_SECONDS,
        concurrent_batches: int = CONCURRENT_BATCHES,
        refused_seconds: float = RETRY_SECONDS,
    ) -> None:
        """`refused_seconds` is how long calls retry while the service's port is closed."""
        self.retry_seconds = retry_seconds
        self.refused_seconds = refused_seconds
        self._http = urllib3.PoolManager(maxsize=concurrent_batches, block=False, retries=False)
        self._threads = ThreadPoolExecutor(concurrent_batches, "batches")
        self._chaos = chaos

    def call(
        self, function: ExternalFunction, url: str, rows: Sequence[Sequence[Any]], query: Query
    ) -> list[str | None]:
        """The value of each row as JSON, in order. Raises ProgrammingError with Snowflake's error numbers.

        The first batch that fails cancels the others.
        """
        size = function.max_batch_rows or DEFAULT_BATCH_ROWS
        batches = [
            Batch.encode(function, query, rows[start : start + size]) for start in range(0, len(rows), size)
        ]
        order, faults = self._plan(len(batches))
        calls = {
            index: self._threads.submit(_Call(self, url, batches[index], query, faults[index]).run)
            for index in order
        }
        _wait_for_all(list(calls.values()), query)
        return [value for index in range(len(batches)) for value in calls[index].result()]

    def request(
        self, method: str, url: str, body: bytes | None, headers: dict[str, str], timeout: float
    ) -> Any:
        return self._http.request(method, url, body=body, headers=headers, timeout=timeout, redirect=False)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)  # a response may take minutes
        self._http.clear()

    def _plan(self, count: int) -> tuple[Sequence[int], Sequence[Fault]]:
        return self._chaos.plan(count) if self._chaos else (range(count), [Fault()] * count)


def _wait_for_all(calls: Sequence["Future[list[str | None]]"], query: Query) -> None:
    """Raises the exception of the first call that fails, and cancels the others."""
    finished, pending = wait(calls, return_when=FIRST_EXCEPTION)
    error = next((error for call in finished if (error := call.exception())), None)
    if error is not None:
        query.fail(error if isinstance(error, Error) else unsupported(repr(error)))
        for call in pending:
            call.cancel()
        raise error


@dataclass(frozen=True)
class _Call:
    """The call for one batch, with its retries."""

    service: RemoteService
    url: str
    batch: Batch
    query: Query
    fault: Fault

    def run(self) -> list[str | None]:
        if self.query.is_over.is_set():
            raise self._cancelled()
        self.query.count(rows=self.batch.rows)
        try:
            answer = self.fault.apply(self._send)
        except ValueError as error:
            raise self.batch.not_json(error) from None
        values = self.batch.decode(answer)
        if self.fault.kind != "none":
            self.query.count(**{self.fault.kind: 1})
        self.query.count_outcomes(map(outcome_of, values))
        return values

    def _send(self) -> bytes:
        """Send the batch, retry and poll; return the body of the 200 response."""
        pauses, retries, started = _pauses(), 0, time.monotonic()
        function = self.batch.function
        seconds = self.service.retry_seconds if function.service is None else function.batch_timeout_seconds
        deadline = started + seconds
        method = "POST"
        while True:
            status, answer = self._request(method, self._request_seconds(deadline))
            deadline = self._sooner_if_refused(status, deadline, started)
            if status == 200:
                return answer
            if status == 202:
                if method == "POST" and function.service is None:
                    deadline = time.monotonic() + POLLING_SECONDS
                method = "GET"
                self.query.count(polls=1)
            elif not self._is_retried(method, status):
                raise self._rejected(status, answer)
            elif function.service is not None and retries >= function.max_batch_retries:
                if function.returns_null_on_failure:
                    return self.batch.null_answer
                raise self._timed_out(status)
            else:
                retries += 1
                self.query.count(retries=1)
            if time.monotonic() >= deadline:
                raise self._timed_out(status)
            if self.query.is_over.wait(min(next(pauses), max(0.0, deadline - time.monotonic()))):
                raise self._cancelled()

    def _request_seconds(self, deadline: float) -> float:
        """Only a service function's requests end with its BATCH_TIMEOUT_SECS."""
        if self.batch.function.service is None:
            return REQUEST_SECONDS
        return max(0.001, min(REQUEST_SECONDS, deadline - time.monotonic()))

    def _sooner_if_refused(self, status: int, deadline: float, started: float) -> float:
        return min(deadline, started + self.service.refused_seconds) if status == _REFUSED else deadline

    def _is_retried(self, method: str, status: int) -> bool:
        if self.batch.function.service is not None:
            return status in _RETRIED_OF_SERVICES
        return status in {0, _REFUSED, 429} or (status >= 500 and method == "POST")

    def _request(self, method: str, timeout: float) -> tuple[int, bytes]:
        """Status and body; 0 without a response, _REFUSED if the port is closed.

        Raises ValueError if the body cannot be decoded.
        """
        self.query.count(requests=1)
        url, batch = self.url, self.batch
        try:
            if method == "POST":
                response = self.service.request("POST", url, batch.body, batch.headers, timeout)
            else:
                response = self.service.request("GET", url, None, batch.polling_headers, timeout)
        except urllib3.exceptions.DecodeError:
            raise ValueError("the body is not encoded as its Content-Encoding says") from None
        except urllib3.exceptions.NewConnectionError:
            return _REFUSED, b""
        except urllib3.exceptions.HTTPError:
            return 0, b""
        return response.status, response.data

    def _rejected(self, status: int, answer: bytes) -> ProgrammingError:
        text = answer[:500].decode(errors="replace")
        return self.batch.failure(100351, "22023", f"with remote service error: {status} '{text}'")

    def _timed_out(self, status: int) -> ProgrammingError:
        if status in (0, _REFUSED):
            message = "Remote service cannot be reached. Check the endpoint URL and try again."
            return self.batch.failure(100350, "P0000", message)
        return self.batch.failure(100351, "22023", f"with remote service error: {status} after all retries")

    def _cancelled(self) -> ProgrammingError:
        return self.batch.failure(604, "57014", "SQL execution canceled")


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
