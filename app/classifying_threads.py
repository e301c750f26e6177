"""The threads that classify what waits in the queue, a core each."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from app.image_classifier import ImageClassifier, StepSeconds
from app.row_queue import QueuedRow, RowQueue


@contextmanager
def classifying_threads(images: ImageClassifier, queue: RowQueue) -> Iterator[None]:
    """Take rows from the queue until the context ends."""
    with ThreadPoolExecutor(queue.threads, "classify") as pool:
        for _ in range(queue.threads):
            pool.submit(_classify_waiting, images, queue)
        try:
            yield
        finally:
            queue.close()


def _classify_waiting(images: ImageClassifier, queue: RowQueue) -> None:
    while rows := queue.take():
        _classify(images, rows)
        del rows  # images must not outlive their turn while the thread waits for the next


def _classify(images: ImageClassifier, rows: Sequence[QueuedRow]) -> None:
    try:
        outcomes, spent = images.classify(
            [queued.row.image for queued in rows], [queued.row.evidence for queued in rows]
        )
        share = StepSeconds(decode=spent.decode / len(rows), predict=spent.predict / len(rows))
        for queued, outcome in zip(rows, outcomes, strict=True):
            queued.awaited.answer(queued.place, outcome, share)
    except Exception as error:  # noqa: BLE001 - it is the request's failure, and the thread goes on
        _fail(images, rows, error)


def _fail(images: ImageClassifier, rows: Sequence[QueuedRow], error: Exception) -> None:
    """Rows may be of several requests, and only those that fail by themselves are to blame."""
    if len(rows) == 1:
        rows[0].awaited.fail(error)
        return
    for queued in rows:
        _classify(images, [queued])
