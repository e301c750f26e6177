"""One queue of rows for all requests, and who is next in it. All of it happens on the event loop.

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
from time import monotonic
from typing import NamedTuple

from app.capacity import Capacity
from app.classifiers.frames import WaitingRow
from app.outcome import Outcome
from app.steps import Steps
from app.summary import ImageStatistics

# One by one is slower, for each call wakes a process and the event loop and reads a network's dense end.
MAX_ROWS_AT_ONCE = 8
# A small request waits for the calls that are out, so large ones have short calls while small ones come.
ROWS_AT_ONCE_BESIDE_SMALL = 1
SMALL_REMEMBERED_SECONDS = 1.0
# Images of so many bytes take long enough for a call, and memory enough.
MAX_BYTES_AT_ONCE = 1024 * 1024
# Requests of up to so many are small.
FEW_ROWS = 4
# So few requests are not worth the tidying.
_LEAST_TIDIED = 64
# Requests are told apart by the power of two that they have rows of.
_SIZES = 64


@dataclass(eq=False)
class AwaitedRows:
    """Rows of one request that are awaited together, and answered one by one."""

    answered: "asyncio.Future[list[Outcome | None]]"
    outcomes: list[Outcome | None]
    unanswered: int
    request: "QueuedRequest"

    @property
    def is_over(self) -> bool:
        """All are answered, one has failed, or whoever asked has left."""
        return self.answered.done()

    def answer(self, place: int, outcome: Outcome | None) -> None:
        self.outcomes[place] = outcome
        self.request.note_answered(1)
        self.unanswered -= 1
        if self.unanswered == 0 and not self.is_over:
            self.answered.set_result(self.outcomes)

    def fail(self, error: Exception) -> None:
        if not self.is_over:
            self.answered.set_exception(error)


class QueuedRow(NamedTuple):
    """A row in its place, and who waits for its outcome."""

    row: WaitingRow
    place: int
    awaited: AwaitedRows
    deaths: int = 0
    """Processes that died over it."""


@dataclass(eq=False)
class QueuedRequest:
    """One request's place in the queue."""

    rows: int
    arrival: int
    queue: "RowQueue"
    waiting: deque[QueuedRow] = field(default_factory=deque)
    steps: Steps = field(default_factory=Steps)
    statistics: list[ImageStatistics] = field(default_factory=list)
    """Of its images, in whatever order they were answered."""

    def __post_init__(self) -> None:
        self._unanswered = self.rows

    def note_answered(self, rows: int) -> None:
        """Their outcomes are known, or awaited no more."""
        rows = min(rows, self._unanswered)  # a process may still be at one when the request has ended
        self._unanswered -= rows
        self.queue.note_answered(self, rows)

    def classify(self, rows: Sequence[WaitingRow]) -> "asyncio.Future[list[Outcome | None]]":
        """One outcome a row, in order, once all of them have been classified."""
        answered: asyncio.Future[list[Outcome | None]] = asyncio.get_running_loop().create_future()
        awaited = AwaitedRows(answered, [None] * len(rows), len(rows), self)
        if not rows:
            answered.set_result([])
        self.queue.put(self, [QueuedRow(row, place, awaited) for place, row in enumerate(rows)])
        return answered


class RowQueue:
    """Filled by requests, emptied by classifier processes."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.abandoned_rows = 0
        """Rows that were dropped, unclassified: whoever asked has left, or their request has failed."""
        self.on_put: Callable[[], None] = lambda: None
        """Called when there are more rows."""
        self._unanswered = [0] * _SIZES
        self._waiting = 0
        self._small_came_at = -SMALL_REMEMBERED_SECONDS
        self._arrivals = count()
        self._lines = deque([_Line(lambda request: request.rows), _Line(lambda request: request.arrival)])

    @contextmanager
    def request(self, rows: int) -> Iterator[QueuedRequest]:
        """A place for a request of so many rows; those that still wait at its end are dropped."""
        request = QueuedRequest(rows, next(self._arrivals), self)
        self._unanswered[rows.bit_length()] += rows
        self._note_small(rows)
        try:
            yield request
        finally:
            request.note_answered(rows)
            self._drop(request)

    def wait_seconds(self, rows: int) -> float:
        """How long a request of so many would wait for its first, should it come now.

        For all who are here, or those of its size and below twice, as it takes turns with the oldest.
        """
        before = sum(self._unanswered[: rows.bit_length() + 1])
        return min(2 * before, sum(self._unanswered)) * self.capacity.row_seconds

    def note_answered(self, request: QueuedRequest, rows: int) -> None:
        self._unanswered[request.rows.bit_length()] -= rows

    @property
    def unanswered_rows(self) -> int:
        """Of all requests, those that are still to be fetched among them."""
        return sum(self._unanswered)

    def next_rows(self) -> list[QueuedRow]:
        """The rows that are next, few where few wait, so that all processes end together."""
        wanted = max(1, min(self._most_rows_at_once(), self._waiting // (2 * self.capacity.classifiers)))
        rows: list[QueuedRow] = []
        size_bytes = 0
        while len(rows) < wanted and size_bytes < MAX_BYTES_AT_ONCE and (request := self._next_request()):
            rows.append(request.waiting.popleft())
            size_bytes += rows[-1].row.size_bytes
        self._waiting -= len(rows)
        return rows

    def _most_rows_at_once(self) -> int:
        large = any(self._unanswered[FEW_ROWS.bit_length() + 1 :])
        small = monotonic() - self._small_came_at < SMALL_REMEMBERED_SECONDS
        return ROWS_AT_ONCE_BESIDE_SMALL if large and small else MAX_ROWS_AT_ONCE

    def put(self, request: QueuedRequest, rows: Sequence[QueuedRow]) -> None:
        self._waiting += len(rows)
        self._note_small(request.rows)
        request.waiting.extend(rows)
        for line in self._lines if rows else ():
            line.enter(request)
        self.on_put()

    def _note_small(self, rows: int) -> None:
        """That there is one, for it may come again, or still has images to fetch."""
        if rows <= FEW_ROWS:
            self._small_came_at = monotonic()

    def _next_request(self) -> QueuedRequest | None:
        self._lines.rotate()
        return self._lines[0].first()

    def _drop(self, request: QueuedRequest) -> None:
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
