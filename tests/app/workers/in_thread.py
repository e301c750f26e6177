"""Classifier processes as threads of the test, with a classifier that the test chooses."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Thread
from typing import NamedTuple

from app.workers.classify import ImageClassifier
from app.workers.pool import ClassifierPool
from app.workers.process import answer_calls
from app.workers.protocol import ServedModel
from app.workers.queue import RowQueue


class ThreadHost:
    """Starts threads that classify with `images`; `join` waits for them."""

    def __init__(self, images: ImageClassifier) -> None:
        self._images = images
        self._threads: list[Thread] = []

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        thread = Thread(target=self._serve, args=(theirs,))
        thread.start()
        self._threads.append(thread)
        return ours

    def join(self) -> None:
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            answer_calls(connection, self._images)


def model_of(images: ImageClassifier) -> ServedModel:
    return ServedModel(images.model, {})


class Served(NamedTuple):
    """Always the same network."""

    model: ServedModel


def served(images: ImageClassifier) -> Served:
    return Served(model_of(images))


@asynccontextmanager
async def classifying(queue: RowQueue, images: ImageClassifier, threads: int = 1) -> AsyncIterator[None]:
    """A context in which the rows of the queue are classified."""
    host = ThreadHost(images)
    pool = ClassifierPool(queue, host, model_of(images), max_image_cpu_seconds=120)
    try:
        for _ in range(threads):
            await pool.connect(host.connect(), has_greeted=False)
        yield
    finally:
        pool.close()
    await asyncio.to_thread(host.join)  # after the loop has closed the connections
