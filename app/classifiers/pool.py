"""The classifier processes as the service sees them: fed from the queue, replaced when they die.

All of it happens on the event loop.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from time import monotonic, perf_counter
from typing import cast

from app.classifiers.frames import (
    Answers,
    FrameReader,
    ServedModel,
    format_rows,
    parse_answers,
    parse_greeting,
)
from app.classifiers.host import Host
from app.errors import ClassifierDied, ClassifyTimeout
from app.log import logger
from app.outcome import outcome_of_error
from app.row_queue import QueuedRow, RowQueue
from app.steps import CallSeconds
from model.errors import InputError

# One that is being answered and one that lies ready, so that no core waits for the event loop.
CALLS_AT_ONCE = 2
# A process may die of something else than the image that it has, but hardly with the same image each time.
MAX_DEATHS = 3
# A process that did not come up is asked for again so much later.
RETRY_SECONDS = 1.0


class ClassifierPool:
    """Takes rows from the queue to whichever process has room."""

    def __init__(self, queue: RowQueue, host: Host, model: ServedModel, max_image_cpu_seconds: float) -> None:
        self.model = model
        """The network that the processes hold, which are to be connected now."""
        self._queue = queue
        self._host = host
        self._max_image_cpu_seconds = max_image_cpu_seconds
        # The latest to become idle first: it has the network and the code in its core's cache.
        self._ready: list[_Classifier] = []
        self._connected: set[_Classifier] = set()
        self._retired: set[_Classifier] = set()
        self._none_retired = asyncio.Event()
        self._again: deque[QueuedRow] = deque()
        self._replacing: set[asyncio.Task[None]] = set()
        self._is_closed = False
        queue.on_put = self._give_out

    @property
    def size(self) -> int:
        """Processes that can classify."""
        return len(self._ready)

    async def connect(self, connection: socket.socket, *, has_greeted: bool = True) -> None:
        """To a process that can classify, or is about to say so."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: _Classifier(self, has_greeted=has_greeted), sock=connection)

    async def switch(self, host: Host, model: ServedModel, connections: Iterable[socket.socket]) -> None:
        """Classify with these processes from now on. Returns once the others have ended their calls."""
        self._none_retired.clear()
        self._retired |= self._connected
        self._connected.clear()
        self._ready.clear()
        for replacing in self._replacing:
            replacing.cancel()
        self._host, self.model = host, model
        for connection in connections:
            await self.connect(connection)
        for classifier in list(self._retired):
            self._leave_when_idle(classifier)
        if self._retired:
            await self._none_retired.wait()

    def close(self) -> None:
        self._is_closed = True
        for replacing in self._replacing:
            replacing.cancel()
        for classifier in self._connected | self._retired:
            classifier.leave()

    def connected(self, classifier: "_Classifier") -> None:
        """Which may not have said yet that it can classify."""
        self._connected.add(classifier)

    def join(self, classifier: "_Classifier") -> None:
        """It has room."""
        self._ready.insert(0, classifier)
        self._give_out()

    def answered(self, classifier: "_Classifier", rows: Sequence[QueuedRow], answers: Answers) -> None:
        if classifier in self._retired:
            self._leave_when_idle(classifier)
        else:
            self._ready.remove(classifier)
            self.join(classifier)
        self._queue.capacity.note_classified(len(rows), answers.decode_seconds + answers.predict_seconds)
        _tell(rows, answers)

    def lost(self, classifier: "_Classifier") -> None:
        """Its rows are classified one by one, so that only the one it died over is to blame.

        A process that takes too long ends itself.
        """
        if self._is_closed or classifier.has_left:
            return
        logger.warning("A classifier process died.")
        is_retired = classifier in self._retired
        if is_retired:
            self._forget_retired(classifier)
        self._connected.discard(classifier)
        if classifier in self._ready:
            self._ready.remove(classifier)
        begun, *unbegun = classifier.calls or [[]]
        self._queue.capacity.note_classified(len(begun), classifier.busy_seconds())
        if len(begun) == 1 and classifier.busy_seconds() >= self._max_image_cpu_seconds:
            self._give_up(begun[0], self._timeout())
        else:
            for queued in begun:
                self._blame(queued._replace(deaths=queued.deaths + 1))
        self._again.extend(queued for rows in unbegun for queued in rows)
        if not is_retired:
            self._replace(0.0 if classifier.has_greeted else RETRY_SECONDS)
        self._give_out()

    def _leave_when_idle(self, classifier: "_Classifier") -> None:
        if not classifier.calls:
            classifier.leave()
            self._forget_retired(classifier)

    def _forget_retired(self, classifier: "_Classifier") -> None:
        self._retired.discard(classifier)
        if not self._retired:
            self._none_retired.set()

    def _give_out(self) -> None:
        while self._ready:
            classifier = min(self._ready, key=lambda classifier: len(classifier.calls))
            if len(classifier.calls) >= CALLS_AT_ONCE or not (rows := self._next_rows()):
                return
            classifier.call(rows)

    def _next_rows(self) -> list[QueuedRow]:
        while self._again:
            queued = self._again.popleft()
            if not queued.awaited.is_over:
                return [queued]
        return self._queue.next_rows()

    def _blame(self, queued: QueuedRow) -> None:
        if queued.deaths < MAX_DEATHS:
            self._again.append(queued)
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
        queued.awaited.answer(queued.place, outcome_of_error(error, self.model.identity))

    def _replace(self, after_seconds: float) -> None:
        task = asyncio.get_running_loop().create_task(self._connect_anew(after_seconds))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _connect_anew(self, after_seconds: float) -> None:
        await asyncio.sleep(after_seconds)
        try:
            await self.connect(self._host.connect(), has_greeted=False)
        except OSError as error:  # too many processes or open files, say
            logger.error("A classifier process cannot be started: %s", error)
            self._replace(RETRY_SECONDS)


class _Classifier(asyncio.Protocol):
    """One process, and the calls that it has not answered yet."""

    def __init__(self, pool: ClassifierPool, *, has_greeted: bool) -> None:
        self.calls: deque[list[QueuedRow]] = deque()
        self.has_greeted = has_greeted
        self.has_left = False
        """Told to, and not dead."""
        self._begun_at = 0.0
        self._pool = pool
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None

    def call(self, rows: list[QueuedRow]) -> None:
        if not self.calls:
            self._begun_at = monotonic()
        self.calls.append(rows)
        if self._transport is not None:
            self._transport.writelines(format_rows([queued.row for queued in rows]))

    def busy_seconds(self) -> float:
        """With the first of its calls, at most."""
        return monotonic() - self._begun_at

    def leave(self) -> None:
        self.has_left = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool.connected(self)
        if self.has_greeted:
            self._pool.join(self)

    def data_received(self, data: bytes) -> None:
        for content in self._reader.read(data):
            if self.has_greeted:
                answers = parse_answers(content, rows=len(self.calls[0]))  # or its connection ends
                self._begun_at = monotonic()
                self._pool.answered(self, self.calls.popleft(), answers)
            elif (refusal := parse_greeting(content).refusal) is None:
                self.has_greeted = True
                self._pool.join(self)
            else:  # it ends now
                logger.error("A classifier process cannot classify: %s", refusal)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
        self._pool.lost(self)


def _tell(rows: Sequence[QueuedRow], answers: Answers) -> None:
    call, ended = CallSeconds(answers.decode_seconds, answers.predict_seconds), perf_counter()
    for number, (queued, outcome) in enumerate(zip(rows, answers.outcomes, strict=True)):
        if (failure := answers.failures.get(number)) is not None:
            queued.awaited.fail(RuntimeError(f"A classifier process failed: {failure}"))
        else:
            queued.awaited.request.steps.note_call(call, len(rows), ended)
            if (image := answers.statistics.get(number)) is not None:
                queued.awaited.request.statistics.append(image)
            queued.awaited.answer(queued.place, outcome)
