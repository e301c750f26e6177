"""Admission control: 429 for requests that would wait too long, or for which there is no memory.

Request bodies and large responses share a memory budget. A body takes memory as it arrives and as it is
inflated, not when its length is declared. When a body needs more than is free:

1. Bodies that arrive, and responses that are sent, at less than `min_bytes_per_second` are evicted, the one
   that has made no progress for longest first.
2. Then the youngest incomplete body is evicted, which may be the one that needs memory. The oldest body
   therefore always completes.

Complete bodies, whose rows wait or are being classified, are never evicted. An authenticated caller's bodies
therefore hold at most three quarters of the budget; beyond it, only bodies of that caller are evicted.
"""

import asyncio
import math
from collections import Counter as CounterOf
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, count, islice, takewhile
from time import monotonic
from traceback import clear_frames
from types import TracebackType
from typing import Self

from app.errors import Overloaded
from app.workers.queue import FEW_ROWS, QueuedRequest, RowQueue

# How long a body or a response may be slow before it can be evicted for that.
GRACE_SECONDS = 1.0
# A smaller body takes no more memory than its connection, so evicting it would free next to nothing.
MIN_EVICTABLE_BYTES = 4096
# The rest has room for a body of another caller.
CALLER_SHARE = 0.75
# If more bodies are slow, a new body may start without a full count: memory is checked for every piece.
MAX_SLOW_COUNTED = 1000
_RETRY_AFTER_SECONDS = 1


def _do_nothing() -> None: ...


@dataclass(eq=False)
class _Group:
    """The small bodies, or the large ones."""

    held_bytes: int = 0
    by_age: "OrderedDict[PendingBody, None]" = field(default_factory=OrderedDict)
    """Incomplete bodies, the youngest last."""
    by_progress: "OrderedDict[PendingBody, None]" = field(default_factory=OrderedDict)
    """Bodies in transit, ordered by when they become slow."""

    def slow(self, now: float, caller: str | None = None) -> "Iterator[PendingBody]":
        """The slow bodies, of `caller` if given, the slowest first."""
        for body in self.by_progress:
            if body.slow_at >= now:
                return
            if caller in (None, body.caller):
                yield body

    def youngest(self, caller: str | None = None) -> "PendingBody | None":
        evictable = (body for body in reversed(self.by_age) if body.is_evictable)
        return next((body for body in evictable if caller in (None, body.caller)), None)

    def untrack(self, body: "PendingBody") -> None:
        self.by_age.pop(body, None)
        self.by_progress.pop(body, None)


class PendingBytes:
    """The budget of one process for bodies and large responses. A body without others always fits.

    The bodies of one caller hold at most `CALLER_SHARE` of `max_bytes`, unless there is only one of them.
    Bodies of at most `reserve_bytes`, as declared and as received, are small. They share a reserve of the
    same size in addition to `max_bytes`, which large bodies cannot take.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        reserve_bytes: int = 0,
        min_bytes_per_second: float = 0.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._reserve_bytes = reserve_bytes
        self._min_bytes_per_second = min_bytes_per_second
        self._clock = clock
        self._small, self._large = _Group(), _Group()
        self._numbers = count()
        self._by_caller: CounterOf[str] = CounterOf()

    @property
    def held_bytes(self) -> int:
        return self._small.held_bytes + self._large.held_bytes

    def reserve(self, declared_bytes: int = 0, caller: str | None = None) -> "PendingBody":
        """A body that holds nothing yet. `declared_bytes` is 0 without a Content-Length.

        `caller` is None without authentication; the body then counts towards no caller's share.
        """
        return PendingBody(self, self._group_of(declared_bytes), declared_bytes, caller)

    def refuse(self, body_bytes: int, caller: str | None = None) -> None:
        """Raises Overloaded for a body that would not fit even if all slow bodies were evicted."""
        small_bytes, large_bytes = self._small.held_bytes, self._large.held_bytes
        own_bytes = self._held_by(caller)
        now = self._clock()
        slow = chain(self._large.slow(now), self._small.slow(now))
        for body in chain([None], islice(slow, MAX_SLOW_COUNTED)):
            if body is not None:
                small_bytes -= body.held_bytes if body.group is self._small else 0
                large_bytes -= body.held_bytes if body.group is self._large else 0
                own_bytes -= body.held_bytes if body.caller == caller else 0
            has_share = self._has_share(body_bytes, own_bytes)
            if has_share and self._fits(body_bytes, small_bytes, large_bytes):
                return
        if next(slow, None) is None:
            raise self._no_room(body_bytes) if has_share else self._no_share(body_bytes)

    def take(self, body: "PendingBody", more_bytes: int) -> None:
        """Raises Overloaded; an incomplete body then loses the bytes that it holds."""
        if body.eviction is not None:
            raise body.eviction
        while not (has_share := self._keeps_share(body, more_bytes)) or not self._has_room(body, more_bytes):
            if not self._evict_for(body, None if has_share else body.caller):
                body.eviction = self._no_room(more_bytes) if has_share else self._no_share(more_bytes)
                if body.is_evictable:
                    self.release(body)  # at once: other bodies may need them before the error is handled
                raise body.eviction
        if body.group is self._small and self._group_of(body.held_bytes + more_bytes) is self._large:
            more_bytes += body.held_bytes
            self.release(body)
            body.group = self._large
        self._hold(body, more_bytes)
        # Most bodies are small and arrive in one piece: tracking them for eviction would be wasted.
        if body.is_evictable and MIN_EVICTABLE_BYTES <= body.held_bytes != body.declared_bytes:
            if body not in body.group.by_age:
                body.number = next(self._numbers)
                body.group.by_age[body] = None
            self.note_progress(body, more_bytes)

    def note_progress(self, body: "PendingBody", moved_bytes: int) -> None:
        """Bytes worth a second at the minimum rate give a body in transit another second."""
        if not body.is_in_transit:
            return
        by_progress = body.group.by_progress
        body.moved_bytes += moved_bytes
        if body not in by_progress or body.moved_bytes >= self._min_bytes_per_second * GRACE_SECONDS:
            body.moved_bytes = 0
            body.slow_at = self._clock() + GRACE_SECONDS
            by_progress[body] = None
            by_progress.move_to_end(body)

    def release(self, body: "PendingBody", fewer_bytes: float = math.inf) -> None:
        """Release `fewer_bytes`, by default everything that the body holds."""
        self._hold(body, -int(min(fewer_bytes, body.held_bytes)))
        if not body.held_bytes:
            body.group.untrack(body)

    def _hold(self, body: "PendingBody", more_bytes: int) -> None:
        """Count `more_bytes`, which may be negative."""
        body.group.held_bytes += more_bytes
        body.held_bytes += more_bytes
        if body.caller is not None:
            self._by_caller[body.caller] += more_bytes
            if not self._by_caller[body.caller]:
                del self._by_caller[body.caller]

    def _held_by(self, caller: str | None) -> int:
        return 0 if caller is None else self._by_caller[caller]

    def _has_share(self, body_bytes: int, own_bytes: int) -> bool:
        """Whether a body keeps its caller's share next to this many bytes of the caller's other bodies."""
        return not own_bytes or own_bytes + body_bytes <= CALLER_SHARE * self._max_bytes

    def _keeps_share(self, body: "PendingBody", more_bytes: int) -> bool:
        own_bytes = 0 if body.caller is None else self._held_by(body.caller) - body.held_bytes
        return self._has_share(body.held_bytes + more_bytes, own_bytes)

    def _group_of(self, body_bytes: int) -> _Group:
        return self._large if body_bytes > self._reserve_bytes else self._small

    def _has_room(self, body: "PendingBody", more_bytes: int) -> bool:
        is_large = body.group is self._large
        return self._fits(
            body.held_bytes + more_bytes,
            self._small.held_bytes - (0 if is_large else body.held_bytes),
            self._large.held_bytes - (body.held_bytes if is_large else 0),
            is_large=is_large,
        )

    def _fits(self, body_bytes: int, small_bytes: int, large_bytes: int, *, is_large: bool = False) -> bool:
        """Whether a body fits next to this many bytes of small and large bodies."""
        if not small_bytes + large_bytes:
            return True
        if is_large or body_bytes > self._reserve_bytes:
            large_bytes += body_bytes
        elif (small_bytes := small_bytes + body_bytes) <= self._reserve_bytes:
            return True
        return large_bytes + max(0, small_bytes - self._reserve_bytes) <= self._max_bytes

    def _evict_for(self, body: "PendingBody", caller: str | None) -> bool:
        """Evict one other body in favour of `body`. False if `body` itself is next in line.

        With `caller`, it evicts only that caller's bodies, for whose share it makes room.
        """
        # Otherwise, evicting small bodies that fit into their reserve frees no memory for large ones.
        can_evict_small = (
            caller is not None or body.group is self._small or self._small.held_bytes > self._reserve_bytes
        )
        groups = (self._large, self._small) if can_evict_small else (self._large,)
        now = self._clock()
        slow = [first for group in groups if (first := next(group.slow(now, caller), None))]
        if slow:
            victim = min(slow, key=lambda one: one.slow_at)
            return victim is not body and self._evict(victim, self._too_slow())
        reason = self._no_room if caller is None else self._no_share
        young = [last for group in groups if (last := group.youngest(caller))]
        victim = max(young, key=lambda one: one.number, default=body)
        return victim.number > body.number and self._evict(victim, reason(victim.held_bytes))

    def _evict(self, body: "PendingBody", reason: Overloaded) -> bool:
        body.eviction = reason
        self.release(body)
        body.wake()
        return True

    def _no_room(self, body_bytes: int) -> Overloaded:
        rule = f"Pending request bodies must have at most {self._max_bytes} bytes in total."
        return Overloaded(
            f"{rule} Received: {body_bytes} in addition to {self.held_bytes}.", _RETRY_AFTER_SECONDS
        )

    def _no_share(self, body_bytes: int) -> Overloaded:
        rule = (
            f"Pending bodies of one caller must have at most {CALLER_SHARE:.0%} of {self._max_bytes} bytes."
        )
        return Overloaded(f"{rule} Received: {body_bytes} more.", _RETRY_AFTER_SECONDS)

    def _too_slow(self) -> Overloaded:
        rate = f"{self._min_bytes_per_second:.0f} bytes a second"
        rule = f"While memory is short, a body must arrive at {rate} or more."
        refusal = Overloaded(f"{rule} Received: a slower one.", _RETRY_AFTER_SECONDS)
        refusal.headers = {**refusal.headers, "connection": "close"}  # the rest would arrive as slowly
        return refusal


class PendingBody:
    """The pending bytes of one body, or of the response to it, until its last holder releases them."""

    def __init__(
        self, pending: PendingBytes, group: _Group, declared_bytes: int, caller: str | None = None
    ) -> None:
        self.held_bytes = 0
        self.declared_bytes = declared_bytes
        self.group = group
        self.caller = caller
        self.number: float = math.inf
        """Its rank by age; infinite, so the youngest, until it is tracked."""
        self.slow_at = math.inf
        self.moved_bytes = 0  # since `slow_at` was last postponed
        self.is_in_transit = False
        self.is_evictable = False
        self.wake: Callable[[], None] = _do_nothing
        self.eviction: Overloaded | None = None
        self._pending = pending
        self._holders = 1

    def take(self, more_bytes: int) -> None:
        """Raises Overloaded, also when the body was evicted."""
        self._pending.take(self, more_bytes)

    def drop(self, fewer_bytes: float = math.inf) -> None:
        """Release `fewer_bytes`, or everything, regardless of the holders."""
        self._pending.release(self, fewer_bytes)

    def note_progress(self, moved_bytes: int) -> None:
        """Progress of a response that is being sent; a body makes progress as it takes bytes."""
        self._pending.note_progress(self, moved_bytes)

    @contextmanager
    def evictable(
        self, wake: Callable[[], None] = _do_nothing, *, is_in_transit: bool = False
    ) -> Iterator[None]:
        """Inside, it can be evicted, which calls `wake`. Raises Overloaded on exit if it was evicted."""
        self.is_evictable, self.is_in_transit, self.wake = True, is_in_transit, wake
        if self.held_bytes:
            self.note_progress(0)
        try:
            yield
        finally:
            self.is_evictable, self.is_in_transit, self.wake = False, False, _do_nothing
            self.group.by_progress.pop(self, None)
        if self.eviction is not None:
            raise self.eviction

    def complete(self) -> None:
        """It takes no more bytes, and can no longer be evicted."""
        self.group.untrack(self)

    def hold(self) -> None:
        """Add a holder, which must call `let_go` too."""
        self._holders += 1

    def let_go(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: object, traceback: TracebackType | None) -> None:
        if traceback is not None:
            # They would keep the received bytes alive until the error response is sent.
            clear_frames(traceback)
        self.let_go()


# In the moving average of rows per byte: requests of one kind and client are similar.
_WEIGHT_OF_LATEST = 0.2
_LEAST_RETRY_SECONDS = 1
# A single image is usually interactive, and its queue should drain soon after a burst ends.
MAX_WAIT_SECONDS_OF_FEW = 1.5
_TRIES_PER_SECOND = 10


class Admission:
    """Admission control of one process. A request without others of its caller is always admitted."""

    def __init__(
        self,
        queue: RowQueue,
        max_wait_seconds: float,
        pending: PendingBytes,
        patience_seconds: float = 0.0,
    ) -> None:
        """`patience_seconds` is how long `admit` waits for room before it refuses a request."""
        self.patience_seconds = patience_seconds
        self._patient: dict[int, tuple[str | None, int]] = {}
        """Callers and rows of the requests that wait in `admit`, by number, the oldest first."""
        self._numbers = count()
        self._pending = pending
        self._queue = queue
        self._max_wait_seconds = max_wait_seconds
        queue.on_check = self._shed
        self._rows_a_byte: dict[str, float] = {}

    def refuse(self, body_bytes: int, rows: int, caller: str | None = None) -> None:
        """Raises Overloaded; called before any of the body is read. Without `rows`, for memory alone."""
        if rows:
            self.refuse_rows(rows, caller=caller)
        self._pending.refuse(body_bytes, caller)

    def expect_rows(self, kind: str, body_bytes: int) -> int:
        """The estimated rows of a body, from earlier bodies of its kind."""
        return max(1, round(body_bytes * self._rows_a_byte.get(kind, 0.0)))

    def note_rows(self, kind: str, body_bytes: int, rows: int) -> None:
        """Record the rows that a body held. Kinds are few, and no client can choose their names."""
        latest = rows / max(1, body_bytes)
        before = self._rows_a_byte.get(kind, latest)
        self._rows_a_byte[kind] = before + (latest - before) * _WEIGHT_OF_LATEST

    def refuse_rows(self, rows: int, unfetched_rows: int = 0, caller: str | None = None) -> None:
        """Raises Overloaded if the first of so many rows would wait longer than the limit."""
        wait_seconds = self._queue.wait_seconds(rows, unfetched_rows, caller)
        max_wait_seconds = self._max_wait_of(rows)
        if rows <= FEW_ROWS:
            wait_seconds = max(wait_seconds, self._queue.longest_wait_seconds(rows, caller))
        if wait_seconds > max_wait_seconds:
            raise _overloaded(
                f"The request's {rows} rows would wait for {wait_seconds:.1f} seconds, more than the "
                f"{max_wait_seconds:g} allowed. Send it again later.",
                wait_seconds - max_wait_seconds,
            )

    async def admit(self, rows: int, unfetched_rows: int = 0, caller: str | None = None) -> None:
        """As `refuse_rows`, but raises Overloaded only when there was no room for `patience_seconds`.

        A caller's requests are admitted in the order of their arrival, except that none waits for a larger
        one.
        """
        number, deadline = next(self._numbers), monotonic() + self.patience_seconds
        self._patient[number] = caller, rows
        try:
            while monotonic() < deadline:
                if not self._is_behind_another(number, caller, rows):
                    with suppress(Overloaded):
                        return self.refuse_rows(rows, unfetched_rows, caller)
                await asyncio.sleep(1 / _TRIES_PER_SECOND)
            return self.refuse_rows(rows, unfetched_rows, caller)
        finally:
            del self._patient[number]

    def _is_behind_another(self, number: int, caller: str | None, rows: int) -> bool:
        earlier = takewhile(lambda other: other != number, self._patient)
        others = (self._patient[other] for other in earlier)
        return any(other_caller == caller and other_rows <= rows for other_caller, other_rows in others)

    def _max_wait_of(self, rows: int) -> float:
        return min(self._max_wait_seconds, MAX_WAIT_SECONDS_OF_FEW if rows <= FEW_ROWS else math.inf)

    def _shed_after(self, rows: int) -> float:
        """Well above the limit of admission: to shed a request wastes what it has cost so far."""
        max_wait_seconds = self._max_wait_of(rows)
        return max_wait_seconds + max(max_wait_seconds, self.patience_seconds)

    def _shed(self) -> None:
        for rows in (FEW_ROWS + 1, FEW_ROWS):
            self._queue.shed(rows, self._shed_after(rows), self._waited_for_too_long)

    def _waited_for_too_long(self, request: QueuedRequest) -> Overloaded:
        max_wait_seconds = self._shed_after(request.rows)
        return _overloaded(
            f"The request's {request.rows} rows would wait longer than {max_wait_seconds:g} seconds: "
            "other requests have waited longer. Send it again later.",
            max_wait_seconds,
        )

    def reserve(self, declared_bytes: int = 0, caller: str | None = None) -> PendingBody:
        """As `PendingBytes.reserve`."""
        return self._pending.reserve(declared_bytes, caller)

    @property
    def pending_bytes(self) -> int:
        """Inflated bodies being read or with unanswered rows, and large responses being sent."""
        return self._pending.held_bytes


def _overloaded(message: str, retry_seconds: float) -> Overloaded:
    return Overloaded(message, max(_LEAST_RETRY_SECONDS, math.ceil(retry_seconds)))
