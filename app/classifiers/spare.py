"""One classifier process beyond the usual count, for small requests while slow images hold all others.

It is forked when it is first needed and ends when it has been idle for a while, so that usual loads neither
pay for it nor notice it. The system shares the cores among all that are busy then.
"""

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic

from app.classifiers.connection import Classifier
from app.row_queue import QueuedRow, RowQueue

IDLE_SECONDS = 30.0
# One image that takes longer is for the others, while small requests wait.
MAX_CALL_SECONDS = 0.5
_START_AGAIN_SECONDS = 5.0


class Spare:
    """Fed by the pool, with rows that the other processes have no time for."""

    def __init__(
        self,
        start: Callable[[], None],
        take_back: Callable[[Classifier], None],
        queue: RowQueue,
        *,
        is_allowed: bool,
    ) -> None:
        """`take_back` ends a process and gives its rows to the others."""
        self._is_allowed = is_allowed
        self._start = start
        self._take_back = take_back
        self._queue = queue
        self._process: Classifier | None = None
        self._start_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    def look(self, others: Sequence[Classifier]) -> None:
        """Called at intervals while calls are out."""
        for process in others if self._process is None else [*others, self._process]:
            process.note_slow()
        self._help_out(others)
        if not (self._is_allowed and _are_held_up(others) and self._is_wanted(others)):
            return
        if self._process is None:
            self._start_once()
        elif self._process.busy_seconds() > MAX_CALL_SECONDS:
            self._take_back(self._process)
            self.note_lost()
            self._start_at = 0.0
            self._start_once()
        else:
            self.feed(others)

    def feed(self, others: Sequence[Classifier]) -> None:
        """A call, if the process is idle, others are held up, and a small request waits."""
        process = self._process
        if process is None or process.calls or not _are_held_up(others):
            return
        if rows := self._queue.next_small_rows() or self._take_stuck(others):
            process.call(rows)

    def note_ready(self, process: Classifier) -> None:
        self._process = process
        self.note_idle()

    def note_idle(self) -> None:
        self._stop_timer()
        self._idle_timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end_idle)

    def note_lost(self) -> None:
        self._stop_timer()
        self._process = None

    def close(self) -> None:
        self._stop_timer()

    def _start_once(self) -> None:
        if (now := monotonic()) >= self._start_at:
            self._start_at = now + _START_AGAIN_SECONDS
            self._start()

    def _end_idle(self) -> None:
        if self._process is not None and not self._process.calls:
            self._process.leave()
            self.note_lost()

    def _stop_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _help_out(self, others: Sequence[Classifier]) -> None:
        """What waits behind a slow call is for an idle process, if there is one."""
        for idle in others:
            if not idle.calls and (rows := self._take_stuck(others)):
                idle.call(rows)

    def _is_wanted(self, others: Sequence[Classifier]) -> bool:
        return self._queue.has_small_waiting or any(process.stuck_call() for process in others)

    def _take_stuck(self, others: Sequence[Classifier]) -> list[QueuedRow]:
        """Rows that wait behind a slow call; whichever process answers them first counts."""
        for process in others:
            if (call := process.stuck_call()) is not None:
                call.is_repeated = True
                return call.rows
        return []


def _are_held_up(processes: Sequence[Classifier]) -> bool:
    return bool(processes) and all(process.is_slow and process.calls for process in processes)
