"""The threads that classify what waits in the queue, a core each."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from app.image_classifier import ImageClassifier
from app.row_queue import RowQueue, Turn


@contextmanager
def classifying_threads(images: ImageClassifier, queue: RowQueue, threads: int) -> Iterator[None]:
    """So many threads take rows from the queue, until the context ends and nothing waits any more."""
    with ThreadPoolExecutor(threads, "classify") as pool:
        for _ in range(threads):
            pool.submit(_classify_waiting, images, queue)
        try:
            yield
        finally:
            queue.close(threads)


def _classify_waiting(images: ImageClassifier, queue: RowQueue) -> None:
    while (turn := queue.take()) is not None:
        _classify(images, turn)
        del turn  # an image must not outlive its turn while the thread waits for the next


def _classify(images: ImageClassifier, turn: Turn) -> None:
    try:
        [outcome], spent = images.classify([turn.row.image], [turn.row.evidence])
    except Exception as error:  # noqa: BLE001 - it is the request's failure, and the thread goes on
        turn.awaited.fail(error)
    else:
        turn.awaited.answer(turn.place, outcome, spent)
