"""The state of one query: its calls to external functions, their counts, and its error."""

import threading
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from snowflake.connector.errors import Error

from app.emulator.catalog import ExternalFunction


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
    error: Error | None = None
    is_over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, error: Error) -> None:
        """Keep the first error and end the query; later errors are its consequences."""
        self.error = self.error or error
        self.is_over.set()

    def count(self, **events: int) -> None:
        with self.lock:
            self.counts.update(events)

    def note_row_errors(self, codes: Iterable[str]) -> None:
        with self.lock:
            self.row_errors.update(codes)

    def next_batch_id(self) -> str:
        """An opaque id, which every attempt of the batch reuses."""
        with self.lock:
            self.counts["batches"] += 1
            return f"{self.id}:{self.counts['batches']}:0:0"

    def place_of(self, function: ExternalFunction) -> int:
        """The function's index in this query, the same for all its calls, so that DuckDB sees equal calls."""
        if function not in self.functions:
            self.functions.append(function)
        return self.functions.index(function)
