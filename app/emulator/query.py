"""A query: its calls to external functions, their counts, its error, and the result of a statement."""

import threading
import uuid
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from snowflake.connector.errors import Error

from app.emulator.catalog import ExternalFunction, Name, StagedFile
from app.emulator.errors import unsupported

MAX_FINISHED_QUERIES = 1000
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Answer:
    """The result of a statement; `types` maps each column that is not text to its Arrow type."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    types: dict[str, Any] = field(default_factory=dict)


def status(text: str = "Statement executed successfully.") -> Answer:
    return Answer(["status"], [[text]])


@dataclass
class Query:
    """`id` is the query id that the client, the request headers and the service's log share.

    `error` is the error that ended the query; DuckDB would pass on only its text. `is_over` is set when the
    query fails or is cancelled: no request is sent after that.
    """

    context: dict[str, str]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    functions: list[ExternalFunction] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    row_errors: Counter[str] = field(default_factory=Counter)
    """Number of answered rows with an error, by error code."""
    answers: dict[tuple[int, str], "Future[str | None]"] = field(default_factory=dict)
    """The answer to each row of arguments, by the function's index and the row."""
    kinds: dict[int, str] = field(default_factory=dict)
    """The type of the VARIANT values in each comparison."""
    streams: dict[Name, tuple[StagedFile, ...]] = field(default_factory=dict)
    """The new offset of each stream that the statement reads, if it consumes them."""
    models: set[str] = field(default_factory=set)
    """Name and version of each network that answered a row."""
    error: Error | None = None
    is_over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, error: Error) -> None:
        """Keep the first error and end the query; later errors are its consequences."""
        self.error = self.error or error
        self.is_over.set()

    def answer(self, key: tuple[int, str]) -> str | None:
        """The answer to a row, which another thread may have sent. Raises the error that ended the query."""
        while not self.is_over.is_set():
            with suppress(TimeoutError):
                return self.answers[key].result(_POLL_SECONDS)
        raise self.error or unsupported("a cancelled query")

    def count(self, **events: int) -> None:
        with self.lock:
            self.counts.update(events)

    def count_outcomes(self, outcomes: Iterable[dict[str, Any]]) -> None:
        """Count the errors of our service's outcomes and note their networks."""
        with self.lock:
            for outcome in outcomes:
                match outcome.get("error"):
                    case {"code": str(code)}:
                        self.row_errors[code] += 1
                match outcome.get("model"):
                    case {"name": str(name), "version": str(version)}:
                        self.models.add(f"{name} {version}")

    def next_batch_id(self) -> str:
        """An opaque id, which every attempt of the batch reuses."""
        with self.lock:
            self.counts["batches"] += 1
            return f"{self.id}:{self.counts['batches']}:0:0"

    def index_of(self, function: ExternalFunction) -> int:
        """The function's index in this query, the same for all its calls, so that DuckDB sees equal calls."""
        if function not in self.functions:
            self.functions.append(function)
        return self.functions.index(function)


class Queries:
    """The running queries, and the latest finished ones with their results. Thread-safe."""

    def __init__(self, results: dict[str, tuple[Any, ...]]) -> None:
        """`results` maps query ids to results; fakesnow adds them."""
        self.results = results
        self.running: dict[str, Query] = {}
        self.finished: OrderedDict[str, Query] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, query: Query) -> None:
        with self._lock:
            self.running[query.id] = query

    def finish(self, query: Query) -> None:
        """Keep the counts and the result of a finished query; evict the oldest ones."""
        query.answers.clear()
        with self._lock:
            self.finished[query.id] = self.running.pop(query.id)
            while len(self.finished) > MAX_FINISHED_QUERIES:
                self.finished.popitem(last=False)
            while len(self.results) > MAX_FINISHED_QUERIES:
                del self.results[next(iter(self.results))]

    def cancel(self) -> None:
        """Cancel the running queries."""
        for query in list(self.running.values()):
            query.is_over.set()
