"""Calls external functions over HTTP as Snowflake does: batches, headers, retries, polling, checks.

Source: Snowflake documentation, "Remote service input and output data formats", "Remote service
implementation" and CREATE EXTERNAL FUNCTION. The error messages are Snowflake's, as quoted by its users.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

import urllib3
from snowflake.connector.errors import Error, ProgrammingError

from app.emulator.catalog import ExternalFunction
from app.emulator.chaos import Accident, Chaos
from app.emulator.headers import compress, headers_of, without_body
from app.emulator.query import Query
from app.emulator.refusals import unsupported

# Default of MAX_BATCH_ROWS. Snowflake estimates a size for each query; this is the largest one observed.
DEFAULT_BATCH_ROWS = 4096
MAX_RESPONSE_BYTES = 10_000_000
CONCURRENT_BATCHES = 8
# Snowflake documents the polling limit, but neither how long it retries nor how long a request may take.
RETRY_SECONDS = 60.0
REQUEST_SECONDS = 30.0
POLLING_SECONDS = 600.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


class RemoteService:
    """The HTTP client for external functions. Thread-safe."""

    def __init__(self, chaos: Chaos | None = None, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self.retry_seconds = retry_seconds
        self._http = urllib3.PoolManager(maxsize=CONCURRENT_BATCHES, block=False, retries=False)
        self._threads = ThreadPoolExecutor(CONCURRENT_BATCHES, "batches")
        self._chaos = chaos

    def call(
        self, function: ExternalFunction, rows: Sequence[Sequence[Any]], query: Query
    ) -> list[str | None]:
        """The value of each row as JSON, in order. Raises ProgrammingError with Snowflake's error numbers.

        The first batch that fails cancels the others.
        """
        size = function.max_batch_rows or DEFAULT_BATCH_ROWS
        starts = range(0, len(rows), size)
        order, accidents = self._plan(len(starts))
        batches = [
            _Batch(self, function, query, rows[start : start + size], accident)
            for start, accident in zip(starts, accidents, strict=True)
        ]
        calls = {place: self._threads.submit(batches[place].run) for place in order}
        _wait_for_all(list(calls.values()), query)
        return [value for place in range(len(batches)) for value in calls[place].result()]

    def request(self, method: str, url: str, body: bytes | None, headers: dict[str, str]) -> Any:
        return self._http.request(
            method, url, body=body, headers=headers, timeout=REQUEST_SECONDS, redirect=False
        )

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)  # a response may take minutes
        self._http.clear()

    def _plan(self, count: int) -> tuple[Sequence[int], Sequence[Accident]]:
        return self._chaos.plan(count) if self._chaos else (range(count), [Accident()] * count)


def _wait_for_all(calls: Sequence["Future[list[str | None]]"], query: Query) -> None:
    """Raises the exception of the first call that fails, and cancels the others."""
    finished, pending = wait(calls, return_when=FIRST_EXCEPTION)
    error = next((error for call in finished if (error := call.exception())), None)
    if error is not None:
        query.fail(error if isinstance(error, Error) else unsupported(repr(error)))
        for call in pending:
            call.cancel()
        raise error


class _Batch:
    """One batch. Every attempt sends the same id and the same bytes."""

    def __init__(
        self,
        service: RemoteService,
        function: ExternalFunction,
        query: Query,
        rows: Sequence[Sequence[Any]],
        accident: Accident,
    ) -> None:
        self._query = query
        self._service = service
        self._function = function
        self._accident = accident
        self._id = query.next_batch_id()
        self._rows = len(rows)
        document = {"data": [[number, *values] for number, values in enumerate(rows)]}
        self._body, encoding = compress(
            json.dumps(document, ensure_ascii=False, allow_nan=False).encode(),
            function.options.get("COMPRESSION", "AUTO"),
        )
        self._headers = {**headers_of(function, query, self._id), **encoding}

    def run(self) -> list[str | None]:
        if self._query.is_over.is_set():
            raise self._failure(604, "57014", "SQL execution canceled")
        self._query.count(rows=self._rows)
        try:
            values = self._values(self._accident.apply(self._send))
        except (ValueError, RecursionError) as error:
            raise self._failure(100287, "22P02", f"Error parsing JSON response: {error}") from None
        if self._accident.kind != "none":
            self._query.count(**{self._accident.kind: 1})
        self._query.note_row_errors(filter(None, map(_error_code, values)))
        return values

    def _send(self) -> bytes:
        """Send the batch, retry and poll; return the body of the 200 response."""
        pauses = _pauses()
        deadline = time.monotonic() + self._service.retry_seconds
        method, body = "POST", self._body
        while True:
            status, answer = self._request(method, body)
            if status == 200:
                return answer
            if status == 202:
                if method == "POST":
                    method, body, deadline = "GET", b"", time.monotonic() + POLLING_SECONDS
                self._query.count(polls=1)
            elif status not in (0, 429) and (status < 500 or method == "GET"):
                text = answer[:500].decode(errors="replace")
                raise self._failure(100351, "22023", f"with remote service error: {status} '{text}'")
            else:
                self._query.count(retries=1)
            if time.monotonic() >= deadline:
                raise self._timed_out(status)
            if self._query.is_over.wait(min(next(pauses), max(0.0, deadline - time.monotonic()))):
                raise self._failure(604, "57014", "SQL execution canceled")

    def _request(self, method: str, body: bytes) -> tuple[int, bytes]:
        """Status and body; status 0 without a response. Raises ValueError if the body cannot be decoded."""
        self._query.count(requests=1)
        headers = self._headers if method == "POST" else without_body(self._headers)
        try:
            response = self._service.request(method, self._function.url, body or None, headers)
        except urllib3.exceptions.DecodeError:
            raise ValueError("the body is not encoded as its Content-Encoding says") from None
        except urllib3.exceptions.HTTPError:
            return 0, b""
        return response.status, response.data

    def _values(self, answer: bytes) -> list[str | None]:
        """The values as JSON. Raises ValueError if it is not JSON, ProgrammingError for other faults."""
        if len(answer) > MAX_RESPONSE_BYTES:
            raise self._failure(100351, "22023", f"with a response of more than {MAX_RESPONSE_BYTES} bytes")
        document = json.loads(answer, parse_constant=_refuse_constant, parse_float=_finite)
        rows = document.get("data") if isinstance(document, dict) else None
        if not isinstance(rows, list):
            raise ValueError('top-level JSON object must contain "data" JSON array element')  # noqa: TRY004
        for index, row in enumerate(rows):
            elements = len(row) if isinstance(row, list) else 0
            if elements != 2:
                raise ValueError(f"index {index} contains {elements} elements, but 2 elements are expected")
        if len(rows) != self._rows:
            raise self._failure(
                100352,
                "22023",
                f"Function received the wrong number of rows, expected {self._rows}, got {len(rows)}",
            )
        if any(type(row[0]) is not int or row[0] != index for index, row in enumerate(rows)):
            raise self._failure(100353, "22023", "Row numbers out of order")
        return [None if value is None else _to_json(value) for _, value in rows]

    def _timed_out(self, status: int) -> ProgrammingError:
        if status == 0:
            message = "Remote service cannot be reached. Check the endpoint URL and try again."
            return self._failure(100350, "P0000", message)
        return self._failure(100351, "22023", f"with remote service error: {status} after all retries")

    def _failure(self, number: int, sql_state: str, message: str) -> ProgrammingError:
        name = ".".join(self._function.name)
        return ProgrammingError(
            msg=f"Request failed for external function {name}, request batch id {self._id}: {message}",
            errno=number,
            sqlstate=sql_state,
        )


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def _finite(digits: str) -> float:
    """Raises ValueError for a number such as 1e999, which Python reads as infinity."""
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:20]} is out of range")
    return value


def _to_json(value: Any) -> str:
    """Raises ValueError for a lone surrogate, which JSON can escape but UTF-8 cannot encode."""
    text = json.dumps(value, ensure_ascii=False)
    text.encode()
    return text


def _error_code(value: str | None) -> str | None:
    """The error code of an outcome of our service; None for any other value."""
    if value is None or '"error"' not in value:
        return None
    outcome = json.loads(value)
    error = outcome.get("error") if isinstance(outcome, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else None
