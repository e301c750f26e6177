"""The time window of a measurement, and what was counted in it."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

REFUSALS = (429, 503)
# A cell counts as not served if the server only fails, this many times or for this long.
MOST_FAILURES_AT_FIRST = 20
LIMIT_SECONDS = 60.0


@dataclass
class Tally:
    """Of one window."""

    images: int = 0
    requests: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refusals: int = 0
    errors: Counter[str] = field(default_factory=Counter)


def quantile(values: Sequence[float], share: float) -> float | None:
    """Nearest rank: a value that was measured."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class ClosedWindow:
    """Whole waves, a wave being as many answers as there are connections.

    It opens at the end of the wave in which the warm-up ends, and closes at the end of the first wave after
    `seconds` in which it is longer than any answer in it took; connections keep asking until then. So load is
    the same at both ends, a server that answers all connections at once gains no wave and loses none, and
    one that answers old requests in a burst does not look fast. What is in flight at the end is not
    counted.
    """

    def __init__(
        self, connections: int, rows: int, warm_up_seconds: float, seconds: float, on_edge: Callable[[], None]
    ) -> None:
        self.tally = Tally()
        self.is_over = False
        self._connections = connections
        self._rows = rows
        self._warm_up_seconds = warm_up_seconds
        self._seconds = seconds
        self._on_edge = on_edge
        self._started = self._opened = time.perf_counter()
        self._is_open = False
        self._answers = 0

    def answered(self, latency: float) -> None:
        now = time.perf_counter()
        self._answers += 1
        if self._is_open and not self.is_over:
            self.tally.images += self._rows
            self.tally.requests += 1
            self.tally.latencies.append(latency)
        if self._answers % self._connections == 0:
            self._end_wave(now)
        self._end_late(now)

    def failed(self, kind: str, *, is_refusal: bool) -> None:
        if self.is_over:
            return
        self.tally.refusals += is_refusal
        self.tally.errors[kind] += 1
        only_fails = not self._answers and self.tally.errors.total() >= MOST_FAILURES_AT_FIRST
        if only_fails:
            self._close(time.perf_counter())
        self._end_late(time.perf_counter())

    def _end_wave(self, now: float) -> None:
        if not self._is_open and now - self._started >= self._warm_up_seconds:
            self._is_open = True
            self._opened = now
            self._on_edge()
        elif self._is_open and now - self._opened >= max(self._seconds, *self.tally.latencies):
            self._close(now)

    def _end_late(self, now: float) -> None:
        if now - self._started > LIMIT_SECONDS + self._seconds:
            self._close(now)

    def _close(self, now: float) -> None:
        if self.is_over:
            return
        if not self._is_open:
            self._on_edge()
        self._on_edge()
        self.is_over = True
        self.tally.seconds = now - self._opened


class OpenWindow:
    """A span of time: answers within it count as images, requests meant to start in it count as latencies."""

    def __init__(self, rows: int, opens: float, closes: float) -> None:
        self.tally = Tally(seconds=closes - opens)
        self._rows = rows
        self._opens = opens
        self._closes = closes

    def answered(self, intended: float) -> None:
        now = time.perf_counter()
        if self._opens <= now < self._closes:
            self.tally.images += self._rows
        if self._opens <= intended < self._closes:
            self.tally.requests += 1
            self.tally.latencies.append(now - intended)

    def failed(self, kind: str, intended: float, *, is_refusal: bool) -> None:
        if self._opens <= intended < self._closes:
            self.tally.refusals += is_refusal
            self.tally.errors[kind] += 1
