"""Requests that wait longer for their first row than admission allowed for, and which of them give way.

Admission estimates a wait from the rows answered before. Rows that turn out to cost a hundred times as much
make every estimate wrong, and the requests admitted by it would keep others out for minutes.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sized
from time import monotonic
from typing import Generic, Protocol, TypeVar

# So few requests are not worth the tidying.
_LEAST_TIDIED = 64


class Arrived(Protocol):
    arrival: int


R = TypeVar("R", bound=Arrived)


class RequestLine(Generic[R]):
    """Requests by rank, the lowest first; one that belongs no more leaves when it comes to the front."""

    def __init__(self, rank: Callable[[R], int], belongs: Callable[[R], bool]) -> None:
        self._rank = rank
        self._belongs = belongs
        self._heap: list[tuple[int, int, R]] = []
        self._arrivals: set[int] = set()
        self._tidy_at = _LEAST_TIDIED

    def enter(self, request: R) -> None:
        if request.arrival not in self._arrivals:
            self._arrivals.add(request.arrival)
            heapq.heappush(self._heap, (self._rank(request), request.arrival, request))

    def first(self) -> R | None:
        while self._heap and not self._belongs(self._heap[0][-1]):
            self._arrivals.discard(heapq.heappop(self._heap)[1])
        return self._heap[0][-1] if self._heap else None

    def all(self) -> list[R]:
        """In no order."""
        return [request for *_, request in self._heap if self._belongs(request)]

    def tidy(self) -> None:
        """Drop those that belong no more and never come to the front, once they may be the most."""
        if len(self._heap) < self._tidy_at:
            return
        self._heap = [entry for entry in self._heap if self._belongs(entry[-1])]
        heapq.heapify(self._heap)
        self._arrivals = {arrival for _, arrival, _ in self._heap}
        self._tidy_at = max(_LEAST_TIDIED, 2 * len(self._heap))


# A batch that waits for long is answered 202, and Snowflake does not send that one again.
_MAX_SHED_WAITS = 3


class Waiting(Protocol):
    @property
    def waiting(self) -> Sized: ...

    def fail(self, error: Exception) -> None: ...


Q = TypeVar("Q", bound=Waiting)


class Overdue(Generic[Q]):
    """Requests by the time at which their first row began to wait."""

    def __init__(self) -> None:
        self._since: dict[Q, float] = {}
        self._served_rows = 0
        self._looks: deque[tuple[float, int]] = deque()
        """When, and how many rows had been answered by then."""

    def enter(self, request: Q) -> None:
        self._since.setdefault(request, monotonic())

    def leave(self, request: Q) -> None:
        self._since.pop(request, None)

    def note_served(self, rows: int) -> None:
        self._served_rows += rows

    @property
    def longest_wait_seconds(self) -> float:
        """Of the requests that wait now."""
        since = next(iter(self._since.values()), None)
        return 0.0 if since is None else monotonic() - since

    def shed(self, max_wait_seconds: float, error: Callable[[Q], Exception]) -> None:
        """Fail the youngest requests, if the oldest has waited for more than `max_wait_seconds`.

        As many rows stay as were answered in the latest `max_wait_seconds`. The oldest request stays in any
        case, and so do those that have waited for three times as long. To be called at short intervals.
        """
        now = monotonic()
        self._looks.append((now, self._served_rows))
        while self._looks[0][0] < now - max_wait_seconds:
            self._looks.popleft()
        if self.longest_wait_seconds <= max_wait_seconds:
            return
        excess_rows = sum(len(request.waiting) for request in self._since)
        excess_rows -= self._served_rows - self._looks[0][1]
        for request, since in list(reversed(self._since.items()))[:-1]:
            if excess_rows <= 0 or now - since > _MAX_SHED_WAITS * max_wait_seconds:
                return
            excess_rows -= len(request.waiting)
            self.leave(request)
            request.fail(error(request))
