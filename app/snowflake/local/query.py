"""One query's account of its external calls, from its start to its answer."""

import threading
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from snowflake.connector.errors import Error

from app.snowflake.local.catalog import ExternalFunction


@dataclass
class Query:
    """`id` is what the client, the service's log and the headers all know it by.

    `error` is what ended it, which DuckDB would pass on as no more than a text; from then on, or once it has
    been cancelled, `is_over` is set and nothing more is sent.
    """

    context: dict[str, str]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    functions: list[ExternalFunction] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    row_errors: Counter[str] = field(default_factory=Counter)
    """By code: of rows that were answered, and with an error of their own."""
    error: Error | None = None
    is_over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, error: Error) -> None:
        """The first error is the one to tell of; what follows from it is not."""
        self.error = self.error or error
        self.is_over.set()

    def count(self, **events: int) -> None:
        with self.lock:
            self.counts.update(events)

    def note_row_errors(self, codes: Iterable[str]) -> None:
        with self.lock:
            self.row_errors.update(codes)

    def next_batch_id(self) -> str:
        """Opaque, and the same for every repetition of a batch."""
        with self.lock:
            self.counts["batches"] += 1
            return f"{self.id}:{self.counts['batches']}:0:0"

    def place_of(self, function: ExternalFunction) -> int:
        """Its number in this query: alike for all its calls, so that DuckDB knows them to be alike."""
        if function not in self.functions:
            self.functions.append(function)
        return self.functions.index(function)
