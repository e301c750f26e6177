"""One classifier process as the service sees it: the calls it has, and what it answers."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Protocol, cast

from app.errors import ClassifierDied, ClassifyTimeout
from app.outcome import CallSeconds, ModelIdentity, outcome_of_error
from app.workers.protocol import (
    STALLED_LOOKS,
    STOPPED_LOOKS,
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
from app.workers.resource_limits import MOST_SECONDS_A_CPU_SECOND
from model.errors import InputError

# A call that takes longer holds up whatever waits behind it.
SLOW_CALL_SECONDS = 0.1
# The process ends itself when an image takes too long; this is for one whose timer cannot fire.
_GRACE_LOOKS = 10


@dataclass
class Call:
    """Rows that a process has been given together."""

    rows: list[QueuedRow]
    is_repeated: bool = False
    """Another process has been given the same rows; whichever answers first counts."""


class Owner(Protocol):
    """Log lines about classifier processes that die or cannot start, limited in number."""

    def connected(self, classifier: "Classifier") -> None: ...

    def greeted(self, classifier: "Classifier", greeting: Greeting) -> None: ...

    def answered(self, classifier: "Classifier", rows: list[QueuedRow], answers: Answers) -> None: ...

    def lost(self, classifier: "Classifier") -> None: ...


class Classifier(asyncio.Protocol):
    """One process, and the calls that it has not answered yet."""

    def __init__(
        self, owner: Owner, *, has_greeted: bool, pid: int | None = None, is_spare: bool = False
    ) -> None:
        self.calls: deque[Call] = deque()
        self.has_greeted = has_greeted
        self.has_answered = False
        self.has_left = False
        """Told to, and not dead."""
        self.is_closed = False
        self.has_been_killed = False
        self.pid = pid
        self.is_spare = is_spare
        self.is_slow = False
        """Its latest call, or the one it is at, is slow."""
        self.refusal: str | None = None
        """Why it cannot classify."""
        self.fault = ""
        """Why its connection was ended, for the log."""
        self._begun_at = 0.0
        self._owner = owner
        self._reader = FrameReader()
        self._watch: StallWatch | None = None
        self._stopped_looks = 0
        self._transport: asyncio.Transport | None = None

    def call(self, rows: list[QueuedRow]) -> None:
        if not self.calls:
            self._begun_at = monotonic()
        self.calls.append(Call(rows))
        if self._transport is not None:
            self._transport.writelines(format_rows([queued.row for queued in rows]))

    def busy_seconds(self) -> float:
        """With the first of its calls, at most."""
        return monotonic() - self._begun_at if self.calls else 0.0

    def has_taken(self, cpu_seconds: float) -> bool:
        """Whether it may have ended itself over its call; one that stalled used no CPU time."""
        return not self.has_been_killed and self.busy_seconds() >= cpu_seconds

    def note_slow(self) -> None:
        """And whose rows make it so, which are then small no more whatever their number."""
        if self.busy_seconds() >= SLOW_CALL_SECONDS:
            self.is_slow = True
            rows = self.calls[0].rows
            if self.busy_seconds() >= SLOW_CALL_SECONDS * len(rows):
                for queued in rows:
                    queued.awaited.request.is_costly = True

    def stuck_call(self) -> Call | None:
        """Rows of small requests that wait behind a slow call, and that no other process has been given."""
        if not self.is_slow or len(self.calls) < 2:
            return None
        call = self.calls[1]
        is_small = all(queued.awaited.request.is_small for queued in call.rows)
        return call if is_small and not call.is_repeated else None

    def has_stalled(self, max_image_cpu_seconds: float) -> bool:
        """Takes one look. True if the process is stopped, or its call makes no progress or is overdue.

        An idle process is looked at too: it may be next.
        """
        stat = None if self.pid is None else stat_of(self.pid)
        self._stopped_looks = self._stopped_looks + 1 if stat is not None and stat.is_stopped else 0
        if self.busy_seconds() < 1.0:
            return self._stopped_looks >= STOPPED_LOOKS
        if self._watch is None:
            steps = len(self.calls[0].rows) + 1  # each image is decoded, then all are predicted
            max_looks = steps * MOST_SECONDS_A_CPU_SECOND * max_image_cpu_seconds + _GRACE_LOOKS
            self._watch = StallWatch(STALLED_LOOKS, max_looks)
        return self._watch.has_stalled(stat and stat.ticks) or self._stopped_looks >= STOPPED_LOOKS

    def leave(self) -> None:
        self.has_left = True
        self.disconnect()

    def disconnect(self, fault: str = "") -> None:
        self.fault = fault
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._owner.connected(self)

    def data_received(self, data: bytes) -> None:
        try:
            for content in self._reader.read(data):
                self._read(content)
        except ValueError as error:
            self.disconnect(f"It sent something other than answers: {str(error)[:200]!r}.")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
        self.is_closed = True
        self._owner.lost(self)

    def _read(self, content: bytes) -> None:
        if not self.has_greeted:
            greeting = parse_greeting(content)
            if greeting.model is None:
                self.refusal = str(greeting.refusal)
                self.disconnect()
                return
            self.pid, self.has_greeted = greeting.pid, True
            self._owner.greeted(self, greeting)
            return
        if not self.calls:
            raise ValueError("answers to no call")
        answers = parse_answers(content, rows=len(self.calls[0].rows))
        self.is_slow = self.busy_seconds() >= SLOW_CALL_SECONDS
        self.has_answered = True
        self._watch, self._begun_at = None, monotonic()
        self._owner.answered(self, self.calls.popleft().rows, answers)


def deliver(rows: Sequence[QueuedRow], answers: Answers) -> None:
    """To the requests that the rows are of."""
    call, ended = CallSeconds(answers.decode_seconds, answers.predict_seconds), perf_counter()
    for number, (queued, outcome) in enumerate(zip(rows, answers.outcomes, strict=True)):
        if (failure := answers.failures.get(number)) is not None:
            queued.awaited.fail(RuntimeError(f"A classifier process failed: {failure}"))
        elif queued.awaited.answer(queued.place, outcome):
            queued.awaited.request.steps.note_call(call, len(rows), ended)
            if (image := answers.statistics.get(number)) is not None:
                queued.awaited.request.statistics.append(image)


# A process may die of something else than the image that it has, but hardly with the same image each time.
MAX_DEATHS = 3


class Retries:
    """Rows that are classified once more, before those that wait in the queue."""

    def __init__(
        self, queue: RowQueue, max_image_cpu_seconds: float, model: Callable[[], ModelIdentity]
    ) -> None:
        self._queue = queue
        self._max_image_cpu_seconds = max_image_cpu_seconds
        self._model = model
        self._rows: deque[QueuedRow] = deque()

    def add(self, classifier: Classifier) -> None:
        """The rows of a process that has died. One that takes too long over an image ends itself."""
        begun, *unbegun = [call.rows for call in classifier.calls] or [[]]
        self._queue.capacity.note_classified(len(begun), classifier.busy_seconds())
        if len(begun) == 1 and classifier.has_taken(self._max_image_cpu_seconds):
            self._give_up(begun[0], self._timeout())
        else:
            for queued in begun:
                self._blame(queued._replace(deaths=queued.deaths + 1))
        self._rows.extend(queued for rows in unbegun for queued in rows)

    def add_blameless(self, calls: Iterable[Call]) -> None:
        self._rows.extend(queued for call in calls for queued in call.rows)

    def next_rows(self) -> list[QueuedRow]:
        """One, or none."""
        while self._rows:
            queued = self._rows.popleft()
            if not queued.awaited.is_over:
                return [queued]
        return []

    def fail(self, error: Exception) -> None:
        while self._rows:
            self._rows.popleft().awaited.fail(error)

    def _blame(self, queued: QueuedRow) -> None:
        if queued.deaths < MAX_DEATHS:
            self._rows.append(queued)
            return
        error = ClassifierDied(
            "An image must be classified without ending the process that does it. "
            f"Received: an image with which {queued.deaths} ended.",
            retryable=True,
        )
        self._give_up(queued, error)

    def _timeout(self) -> ClassifyTimeout:
        return ClassifyTimeout(
            f"An image must be classified in at most {self._max_image_cpu_seconds:g} seconds of CPU time. "
            "Received: an image that takes longer."
        )

    def _give_up(self, queued: QueuedRow, error: InputError) -> None:
        queued.awaited.answer(queued.place, outcome_of_error(error, self._model()))
