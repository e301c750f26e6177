"""Requests that wait longer for their first row than admission allowed for, and which of them give way.

Admission estimates a wait from the rows answered before. Rows that turn out to cost a hundred times as much
make every estimate wrong, and the requests admitted by it would keep others out for minutes.
"""

from collections import deque
from collections.abc import Callable, Sized
from time import monotonic
from typing import Generic, Protocol, TypeVar

# A batch that waits for long is answered 202, and Snowflake does not send that one again.
_MAX_SHED_WAITS = 3


class Waiting(Protocol):
    @property
    def waiting(self) -> Sized: ...

    def fail(self, error: Exception) -> None: ...


R = TypeVar("R", bound=Waiting)


class Overdue(Generic[R]):
    """Requests by the time at which their first row began to wait."""

    def __init__(self) -> None:
        self._since: dict[R, float] = {}
        self._served_rows = 0
        self._looks: deque[tuple[float, int]] = deque()
        """When, and how many rows had been answered by then."""

    def enter(self, request: R) -> None:
        self._since.setdefault(request, monotonic())

    def leave(self, request: R) -> None:
        self._since.pop(request, None)

    def note_served(self, rows: int) -> None:
        self._served_rows += rows

    @property
    def longest_wait_seconds(self) -> float:
        """Of the requests that wait now."""
        since = next(iter(self._since.values()), None)
        return 0.0 if since is None else monotonic() - since

    def shed(self, max_wait_seconds: float, error: Callable[[R], Exception]) -> None:
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
