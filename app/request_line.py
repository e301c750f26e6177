"""Requests in the order of their rank, for the queue of rows."""

import heapq
from collections.abc import Callable
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
