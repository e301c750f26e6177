"""Whether a request is let in: 429 at once, before its body is read, while others fill what there is.

To Snowflake, 429 means to slow down and to send the batch again. Two things can be full: the time that rows
would wait for those before them, as measured, and the memory that bodies may take.
"""

import math

from app.errors import Overloaded
from app.pending import PendingBody, PendingBytes
from app.row_queue import FEW_ROWS, QueuedRequest, RowQueue

# Of the mean of rows a byte; requests of one kind and sender are much alike.
_WEIGHT_OF_LATEST = 0.2
_LEAST_RETRY_SECONDS = 1
# Somebody waits for a single image, and a flood of them is to be over soon after it ends.
MAX_WAIT_SECONDS_OF_FEW = 1.5


class Admission:
    """For all requests of one process. A request that has the service to itself is always let in."""

    def __init__(
        self,
        queue: RowQueue,
        max_wait_seconds: float,
        max_pending_bytes: int,
        *,
        reserve_bytes: int = 0,
        min_bytes_per_second: float = 0.0,
    ) -> None:
        self._pending = PendingBytes(
            max_pending_bytes, reserve_bytes=reserve_bytes, min_bytes_per_second=min_bytes_per_second
        )
        self._queue = queue
        self._max_wait_seconds = max_wait_seconds
        queue.on_look = self._shed
        self._rows_a_byte: dict[str, float] = {}

    def refuse(self, body_bytes: int, rows: int) -> None:
        """Raises Overloaded, before anything of a body has been read."""
        self.refuse_rows(rows)
        self._pending.refuse(body_bytes)

    def expect_rows(self, kind: str, body_bytes: int) -> int:
        """In a body, by what those of its kind held so far."""
        return max(1, round(body_bytes * self._rows_a_byte.get(kind, 0.0)))

    def note_rows(self, kind: str, body_bytes: int, rows: int) -> None:
        """What a body turned out to hold. Kinds are few, and none of them is a caller's to name."""
        latest = rows / max(1, body_bytes)
        before = self._rows_a_byte.get(kind, latest)
        self._rows_a_byte[kind] = before + (latest - before) * _WEIGHT_OF_LATEST

    def refuse_rows(self, rows: int, unfetched_rows: int = 0) -> None:
        """Raises Overloaded when so many rows would wait longer than any may before the first is served."""
        wait_seconds = self._queue.wait_seconds(rows, unfetched_rows)
        max_wait_seconds = self._max_wait_of(rows)
        if rows <= FEW_ROWS:
            wait_seconds = max(wait_seconds, self._queue.overdue[True].longest_wait_seconds)
        if wait_seconds > max_wait_seconds:
            raise _overloaded(
                f"{rows} rows may wait for at most {max_wait_seconds:g} seconds. "
                f"Received: rows that would wait for {wait_seconds:.1f}.",
                wait_seconds - max_wait_seconds,
            )

    def _max_wait_of(self, rows: int) -> float:
        return min(self._max_wait_seconds, MAX_WAIT_SECONDS_OF_FEW if rows <= FEW_ROWS else math.inf)

    def _shed(self) -> None:
        for overdue, rows in zip(self._queue.overdue, (FEW_ROWS + 1, FEW_ROWS), strict=True):
            overdue.shed(self._max_wait_of(rows), self._waited_for_too_long)

    def _waited_for_too_long(self, request: QueuedRequest) -> Overloaded:
        max_wait_seconds = self._max_wait_of(request.rows)
        return _overloaded(
            f"{request.rows} rows may wait for at most {max_wait_seconds:g} seconds. "
            "Received: rows behind others that have waited for longer.",
            max_wait_seconds,
        )

    def reserve(self, declared_bytes: int = 0) -> PendingBody:
        """A body that holds nothing yet; 0 where its length is not declared."""
        return self._pending.reserve(declared_bytes)

    @property
    def pending_bytes(self) -> int:
        """Bodies that are read or whose rows are not answered yet, inflated, and large answers being sent."""
        return self._pending.held_bytes


def _overloaded(message: str, retry_seconds: float) -> Overloaded:
    return Overloaded(message, max(_LEAST_RETRY_SECONDS, math.ceil(retry_seconds)))
