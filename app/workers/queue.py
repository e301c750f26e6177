"""One queue of rows for all requests, and who is next in it. All of it happens on the event loop.

Rows are taken of the smallest request and of the oldest one alternately: a single image waits behind a few
rows and not behind a batch of thousands, and that batch has half of the machine whatever comes after it.
Requests of one size are answered in the order in which they came.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import NamedTuple

from app.errors import Overloaded
from app.outcome import ImageStatistics, Outcome, Steps
from app.workers.capacity import Capacity
from app.workers.protocol import WaitingRow
from app.workers.turns import Overdue, RequestLine

# Requests are grouped by the power of two of their number of rows.
_SIZES = 64


class RowsBySize:
    """`request_rows` is the size of a request, `rows` says how many of its rows are meant."""

    def __init__(self) -> None:
        self._rows = [0] * _SIZES

    def add(self, request_rows: int, rows: int) -> None:
        """Or subtract, where `rows` is negative."""
        self._rows[request_rows.bit_length()] += rows

    @property
    def total(self) -> int:
        return sum(self._rows)

    def before(self, request_rows: int) -> int:
        """Rows that are served before the first row of one more request.

        All rows, or those of requests of its size and below twice, because it takes turns with the oldest.
        """
        return min(2 * sum(self._rows[: request_rows.bit_length() + 1]), self.total)

    def has_larger(self, request_rows: int) -> bool:
        """Whether there are rows of a request of a larger size."""
        return any(self._rows[request_rows.bit_length() + 1 :])


@dataclass(eq=False)
class AwaitedRows:
    """Rows of one request that are awaited together, and answered one by one."""

    answered: "asyncio.Future[list[Outcome | None]]"
    outcomes: list[Outcome | None]
    unanswered: int
    request: "QueuedRequest"
    on_answered: Callable[[int, Outcome | None], None]
    """Called with each row's place and outcome; raises Overloaded where there is no room for it."""
    answered_places: set[int] = field(default_factory=set)

    @property
    def is_over(self) -> bool:
        """All rows are answered, one has failed, or the client has disconnected."""
        return self.answered.done()

    def answer(self, place: int, outcome: Outcome | None) -> bool:
        """False for a row that another process has answered before."""
        if place in self.answered_places:
            return False
        self.answered_places.add(place)
        self.outcomes[place] = outcome
        try:
            self.on_answered(place, outcome)
        except Overloaded as error:
            self.fail(error)
        self.request.note_classified()
        self.unanswered -= 1
        if self.unanswered == 0 and not self.is_over:
            self.answered.set_result(self.outcomes)
        return True

    def fail(self, error: Exception) -> None:
        if not self.is_over:
            self.answered.set_exception(error)


# One by one is slower, for each call wakes a process and the event loop and reads a network's dense end.
MAX_ROWS_AT_ONCE = 8
# A small request waits for the calls that are out, so large ones have short calls while small ones come.
ROWS_AT_ONCE_BESIDE_SMALL = 1
# Rows that a process has been given wait behind each other, and can no longer be refused.
MAX_CALL_SECONDS = 0.2
SMALL_REMEMBERED_SECONDS = 1.0
# Images of so many bytes take long enough for a call, and memory enough.
MAX_BYTES_AT_ONCE = 1024 * 1024
# Requests of up to so many are small.
FEW_ROWS = 4


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
    unfetched_rows: int
    arrival: int
    queue: "RowQueue"
    waiting: deque[QueuedRow] = field(default_factory=deque)
    steps: Steps = field(default_factory=Steps)
    statistics: list[ImageStatistics] = field(default_factory=list)
    """Of its images, in whatever order they were answered."""
    is_begun: bool = False
    """A process has been given one of its rows, or the request has ended."""
    is_costly: bool = False
    """One of its rows has proved slow."""

    def __post_init__(self) -> None:
        self._unanswered = self.rows

    @property
    def is_small(self) -> bool:
        return self.rows <= FEW_ROWS and not self.is_costly

    def fail(self, error: Exception) -> None:
        """For a request of which a row waits."""
        self.waiting[0].awaited.fail(error)

    def note_answered(self, rows: int) -> None:
        """Their outcomes are known, or awaited no more."""
        rows = min(rows, self._unanswered)  # a process may still be at one when the request has ended
        self._unanswered -= rows
        self.queue.note_answered(self, rows)

    def note_classified(self) -> None:
        """One more row."""
        self.note_answered(1)
        self.queue.overdue[self.rows <= FEW_ROWS].note_served(1)

    def note_fetched(self, rows: int) -> None:
        """Their images are there, or will not come."""
        self.unfetched_rows -= rows
        self.queue.note_fetched(self, rows)

    def classify(
        self,
        rows: Sequence[WaitingRow],
        on_answered: Callable[[int, Outcome | None], None] = lambda *_: None,
    ) -> "asyncio.Future[list[Outcome | None]]":
        """One outcome a row, in order, once all of them have been classified."""
        answered: asyncio.Future[list[Outcome | None]] = asyncio.get_running_loop().create_future()
        awaited = AwaitedRows(answered, [None] * len(rows), len(rows), self, on_answered)
        if not rows:
            answered.set_result([])
        self.queue.put(self, [QueuedRow(row, place, awaited) for place, row in enumerate(rows)])
        return answered


class RowQueue:
    """Filled by requests, emptied by classifier processes."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.abandoned_rows = 0
        """Rows dropped without being classified: their client disconnected, or their request failed."""
        self.on_put: Callable[[], None] = lambda: None
        """Called when there are more rows."""
        self.on_look: Callable[[], None] = lambda: None
        """Called several times a second while rows are being classified."""
        self.overdue = (Overdue[QueuedRequest](), Overdue[QueuedRequest]())
        """Requests of more than FEW_ROWS rows, and of at most as many, whose first row waits."""
        self._unfetched = RowsBySize()
        self._unclassified = RowsBySize()
        """Rows whose image has arrived, and that are not answered yet."""
        self._waiting = 0
        self._small_came_at = -SMALL_REMEMBERED_SECONDS
        self._arrivals = count()
        self._lines = deque([RequestLine(_rows, _has_waiting), RequestLine(_arrival, _has_waiting)])
        self._small = RequestLine(_arrival, lambda request: _has_waiting(request) and request.is_small)

    @contextmanager
    def request(self, rows: int, unfetched_rows: int = 0) -> Iterator[QueuedRequest]:
        """A place for a request of so many rows; those that still wait at its end are dropped.

        Of tasks that fail together, it raises what the first of them has raised.
        """
        request = QueuedRequest(rows, unfetched_rows, next(self._arrivals), self)
        self._unfetched.add(rows, unfetched_rows)
        self._unclassified.add(rows, rows - unfetched_rows)
        self._note_small(rows)
        try:
            yield request
        except ExceptionGroup as group:
            raise _first_of(group) from group
        finally:
            request.note_fetched(request.unfetched_rows)
            request.note_answered(rows)
            self._drop(request)

    def wait_seconds(self, rows: int, unfetched_rows: int = 0) -> float:
        """How long a request of so many would wait for its first, should it come now.

        A request whose images are all there does not wait for the images of others to be fetched.
        """
        wait_seconds = self._unclassified.before(rows) * self.capacity.classified_row_seconds
        if not unfetched_rows:
            return wait_seconds
        return max(wait_seconds, self._unfetched.before(rows) * self.capacity.fetched_row_seconds)

    def note_answered(self, request: QueuedRequest, rows: int) -> None:
        self._unclassified.add(request.rows, -rows)

    def note_fetched(self, request: QueuedRequest, rows: int) -> None:
        self._unfetched.add(request.rows, -rows)
        self._unclassified.add(request.rows, rows)

    @property
    def unanswered_rows(self) -> int:
        """Of all requests, those that are still to be fetched among them."""
        return self._unfetched.total + self._unclassified.total

    def next_rows(self) -> list[QueuedRow]:
        """The rows that are next, few where few wait, so that all processes end together."""
        wanted = max(1, min(self._most_rows_at_once(), self._waiting // (2 * self.capacity.classifiers)))
        rows: list[QueuedRow] = []
        size_bytes = 0
        while len(rows) < wanted and size_bytes < MAX_BYTES_AT_ONCE and (request := self._next_request()):
            rows.append(request.waiting.popleft())
            self._note_begun(request)
            size_bytes += rows[-1].row.size_bytes
        self._waiting -= len(rows)
        return rows

    @property
    def has_small_waiting(self) -> bool:
        return self._small.first() is not None

    @property
    def has_small_lately(self) -> bool:
        """More may come."""
        return monotonic() - self._small_came_at < SMALL_REMEMBERED_SECONDS

    def next_small_rows(self) -> list[QueuedRow]:
        """Of one small request that waits, the oldest."""
        request = self._small.first()
        if request is None:
            return []
        rows = list(request.waiting)
        request.waiting.clear()
        self._note_begun(request)
        self._waiting -= len(rows)
        return rows

    def fail_waiting(self, error: Exception) -> None:
        """All requests with rows that wait; the rows are dropped when their requests end."""
        for request in self._lines[0].all():
            request.fail(error)

    def _most_rows_at_once(self) -> int:
        has_large = self._unfetched.has_larger(FEW_ROWS) or self._unclassified.has_larger(FEW_ROWS)
        if has_large and self.has_small_lately:
            return ROWS_AT_ONCE_BESIDE_SMALL
        return min(MAX_ROWS_AT_ONCE, int(MAX_CALL_SECONDS / max(self.capacity.classify_seconds, 1e-9)))

    def put(self, request: QueuedRequest, rows: Sequence[QueuedRow]) -> None:
        self._waiting += len(rows)
        self._note_small(request.rows)
        request.waiting.extend(rows)
        if rows:
            if not request.is_begun:
                self.overdue[request.rows <= FEW_ROWS].enter(request)
            for line in self._lines:
                line.enter(request)
            if request.is_small:
                self._small.enter(request)
        self.on_put()

    def _note_begun(self, request: QueuedRequest) -> None:
        if not request.is_begun:
            request.is_begun = True
            self.overdue[request.rows <= FEW_ROWS].leave(request)

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
        self._note_begun(request)
        for line in (*self._lines, self._small):
            line.tidy()


def _first_of(group: ExceptionGroup[Exception]) -> Exception:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first


def _rows(request: QueuedRequest) -> int:
    return request.rows


def _arrival(request: QueuedRequest) -> int:
    return request.arrival


def _has_waiting(request: QueuedRequest) -> bool:
    return bool(request.waiting)
