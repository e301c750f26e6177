"""The queue of rows of all requests, on the event loop: which rows are next, and how long a request waits.

Callers take turns, a row each, so that none can starve another. Without authentication, all requests have one
caller. Of a caller, rows are taken alternately from the smallest request and from the oldest one: a single
image waits behind a few rows and not behind a batch of thousands, and that batch has half of the caller's
turns whatever arrives later. Requests of one size are answered in the order of their arrival.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import NamedTuple, Self

from app.errors import Overloaded
from app.outcome import ImageStatistics, Outcome, Steps
from app.workers.protocol import WaitingRow

# Calls of fewer rows are slower: each wakes a process, whose caches are cold by then, and the event loop, and
# reads a network's dense layers.
MAX_ROWS_PER_CALL = 32
# A small request waits for the running calls, so large requests have short ones while small requests arrive.
MAX_ROWS_PER_CALL_BESIDE_SMALL = 1
# The first small request waits for two calls, and the service cannot shed rows that it has sent.
MAX_CALL_SECONDS = 0.05
# Images of this size together take enough time and memory for a call.
MAX_BYTES_PER_CALL = 1024 * 1024
RECENT_SECONDS = 1.0
# A request of at most this number of rows is small.
FEW_ROWS = 4


class RowQueue:
    """Requests put rows; classifier processes take them."""

    def __init__(self, capacity: "Capacity") -> None:
        self.capacity = capacity
        self.abandoned_rows = 0
        """Rows dropped without being classified: their client disconnected, or their request failed."""
        self.on_put: Callable[[], None] = lambda: None
        self.on_check: Callable[[], None] = lambda: None
        """Called several times a second while rows are being classified."""
        self.waiting_rows = 0
        self._small_arrived_at = -RECENT_SECONDS
        self._arrivals = count()
        self._lanes: dict[str | None, _Lane] = {}
        """By caller; those without requests are removed when another caller arrives."""
        self._turns: deque[_Lane] = deque()
        """Lanes with waiting rows, the next first. Those that have run empty are removed lazily."""

    def request(self, rows: int, unfetched_rows: int = 0, caller: str | None = None) -> "QueuedRequest":
        """A request with this number of rows: a context that must be entered."""
        lane = self._lane_of(caller)
        request = QueuedRequest(rows, unfetched_rows, next(self._arrivals), self, lane)
        lane.requests += 1
        if unfetched_rows:
            lane.unfetched.add(rows, unfetched_rows)
        lane.unclassified.add(rows, rows - unfetched_rows)
        self._track_small(rows)
        return request

    def end(self, request: "QueuedRequest") -> None:
        """Drop the rows of a request that still wait."""
        request.mark_fetched(request.unfetched_rows)
        request.mark_answered(request.rows)
        self.abandoned_rows += len(request.waiting)
        self.waiting_rows -= len(request.waiting)
        request.waiting.clear()
        request.mark_started()
        request.lane.prune()
        request.lane.requests -= 1

    def put(self, request: "QueuedRequest", rows: "Sequence[QueuedRow]") -> None:
        self.waiting_rows += len(rows)
        self._track_small(request.rows)
        request.waiting.extend(rows)
        if rows:
            request.lane.push(request)
            if not request.lane.has_turn:
                request.lane.has_turn = True
                self._turns.append(request.lane)
        self.on_put()

    def next_rows(self) -> "list[QueuedRow]":
        """The rows of the next call: few where few wait, so that all processes end together."""
        share = 1 + self.waiting_rows // (2 * self.capacity.classifiers)
        wanted = max(1, min(self._max_rows(), share))
        rows: list[QueuedRow] = []
        size_bytes = 0
        while len(rows) < wanted and size_bytes < MAX_BYTES_PER_CALL and (request := self._next_request()):
            rows.append(request.waiting.popleft())
            request.mark_started()
            size_bytes += rows[-1].row.size_bytes
        self.waiting_rows -= len(rows)
        return rows

    def next_small_rows(self) -> "list[QueuedRow]":
        """The rows of the oldest small request that waits, of the next caller that has one."""
        for lane in self._turns:
            if (request := lane.small.first()) is not None:
                break
        else:
            return []
        self._turns.remove(lane)
        self._turns.append(lane)
        rows = list(request.waiting)
        request.waiting.clear()
        request.mark_started()
        self.waiting_rows -= len(rows)
        return rows

    def fail_waiting(self, error: Exception) -> None:
        """Fail all requests with waiting rows; they drop their rows when they end."""
        for lane in self._lanes.values():
            for request in lane.waiting_requests():
                request.fail(error)

    def wait_seconds(self, rows: int, unfetched_rows: int = 0, caller: str | None = None) -> float:
        """How long the first row of a new request of this size would wait, 0 without rows of its caller.

        A request without rows to fetch does not wait for the images of others to be fetched. One with such
        rows does, and also until they are classified: only so many fetched images are held at a time.
        """
        unclassified = self._rows_before(rows, caller, lambda lane: lane.unclassified)
        if not unfetched_rows:
            return unclassified * self.capacity.classified_row_seconds
        unfetched = self._rows_before(rows, caller, lambda lane: lane.unfetched)
        return max(
            (unclassified + unfetched) * self.capacity.classified_row_seconds,
            unfetched * self.capacity.fetched_row_seconds,
        )

    def longest_wait_seconds(self, rows: int, caller: str | None = None) -> float:
        """Of the caller's requests that wait now, the small or the large ones."""
        lane = self._lanes.get(caller)
        return 0.0 if lane is None else lane.shedder(rows).longest_wait_seconds

    def shed(self, rows: int, max_wait_seconds: float, error: "Callable[[QueuedRequest], Exception]") -> None:
        """`LoadShedder.shed` for the small or the large requests of each caller."""
        for lane in self._lanes.values():
            lane.shedder(rows).shed(max_wait_seconds, error)

    @property
    def unanswered_rows(self) -> int:
        """Rows of all requests, including rows to fetch."""
        return sum(lane.unfetched.total + lane.unclassified.total for lane in self._lanes.values())

    @property
    def has_small_waiting(self) -> bool:
        return any(lane.small.first() is not None for lane in self._turns)

    @property
    def had_small_recently(self) -> bool:
        """Whether more small requests are likely to follow."""
        return monotonic() - self._small_arrived_at < RECENT_SECONDS

    def _max_rows(self) -> int:
        if self.had_small_recently and any(lane.has_large for lane in self._lanes.values()):
            return MAX_ROWS_PER_CALL_BESIDE_SMALL
        return min(MAX_ROWS_PER_CALL, int(MAX_CALL_SECONDS / max(self.capacity.classify_seconds, 1e-9)))

    def _next_request(self) -> "QueuedRequest | None":
        while self._turns:
            lane = self._turns.popleft()
            if (request := lane.next_request()) is not None:
                self._turns.append(lane)
                return request
            lane.has_turn = False
        return None

    def _lane_of(self, caller: str | None) -> "_Lane":
        if caller not in self._lanes:
            self._lanes = {name: lane for name, lane in self._lanes.items() if lane.requests}
            self._lanes[caller] = _Lane()
        return self._lanes[caller]

    def _rows_before(self, rows: int, caller: str | None, counts_of: "Callable[[_Lane], _RowCounts]") -> int:
        """Rows that are served before a new request's first: the caller's own, and as many of each other."""
        lane = self._lanes.get(caller)
        own = 0 if lane is None else counts_of(lane).before(rows)
        if own == 0:
            return 0
        others = (counts_of(other).total for other in self._lanes.values() if other is not lane)
        return own + sum(min(own, total) for total in others)

    def _track_small(self, rows: int) -> None:
        """Called when a request arrives and when its images do, as its fetches may take a while."""
        if rows <= FEW_ROWS:
            self._small_arrived_at = monotonic()


@dataclass(eq=False)
class QueuedRequest:
    """One request in the queue, a context. Raises the first error of an exception group alone."""

    rows: int
    unfetched_rows: int
    arrival: int
    queue: RowQueue
    lane: "_Lane"
    waiting: "deque[QueuedRow]" = field(default_factory=deque)
    steps: Steps = field(default_factory=Steps)
    statistics: list[ImageStatistics] = field(default_factory=list)
    """Of its images, in the order in which they were answered."""
    is_started: bool = False
    """A process has received one of its rows, or the request has ended."""
    is_costly: bool = False
    """One of its rows has proved slow."""

    def __post_init__(self) -> None:
        self._unanswered = self.rows
        self.shedder = self.lane.shedder(self.rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.queue.end(self)
        if isinstance(error, ExceptionGroup):
            raise _first_of(error) from error

    @property
    def is_small(self) -> bool:
        return self.rows <= FEW_ROWS and not self.is_costly

    def classify(
        self,
        rows: Sequence[WaitingRow],
        on_answered: Callable[[int, Outcome | None], None] = lambda *_: None,
    ) -> "asyncio.Future[list[Outcome | None]]":
        """Queue rows. The result is one outcome per row, in order, once all of them are classified."""
        answered: asyncio.Future[list[Outcome | None]] = asyncio.get_running_loop().create_future()
        group = RowGroup(answered, [None] * len(rows), len(rows), self, on_answered)
        if not rows:
            answered.set_result([])
        self.queue.put(self, [QueuedRow(row, place, group) for place, row in enumerate(rows)])
        return answered

    def fail(self, error: Exception) -> None:
        """Fail the request, which must have a waiting row."""
        self.waiting[0].group.fail(error)

    def mark_started(self) -> None:
        if not self.is_started:
            self.is_started = True
            self.shedder.remove(self)

    def mark_answered(self, rows: int) -> None:
        """Their outcomes are known, or no client waits for them any more."""
        rows = min(rows, self._unanswered)  # a process may still classify one after the request has ended
        if rows:
            self._unanswered -= rows
            self.lane.unclassified.add(self.rows, -rows)

    def mark_fetched(self, rows: int) -> None:
        """Their images have arrived or failed."""
        if rows:
            self.unfetched_rows -= rows
            self.lane.unfetched.add(self.rows, -rows)
            self.lane.unclassified.add(self.rows, rows)


@dataclass(eq=False)
class RowGroup:
    """Rows of one request with one future, answered one by one."""

    answered: "asyncio.Future[list[Outcome | None]]"
    outcomes: list[Outcome | None]
    unanswered: int
    request: QueuedRequest
    on_answered: Callable[[int, Outcome | None], None]
    """Called with each row's place and outcome. Raises Overloaded if there is no memory for the outcome."""
    answered_places: set[int] = field(default_factory=set)

    @property
    def is_done(self) -> bool:
        """All rows are answered, one has failed, or the client has disconnected."""
        return self.answered.done()

    def answer(self, place: int, outcome: Outcome | None) -> bool:
        """Returns False for a row that another process has already answered."""
        if place in self.answered_places:
            return False
        self.answered_places.add(place)
        self.outcomes[place] = outcome
        try:
            self.on_answered(place, outcome)
        except Overloaded as error:
            self.fail(error)
        self.request.mark_answered(1)
        self.request.shedder.count_served(1)
        self.unanswered -= 1
        if self.unanswered == 0 and not self.is_done:
            self.answered.set_result(self.outcomes)
        return True

    def fail(self, error: Exception) -> None:
        if not self.is_done:
            self.answered.set_exception(error)


class QueuedRow(NamedTuple):
    """A row, its place in its group, and the number of processes that crashed while handling it."""

    row: WaitingRow
    place: int
    group: RowGroup
    crashes: int = 0


# Means follow the latest rows: an hour of small images must not hide a minute of large ones.
_MAX_WEIGHED_ROWS = 500


class Capacity:
    """Measured seconds per row, from which waits are estimated. All are 0 before the first row."""

    def __init__(self, classifiers: int, max_concurrent_fetches: int) -> None:
        self.classifiers = classifiers
        self._max_concurrent_fetches = max_concurrent_fetches
        self._classify_seconds = _RunningMean()
        self._fetch_seconds = _RunningMean()

    @property
    def classify_seconds(self) -> float:
        """A process's time for a row."""
        return self._classify_seconds.mean

    @property
    def classified_row_seconds(self) -> float:
        """From one row to the next while all processes are busy."""
        return self._classify_seconds.mean / self.classifiers

    @property
    def fetched_row_seconds(self) -> float:
        """From one row to the next while the limit of concurrent fetches is reached."""
        return self._fetch_seconds.mean / self._max_concurrent_fetches

    @property
    def row_seconds(self) -> float:
        """From one row to the next under full load."""
        return max(self.classified_row_seconds, self.fetched_row_seconds)

    def record_classified(self, rows: int, seconds: float, failed_rows: int = 0) -> None:
        """Record a call. Failed rows count only in a call that took as long as one of classified rows.

        Most fail within microseconds, and would hide the cost of an image.
        """
        if seconds < rows * self._classify_seconds.mean:
            rows -= failed_rows
        self._classify_seconds.add(rows, seconds)

    def record_fetched(self, seconds: float) -> None:
        """Record the fetch of one row, whether it succeeded or failed."""
        self._fetch_seconds.add(1, seconds)


class _RunningMean:
    def __init__(self) -> None:
        self.mean = 0.0
        self._count = 0

    def add(self, count: int, total: float) -> None:
        if count:
            self._count = min(self._count + count, _MAX_WEIGHED_ROWS)
            weight = min(1.0, count / self._count)
            self.mean += weight * (total / count - self.mean)


# A batch that waits for long is deferred (202), and Snowflake does not send a deferred batch again.
_MAX_SHED_WAITS = 3


class LoadShedder:
    """Fails the youngest requests once the oldest waits longer for its first row than admission estimated.

    Estimates follow from the rows answered before. Rows that cost a hundred times as much make all estimates
    wrong, and the requests that were admitted would keep others out for minutes.
    """

    def __init__(self) -> None:
        self._since: dict[QueuedRequest, float] = {}
        self._served_rows = 0
        self._checks: deque[tuple[float, int]] = deque()
        """Time, and rows served by then."""

    def add(self, request: QueuedRequest) -> None:
        self._since.setdefault(request, monotonic())

    def remove(self, request: QueuedRequest) -> None:
        self._since.pop(request, None)

    def count_served(self, rows: int) -> None:
        self._served_rows += rows

    @property
    def longest_wait_seconds(self) -> float:
        """Of the requests that wait now."""
        since = next(iter(self._since.values()), None)
        return 0.0 if since is None else monotonic() - since

    def shed(self, max_wait_seconds: float, error: Callable[[QueuedRequest], Exception]) -> None:
        """Fail the youngest requests if the oldest has waited for more than `max_wait_seconds`.

        As many rows remain as were served in the latest `max_wait_seconds`. The oldest request always
        remains, and so do those that have waited for three times as long. Must be called at short intervals.
        """
        now = monotonic()
        self._checks.append((now, self._served_rows))
        while self._checks[0][0] < now - max_wait_seconds:
            self._checks.popleft()
        if self.longest_wait_seconds <= max_wait_seconds:
            return
        excess_rows = sum(len(request.waiting) for request in self._since)
        excess_rows -= self._served_rows - self._checks[0][1]
        for request, since in list(reversed(self._since.items()))[:-1]:
            if excess_rows <= 0 or now - since > _MAX_SHED_WAITS * max_wait_seconds:
                return
            excess_rows -= len(request.waiting)
            self.remove(request)
            request.fail(error(request))


# Fewer requests are not worth pruning.
_MIN_PRUNED = 64


class _RequestHeap:
    """Requests by rank, the lowest first. Requests that are no longer members are removed lazily."""

    def __init__(
        self, rank: Callable[[QueuedRequest], int], is_member: Callable[[QueuedRequest], bool]
    ) -> None:
        self._rank = rank
        self._is_member = is_member
        self._heap: list[tuple[int, int, QueuedRequest]] = []
        self._arrivals: set[int] = set()
        self._prune_at = _MIN_PRUNED

    def push(self, request: QueuedRequest) -> None:
        if request.arrival not in self._arrivals:
            self._arrivals.add(request.arrival)
            heapq.heappush(self._heap, (self._rank(request), request.arrival, request))

    def first(self) -> QueuedRequest | None:
        while self._heap and not self._is_member(self._heap[0][-1]):
            self._arrivals.discard(heapq.heappop(self._heap)[1])
        return self._heap[0][-1] if self._heap else None

    def all(self) -> list[QueuedRequest]:
        """In no order."""
        return [request for *_, request in self._heap if self._is_member(request)]

    def prune(self) -> None:
        """Remove former members that may never become the first, once they may be the majority."""
        if len(self._heap) < self._prune_at:
            return
        self._heap = [entry for entry in self._heap if self._is_member(entry[-1])]
        heapq.heapify(self._heap)
        self._arrivals = {arrival for _, arrival, _ in self._heap}
        self._prune_at = max(_MIN_PRUNED, 2 * len(self._heap))


class _Lane:
    """The requests of one caller."""

    def __init__(self) -> None:
        self.requests = 0
        self.has_turn = False
        """Whether it is among the queue's turns."""
        self.unfetched = _RowCounts()
        self.unclassified = _RowCounts()
        """Rows that have their image and no outcome."""
        self.small = _RequestHeap(_arrival, lambda request: _has_waiting(request) and request.is_small)
        self._heaps = deque([_RequestHeap(_rows, _has_waiting), _RequestHeap(_arrival, _has_waiting)])
        self._small_shedder, self._large_shedder = LoadShedder(), LoadShedder()

    @property
    def has_large(self) -> bool:
        return self.unfetched.has_larger(FEW_ROWS) or self.unclassified.has_larger(FEW_ROWS)

    def shedder(self, rows: int) -> LoadShedder:
        """The load shedder of small or of large requests."""
        return self._small_shedder if rows <= FEW_ROWS else self._large_shedder

    def push(self, request: QueuedRequest) -> None:
        if not request.is_started:
            request.shedder.add(request)
        for heap in self._heaps:
            heap.push(request)
        if request.is_small:
            self.small.push(request)

    def next_request(self) -> QueuedRequest | None:
        """The smallest and the oldest with waiting rows, alternately."""
        self._heaps.rotate()
        return self._heaps[0].first()

    def waiting_requests(self) -> list[QueuedRequest]:
        """In no order."""
        return self._heaps[0].all()

    def prune(self) -> None:
        for heap in (*self._heaps, self.small):
            heap.prune()


# Requests are grouped by the power of two of their number of rows.
_SIZES = 64


class _RowCounts:
    """Numbers of rows, by the size of their request."""

    def __init__(self) -> None:
        self._rows = [0] * _SIZES
        self.total = 0

    def add(self, request_rows: int, rows: int) -> None:
        """Add `rows`, which may be negative, to requests of `request_rows`."""
        self._rows[request_rows.bit_length()] += rows
        self.total += rows

    def before(self, request_rows: int) -> int:
        """Rows that are served before the first row of a new request.

        Twice the rows of requests of its size and below, as it alternates with the oldest, or all rows.
        """
        return min(2 * self._up_to(request_rows), self.total)

    def has_larger(self, request_rows: int) -> bool:
        """Whether there are rows of a request of a larger size."""
        return self.total > self._up_to(request_rows)

    def _up_to(self, request_rows: int) -> int:
        return sum(self._rows[: request_rows.bit_length() + 1])


def _first_of(group: ExceptionGroup[Exception]) -> Exception:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first


def _rows(request: QueuedRequest) -> int:
    return request.rows


def _arrival(request: QueuedRequest) -> int:
    return request.arrival


def _has_waiting(request: QueuedRequest) -> bool:
    return bool(request.waiting)
