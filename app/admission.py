"""Whether a request is let in: 429 at once, before its body is read, while others fill what there is.

To Snowflake, 429 means to slow down and to send the batch again. Two things can be full: the time that rows
would wait for those before them, as measured, and the memory that bodies may take.
"""

import math
from typing import Self

from app.errors import Overloaded
from app.row_queue import FEW_ROWS, RowQueue

# Of the mean of rows a byte; requests of one kind and sender are much alike.
_WEIGHT_OF_LATEST = 0.2
_LEAST_RETRY_SECONDS = 1
# Somebody waits for a single image, and a flood of them is to be over soon after it ends.
MAX_WAIT_SECONDS_OF_FEW = 1.5


class Admission:
    """For all requests of one process. A request that has the service to itself is always let in."""

    def __init__(self, queue: RowQueue, max_wait_seconds: float, max_pending_bytes: int) -> None:
        self.pending_bytes = 0
        """Of bodies that are being read or whose rows are not answered yet, inflated."""
        self._queue = queue
        self._max_wait_seconds = max_wait_seconds
        self._max_pending_bytes = max_pending_bytes
        self._rows_a_byte: dict[str, float] = {}

    def refuse(self, body_bytes: int, rows: int) -> None:
        """Raises Overloaded, before anything of a body has been read."""
        self.refuse_rows(rows)
        self._refuse_bytes(body_bytes)

    def expect_rows(self, kind: str, body_bytes: int) -> int:
        """In a body, by what those of its kind held so far."""
        return max(1, round(body_bytes * self._rows_a_byte.get(kind, 0.0)))

    def note_rows(self, kind: str, body_bytes: int, rows: int) -> None:
        """What a body turned out to hold. Kinds are few, and none of them is a caller's to name."""
        latest = rows / max(1, body_bytes)
        before = self._rows_a_byte.get(kind, latest)
        self._rows_a_byte[kind] = before + (latest - before) * _WEIGHT_OF_LATEST

    def refuse_rows(self, rows: int) -> None:
        """Raises Overloaded when so many rows would wait longer than any may before the first is served."""
        wait_seconds, max_wait_seconds = self._queue.wait_seconds(rows), self._max_wait_seconds
        if rows <= FEW_ROWS:
            max_wait_seconds = min(max_wait_seconds, MAX_WAIT_SECONDS_OF_FEW)
        if wait_seconds > max_wait_seconds:
            raise _overloaded(
                f"{rows} rows may wait for at most {max_wait_seconds:g} seconds. "
                f"Received: rows that would wait for {wait_seconds:.1f}.",
                wait_seconds - max_wait_seconds,
            )

    def reserve(self) -> "PendingBody":
        """Room for a body, none at first."""
        return PendingBody(self)

    def take(self, more_bytes: int, held_bytes: int) -> None:
        """For a body that holds so many already. Raises Overloaded."""
        self._refuse_bytes(more_bytes, held_bytes)
        self.pending_bytes += more_bytes

    def give_back(self, held_bytes: int) -> None:
        self.pending_bytes -= held_bytes

    def _refuse_bytes(self, more_bytes: int, held_bytes: int = 0) -> None:
        others_bytes = self.pending_bytes - held_bytes
        if others_bytes and self.pending_bytes + more_bytes > self._max_pending_bytes:
            raise _overloaded(
                f"Bodies that wait for their answer may have {self._max_pending_bytes} bytes together. "
                f"Received: {more_bytes} beside {self.pending_bytes}.",
                0.0,
            )


class PendingBody:
    """What one body takes of the memory for all, until everyone who holds it has let go of it."""

    def __init__(self, admission: Admission) -> None:
        self.held_bytes = 0
        self._admission = admission
        self._holders = 1

    def take(self, more_bytes: int) -> None:
        """Raises Overloaded. Bodies take as they arrive: a slow one keeps nobody out by its length."""
        self._admission.take(more_bytes, self.held_bytes)
        self.held_bytes += more_bytes

    def drop(self) -> None:
        """Nothing of it is here any more, whoever holds it."""
        self._admission.give_back(self.held_bytes)
        self.held_bytes = 0

    def hold(self) -> None:
        """For one more, who is to let go of it too."""
        self._holders += 1

    def let_go(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()


def _overloaded(message: str, retry_seconds: float) -> Overloaded:
    return Overloaded(message, max(_LEAST_RETRY_SECONDS, math.ceil(retry_seconds)))
