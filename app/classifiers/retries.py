"""Rows whose process has died: classified one by one, so that only the one it died over is to blame."""

from collections import deque
from collections.abc import Callable, Iterable

from app.classifiers.connection import Call, Classifier
from app.errors import ClassifierDied, ClassifyTimeout
from app.outcome import ModelIdentity, outcome_of_error
from app.row_queue import QueuedRow, RowQueue
from model.errors import InputError

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
