"""One queue of rows for all requests, and who is next in it.

Rows are taken of the smallest request and of the oldest one alternately: a single image waits behind a few
rows and not behind a batch of thousands, and that batch has half of the machine whatever comes after it.
Requests of one size are answered in the order in which they came.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import NamedTuple, TypeVar

from app.image_classifier import Fetched, StepSeconds
from app.outcome import Outcome

T = TypeVar("T")

# Decoding some and then predicting them is a tenth quicker than row by row, for the caches' sake; more at a
# time would let small requests wait.
MAX_ROWS_AT_ONCE = 4
# So few requests are not worth the tidying.
_LEAST_TIDIED = 64


class WaitingRow(NamedTuple):
    """An image that has arrived, and whether to show evidence for it."""

    image: Fetched
    evidence: bool


@dataclass(eq=False)
class AwaitedRows:
    """Rows of one request that are awaited together; threads answer them one by one."""

    answered: "asyncio.Future[list[Outcome | None]]"
    outcomes: list[Outcome | None]
    unanswered: int
    request: "QueuedRequest"

    def answer(self, place: int, outcome: Outcome | None, spent: StepSeconds) -> None:
        with self.request.lock:
            self.outcomes[place] = outcome
            self.request.seconds.decode += spent.decode
            self.request.seconds.predict += spent.predict
            self.unanswered -= 1
            complete = self.unanswered == 0
        if complete:
            self._on_loop(self.answered.set_result, self.outcomes)

    def fail(self, error: Exception) -> None:
        self._on_loop(self.answered.set_exception, error)

    def _on_loop(self, settle: Callable[[T], None], value: T) -> None:
        self.answered.get_loop().call_soon_threadsafe(self._if_awaited, settle, value)

    def _if_awaited(self, settle: Callable[[T], None], value: T) -> None:
        if not self.answered.done():  # cancelled, or failed already
            settle(value)


class QueuedRow(NamedTuple):
    """A row in its place, and who waits for its outcome."""

    row: WaitingRow
    place: int
    awaited: AwaitedRows


@dataclass(eq=False)
class QueuedRequest:
    """One request's place in the queue."""

    rows: int
    arrival: int
    put: Callable[["QueuedRequest", Sequence[QueuedRow]], None]
    waiting: deque[QueuedRow] = field(default_factory=deque)
    seconds: StepSeconds = field(default_factory=StepSeconds)
    lock: Lock = field(default_factory=Lock)

    def classify(self, rows: Sequence[WaitingRow]) -> "asyncio.Future[list[Outcome | None]]":
        """One outcome a row, in order, once threads have come to all of them."""
        answered: asyncio.Future[list[Outcome | None]] = asyncio.get_running_loop().create_future()
        awaited = AwaitedRows(answered, [None] * len(rows), len(rows), self)
        if not rows:
            answered.set_result([])
        self.put(self, [QueuedRow(row, place, awaited) for place, row in enumerate(rows)])
        return answered


class RowQueue:
    """Filled by requests on the event loop, emptied by so many threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.abandoned_rows = 0
        """Rows that were dropped, unclassified: whoever asked has left, or their request has failed."""
        self._lock = Lock()
        self._waiting = 0
        self._arrivals = count()
        self._lines = deque([_Line(lambda request: request.rows), _Line(lambda request: request.arrival)])
        # A stack: the thread that has just gone idle has the network and the code in its core's cache.
        self._idle: list[Lock] = []
        self._is_closed = False

    @contextmanager
    def request(self, rows: int) -> Iterator[QueuedRequest]:
        """A place for a request of so many rows; those that still wait at its end are dropped."""
        request = QueuedRequest(rows, next(self._arrivals), self._put)
        try:
            yield request
        finally:
            self._drop(request)

    def take(self) -> list[QueuedRow]:
        """The rows that are next, as soon as there are any; none once the queue is closed."""
        woken = Lock()
        while True:
            with self._lock:
                if self._is_closed:
                    return []
                if rows := self._next_rows():
                    return rows
                woken.acquire()
                self._idle.append(woken)
            with woken:  # which whoever puts rows releases
                pass

    def close(self) -> None:
        """Send the threads home. Whoever still waits then is not answered."""
        with self._lock:
            self._is_closed = True
        self._wake(self.threads)

    def _next_rows(self) -> list[QueuedRow]:
        """Few where few wait, so that all threads end together."""
        wanted = max(1, min(MAX_ROWS_AT_ONCE, self._waiting // (2 * self.threads)))
        rows: list[QueuedRow] = []
        while len(rows) < wanted and (request := self._next_request()):
            rows.append(request.waiting.popleft())
        self._waiting -= len(rows)
        return rows

    def _next_request(self) -> QueuedRequest | None:
        self._lines.rotate()
        return self._lines[0].first()

    def _put(self, request: QueuedRequest, rows: Sequence[QueuedRow]) -> None:
        with self._lock:
            self._waiting += len(rows)
            request.waiting.extend(rows)
            for line in self._lines if rows else ():
                line.enter(request)
        self._wake(len(rows))

    def _wake(self, threads: int) -> None:
        """So many, if so many are idle."""
        with self._lock:
            woken = [self._idle.pop() for _ in range(min(threads, len(self._idle)))]
        for thread in woken:
            thread.release()

    def _drop(self, request: QueuedRequest) -> None:
        with self._lock:
            self.abandoned_rows += len(request.waiting)
            self._waiting -= len(request.waiting)
            request.waiting.clear()
            for line in self._lines:
                line.tidy()


class _Line:
    """Requests by rank, the lowest first; one with nothing waiting leaves when it comes to the front."""

    def __init__(self, rank: Callable[[QueuedRequest], int]) -> None:
        self._rank = rank
        self._heap: list[tuple[int, int, QueuedRequest]] = []
        self._arrivals: set[int] = set()
        self._tidy_at = _LEAST_TIDIED

    def enter(self, request: QueuedRequest) -> None:
        if request.arrival not in self._arrivals:
            self._arrivals.add(request.arrival)
            heapq.heappush(self._heap, (self._rank(request), request.arrival, request))

    def first(self) -> QueuedRequest | None:
        while self._heap and not self._heap[0][-1].waiting:
            self._arrivals.discard(heapq.heappop(self._heap)[1])
        return self._heap[0][-1] if self._heap else None

    def tidy(self) -> None:
        """Forget those with nothing waiting who never come to the front, once they may be the most."""
        if len(self._heap) < self._tidy_at:
            return
        self._heap = [entry for entry in self._heap if entry[-1].waiting]
        heapq.heapify(self._heap)
        self._arrivals = {arrival for _, arrival, _ in self._heap}
        self._tidy_at = max(_LEAST_TIDIED, 2 * len(self._heap))
