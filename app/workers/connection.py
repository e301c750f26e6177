"""The connection to one classifier process, with its calls and progress, and retries after a crash."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Protocol, cast

from app.errors import ClassifierDied, ClassifyTimeout
from app.outcome import CallSeconds, ModelIdentity, outcome_of_error
from app.workers.protocol import (
    MAX_SECONDS_PER_CPU_SECOND,
    STALLED_CHECKS,
    STOPPED_CHECKS,
    Answers,
    FrameReader,
    Greeting,
    StallWatch,
    format_rows,
    parse_answers,
    parse_greeting,
    stat_of,
)
from app.workers.queue import QueuedRow, RowQueue
from model.errors import InputError

# Calls that wait behind a longer one are delayed noticeably.
SLOW_CALL_SECONDS = 0.1
# A process ends itself when an image takes too long; the service kills it later if its timer cannot fire.
_GRACE_CHECKS = 10


@dataclass
class Call:
    """Rows sent to a process together."""

    rows: list[QueuedRow]
    is_repeated: bool = False
    """Another process has received the same rows; the first answer counts."""


class ConnectionEvents(Protocol):
    """Callbacks of a connection."""

    def connected(self, connection: "ClassifierConnection") -> None: ...

    def greeted(self, connection: "ClassifierConnection", greeting: Greeting) -> None: ...

    def answered(
        self, connection: "ClassifierConnection", rows: list[QueuedRow], answers: Answers
    ) -> None: ...

    def lost(self, connection: "ClassifierConnection") -> None: ...


class ClassifierConnection(asyncio.Protocol):
    """One classifier process, and the calls that it has not answered yet."""

    def __init__(
        self, events: ConnectionEvents, *, has_greeted: bool, pid: int | None = None, is_spare: bool = False
    ) -> None:
        self.calls: deque[Call] = deque()
        self.has_greeted = has_greeted
        self.has_left = False
        """The service closed the connection; the process did not crash."""
        self.is_closed = False
        self.was_killed = False
        self.pid = pid
        self.is_spare = is_spare
        self.is_slow = False
        """Its latest or current call is slow."""
        self.refusal: str | None = None
        """Why the process cannot classify."""
        self.fault = ""
        """Why the service closed the connection, for the log."""
        self._call_started_at = 0.0
        self._events = events
        self._reader = FrameReader()
        self._watch: StallWatch | None = None
        self._stopped_checks = 0
        self._transport: asyncio.Transport | None = None

    @property
    def rows(self) -> int:
        """Rows that it has received and not answered."""
        return sum(len(call.rows) for call in self.calls)

    def call(self, rows: list[QueuedRow]) -> None:
        if not self.calls:
            self._call_started_at = monotonic()
        self.calls.append(Call(rows))
        if self._transport is not None:
            self._transport.writelines(format_rows([queued.row for queued in rows]))

    def busy_seconds(self) -> float:
        """The maximum time that it has spent on its first call."""
        return monotonic() - self._call_started_at if self.calls else 0.0

    def may_have_timed_out(self, cpu_seconds: float) -> bool:
        """Whether it may have reached its time limit. One that the service killed has used no CPU time."""
        return not self.was_killed and self.busy_seconds() >= cpu_seconds

    def update_slow(self) -> None:
        """Mark a slow call, and requests of which each row is slow: those no longer count as small."""
        if self.busy_seconds() >= SLOW_CALL_SECONDS:
            self.is_slow = True
            rows = self.calls[0].rows
            if self.busy_seconds() >= SLOW_CALL_SECONDS * len(rows):
                for queued in rows:
                    queued.group.request.is_costly = True

    def blocked_call(self) -> Call | None:
        """A call of small requests that waits behind a slow one, and that no other process has received."""
        if not self.is_slow or len(self.calls) < 2:
            return None
        call = self.calls[1]
        is_small = all(queued.group.request.is_small for queued in call.rows)
        return call if is_small and not call.is_repeated else None

    def has_stalled(self, max_image_cpu_seconds: float) -> bool:
        """Check once whether the process is stopped, or its call makes no progress or takes too long.

        An idle process may be stopped too, and the next call would go to it.
        """
        stat = None if self.pid is None else stat_of(self.pid)
        self._stopped_checks = self._stopped_checks + 1 if stat is not None and stat.is_stopped else 0
        if self.busy_seconds() < 1.0:
            return self._stopped_checks >= STOPPED_CHECKS
        if self._watch is None:
            steps = len(self.calls[0].rows) + 1  # it decodes each image, then it predicts all of them
            max_checks = steps * MAX_SECONDS_PER_CPU_SECOND * max_image_cpu_seconds + _GRACE_CHECKS
            self._watch = StallWatch(STALLED_CHECKS, max_checks)
        return self._watch.has_stalled(stat and stat.ticks) or self._stopped_checks >= STOPPED_CHECKS

    def leave(self) -> None:
        """Close the connection, upon which the process ends."""
        self.has_left = True
        self.disconnect()

    def disconnect(self, fault: str = "") -> None:
        self.fault = fault
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._events.connected(self)

    def data_received(self, data: bytes) -> None:
        try:
            for content in self._reader.read(data):
                self._read(content)
        except ValueError as error:
            self.disconnect(f"It sent an invalid frame: {str(error)[:200]!r}.")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
        self.is_closed = True
        self._events.lost(self)

    def _read(self, content: bytes) -> None:
        if not self.has_greeted:
            greeting = parse_greeting(content)
            if greeting.model is None:
                self.refusal = str(greeting.refusal)
                self.disconnect()
                return
            self.pid, self.has_greeted = greeting.pid, True
            self._events.greeted(self, greeting)
            return
        if not self.calls:
            raise ValueError("answers to no call")
        answers = parse_answers(content, rows=len(self.calls[0].rows))
        self.is_slow = self.busy_seconds() >= SLOW_CALL_SECONDS
        self._watch, self._call_started_at = None, monotonic()
        self._events.answered(self, self.calls.popleft().rows, answers)


def deliver(rows: Sequence[QueuedRow], answers: Answers) -> None:
    """Pass the answers to a call on to the requests of its rows."""
    call, ended = CallSeconds(answers.decode_seconds, answers.predict_seconds), perf_counter()
    for number, (queued, outcome) in enumerate(zip(rows, answers.outcomes, strict=True)):
        if (failure := answers.failures.get(number)) is not None:
            queued.group.fail(RuntimeError(f"A classifier process failed: {failure}"))
        elif queued.group.answer(queued.place, outcome):
            queued.group.request.steps.note_call(call, len(rows), ended)
            if (image := answers.statistics.get(number)) is not None:
                queued.group.request.statistics.append(image)


# Other causes than its image may crash a process, but hardly with the same image each time.
MAX_CRASHES = 3


class Retries:
    """Rows of crashed processes. They are classified one by one, and before the rows of the queue."""

    def __init__(
        self, queue: RowQueue, max_image_cpu_seconds: float, model: Callable[[], ModelIdentity]
    ) -> None:
        self._queue = queue
        self._max_image_cpu_seconds = max_image_cpu_seconds
        self._model = model
        self._rows: deque[QueuedRow] = deque()

    def add_crashed(self, connection: ClassifierConnection) -> None:
        """Retry the rows of a crashed process. Only those of its first call may have caused the crash."""
        started, *waiting = [call.rows for call in connection.calls] or [[]]
        self._queue.capacity.record_classified(len(started), connection.busy_seconds())
        if len(started) == 1 and connection.may_have_timed_out(self._max_image_cpu_seconds):
            self._fail(started[0], self._timeout())
        else:
            for queued in started:
                self._count_crash(queued._replace(crashes=queued.crashes + 1))
        self._rows.extend(queued for rows in waiting for queued in rows)

    def add_calls(self, calls: Iterable[Call]) -> None:
        """Retry rows that caused no crash."""
        self._rows.extend(queued for call in calls for queued in call.rows)

    @property
    def has_rows(self) -> bool:
        return bool(self._rows)

    def next_rows(self) -> list[QueuedRow]:
        """One row, or none."""
        while self._rows:
            queued = self._rows.popleft()
            if not queued.group.is_done:
                return [queued]
        return []

    def fail(self, error: Exception) -> None:
        while self._rows:
            self._rows.popleft().group.fail(error)

    def _count_crash(self, queued: QueuedRow) -> None:
        if queued.crashes < MAX_CRASHES:
            self._rows.append(queued)
            return
        error = ClassifierDied(
            "A process must classify an image without crashing. "
            f"Received: an image with which {queued.crashes} processes crashed.",
            retryable=True,
        )
        self._fail(queued, error)

    def _timeout(self) -> ClassifyTimeout:
        return ClassifyTimeout(
            f"An image must be classified in at most {self._max_image_cpu_seconds:g} seconds of CPU time. "
            "Received: an image that takes longer."
        )

    def _fail(self, queued: QueuedRow, error: InputError) -> None:
        queued.group.answer(queued.place, outcome_of_error(error, self._model()))
