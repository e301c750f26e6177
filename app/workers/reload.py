"""SIGUSR1 reads the network anew, so that a better one needs no restart."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.telemetry import metrics
from app.telemetry.log import log_event, logger
from app.workers.pool import LiveClassifiers
from model.errors import ModelError


def ignore_until_ready() -> None:
    """A process that does not listen yet, or any more, would end of it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@contextmanager
def reloaded_by_signal(classifiers: LiveClassifiers) -> Iterator[None]:
    """Inside, each SIGUSR1 is a reload; only a process's main thread hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(_reload(classifiers))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGUSR1, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
        ignore_until_ready()
        for task in reloads:
            task.cancel()


async def _reload(classifiers: LiveClassifiers) -> None:
    earlier = classifiers.pool.model.identity
    try:
        model = await classifiers.reload()
    except (ModelError, OSError) as error:
        metrics.RELOADS.labels("refused").inc()
        logger.error("The network is not read anew, and %s goes on serving: %s", earlier["version"], error)
    else:
        metrics.RELOADS.labels("done").inc()
        log_event("reloaded", **model.identity, earlier_version=earlier["version"])
