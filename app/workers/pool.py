"""The pool of classifier processes: calls, replacement after a crash, and model reload by SIGUSR1.

It runs on the event loop; the host's blocking calls run in threads.
"""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from types import TracebackType
from typing import Self

from app.errors import NoClassifier
from app.settings import Settings
from app.telemetry import metrics
from app.telemetry.log import log_event, logger
from app.workers.connection import ClassifierConnection, Retries, deliver
from app.workers.protocol import Answers, Greeting, ServedModel
from app.workers.queue import QueuedRow, RowQueue
from app.workers.starting import ClassifierProcesses, FaultLog, ForkServer, SpareProcess, Starter
from model.errors import ModelError


class LiveClassifiers:
    """A context in which classifier processes take rows from the queue."""

    def __init__(
        self, settings: Settings, queue: RowQueue, processes: ClassifierProcesses, model: ServedModel
    ) -> None:
        self.pool = ClassifierPool(
            queue,
            processes.host,
            model,
            settings.max_image_cpu_seconds,
            has_spare=settings.engine == "litert",  # TensorFlow uses all cores, and memory for each process
        )
        self._settings = settings
        self._processes = processes
        self._reloading = asyncio.Lock()
        self.has_started = False

    async def __aenter__(self) -> Self:
        for connection, pid in zip(self._processes.take_connections(), self._processes.pids, strict=True):
            await self.pool.connect(connection, pid=pid)
        self.has_started = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.close()
        await asyncio.to_thread(self._processes.close)

    async def reload(self) -> ServedModel:
        """Load the network again and switch to it, once it is verified, warm and passes its self-test.

        No row waits for a reload, and after one that fails the earlier network continues to serve. Raises
        ArtifactError.
        """
        async with self._reloading:
            processes = await asyncio.to_thread(ClassifierProcesses, self._settings)
            try:
                model = await asyncio.to_thread(processes.wait_until_ready)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(processes.close))
                raise
            earlier, self._processes = self._processes, processes
            await self.pool.switch(processes.host, model, processes.take_connections(), processes.pids)
            await asyncio.to_thread(earlier.close)
            return model


def ignore_reload_signal() -> None:
    """Ignore SIGUSR1, whose default action would end the process before it is ready and during shutdown."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@contextmanager
def reload_on_signal(classifiers: LiveClassifiers) -> Iterator[None]:
    """A context in which SIGUSR1 starts a reload. Only the main thread of a process receives signals."""
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
        ignore_reload_signal()
        for task in reloads:
            task.cancel()


async def _reload(classifiers: LiveClassifiers) -> None:
    earlier = classifiers.pool.model.identity
    try:
        model = await classifiers.reload()
    except (ModelError, OSError) as error:
        metrics.RELOADS.labels("refused").inc()
        logger.error("The reload failed, and network %s continues to serve: %s", earlier["version"], error)
    else:
        metrics.RELOADS.labels("done").inc()
        log_model("reloaded", model, earlier_version=earlier["version"])


def log_model(event: str, model: ServedModel, **more: str) -> None:
    """Log which network answers from now on, and a warning if its preprocessing is unconfirmed."""
    log_event(event, **model.identity, **more)
    if model.card.get("is_unchecked"):
        logger.warning(
            "Nothing confirms that the network's preprocessing is right. Check it with images: "
            "ext-classify verify FILE --try DIR. Checked with: %s",
            model.card.get("preprocessing_check"),
        )


# A second call waits at the process, so that no core waits for the event loop.
MAX_CALLS_PER_PROCESS = 2
_CHECK_SECONDS = 0.1
_CHECKS_PER_SECOND = 10


class ClassifierPool:
    """Sends rows from the queue to the processes."""

    def __init__(
        self,
        queue: RowQueue,
        host: ForkServer,
        model: ServedModel,
        max_image_cpu_seconds: float,
        *,
        has_spare: bool = False,
    ) -> None:
        """`has_spare` allows a spare process for small requests while slow images occupy the others."""
        self.model = model
        """The network of the processes."""
        self._queue = queue
        self._host = host
        self._max_image_cpu_seconds = max_image_cpu_seconds
        # The last one to answer comes first: its core has the network and the code in its cache.
        self._ready: list[ClassifierConnection] = []
        self._connected: set[ClassifierConnection] = set()
        self._retired: set[ClassifierConnection] = set()
        self._none_retired = asyncio.Event()
        self._retries = Retries(queue, max_image_cpu_seconds, lambda: self.model.identity)
        self._faults = FaultLog()
        self._starter = self._make_starter()
        self._spare = SpareProcess(self._start_spare, self._reassign, queue, is_allowed=has_spare)
        self._availability = _Availability(self._fail_waiting)
        self._checks = 0
        self._check_timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        queue.on_put = self._dispatch

    @property
    def size(self) -> int:
        """The number of processes that can classify, without the spare one."""
        return len(self._ready)

    @property
    def is_available(self) -> bool:
        """False once no process has been ready for some seconds: the service then rejects requests."""
        return self._availability.is_available

    async def connect(
        self,
        connection: socket.socket,
        *,
        has_greeted: bool = True,
        pid: int | None = None,
        is_spare: bool = False,
    ) -> ClassifierConnection:
        """Add a process, which sends a greeting first unless `has_greeted`."""
        classifier = ClassifierConnection(self, has_greeted=has_greeted, pid=pid, is_spare=is_spare)
        await asyncio.get_running_loop().create_connection(lambda: classifier, sock=connection)
        return classifier

    async def switch(
        self,
        host: ForkServer,
        model: ServedModel,
        connections: Iterable[socket.socket],
        pids: Iterable[int | None],
    ) -> None:
        """Replace all processes by these. Returns once the earlier ones have answered their calls."""
        self._none_retired.clear()
        self._starter.close()
        self._host, self.model = host, model
        self._starter = self._make_starter()
        self._retire(self._connected)
        for connection, pid in zip(connections, pids, strict=True):
            await self.connect(connection, pid=pid)
        if self._retired:
            await self._none_retired.wait()

    def close(self) -> None:
        self._is_closed = True
        self._starter.close()
        self._availability.close()
        self._spare.close()
        if self._check_timer is not None:
            self._check_timer.cancel()
        for classifier in self._connected | self._retired:
            classifier.leave()

    def connected(self, classifier: ClassifierConnection) -> None:
        self._connected.add(classifier)
        if classifier.has_greeted:
            self._add_ready(classifier)

    def greeted(self, classifier: ClassifierConnection, greeting: Greeting) -> None:
        """A restarted fork server has read the files as they are now, which may contain another network."""
        self._starter.backoff.reset_failures()
        if greeting.model is not None and greeting.model.identity != self.model.identity:
            self._switch_model(greeting.model, classifier)
        self._add_ready(classifier)

    def answered(self, classifier: ClassifierConnection, rows: list[QueuedRow], answers: Answers) -> None:
        self._starter.backoff.reset()
        failed_rows = sum(outcome is None or outcome["error"] is not None for outcome in answers.outcomes)
        call_seconds = answers.decode_seconds + answers.predict_seconds
        self._queue.capacity.record_classified(len(rows), call_seconds, failed_rows)
        if classifier in self._retired:
            self._leave_when_idle(classifier)
        elif classifier.is_spare:
            self._spare.set_idle()
        else:
            self._ready.remove(classifier)
            self._ready.insert(0, classifier)
        self._dispatch()
        deliver(rows, answers)

    def lost(self, classifier: ClassifierConnection) -> None:
        """Retry its rows one by one, to find the one that crashes a process."""
        if self._is_closed or classifier.has_left:
            self._connected.discard(classifier)
            return
        if classifier.refusal is None:
            self._faults.log_crash(classifier.fault)
        else:
            self._faults.log_refusal(classifier.refusal)
        self._retries.add_crashed(classifier)
        if classifier in self._retired:
            self._remove_retired(classifier)
        elif classifier.is_spare:
            self._spare.remove()
        else:
            self._replace(classifier)
        self._connected.discard(classifier)
        self._dispatch()

    def _add_ready(self, classifier: ClassifierConnection) -> None:
        if classifier.is_spare:
            self._spare.set_ready(classifier)
        else:
            self._ready.insert(0, classifier)
            self._availability.update(len(self._ready))
        self._dispatch()

    def _replace(self, classifier: ClassifierConnection) -> None:
        if classifier in self._ready:
            self._ready.remove(classifier)
            self._availability.update(len(self._ready))
        if classifier.has_greeted:
            self._starter.backoff.count_crash()
        else:
            self._starter.backoff.count_failure()
        self._starter.start_one()

    def _switch_model(self, model: ServedModel, newcomer: ClassifierConnection) -> None:
        """Replace the processes of the earlier network, as only one network answers at a time."""
        log_model("reloaded", model, earlier_version=self.model.identity["version"])
        self.model = model
        missing = len(self._ready)
        self._retire({classifier for classifier in self._connected if classifier.has_greeted} - {newcomer})
        for _ in range(missing):
            self._starter.start_one()

    def _retire(self, classifiers: set[ClassifierConnection]) -> None:
        leaving = set(classifiers)
        self._retired |= leaving
        self._connected -= leaving
        self._ready = [classifier for classifier in self._ready if classifier not in leaving]
        self._availability.update(len(self._ready))
        self._spare.remove()
        for classifier in leaving:
            self._leave_when_idle(classifier)

    def _leave_when_idle(self, classifier: ClassifierConnection) -> None:
        if not classifier.calls:
            classifier.leave()
            self._remove_retired(classifier)

    def _remove_retired(self, classifier: ClassifierConnection) -> None:
        self._retired.discard(classifier)
        if not self._retired:
            self._none_retired.set()

    def _dispatch(self) -> None:
        if not self.is_available:
            self._fail_waiting()
            return
        while self._retries.has_rows or self._queue.waiting_rows:
            classifiers = [one for one in self._ready if len(one.calls) < self._max_calls(one)]
            if not classifiers or not (rows := self._retries.next_rows() or self._queue.next_rows()):
                break
            min(classifiers, key=lambda classifier: classifier.rows).call(rows)
        self._spare.dispatch(self._ready)
        if self._check_timer is None and self._has_calls():
            self._check_timer = asyncio.get_running_loop().call_later(_CHECK_SECONDS, self._check)

    def _has_calls(self) -> bool:
        """Includes retired processes: the service must also kill one that is stopped during a call."""
        return any(classifier.calls for classifier in chain(self._connected, self._retired))

    def _max_calls(self, classifier: ClassifierConnection) -> int:
        """One if a small request might have to wait behind a slow call."""
        is_small_delayed = classifier.is_slow and self._queue.had_small_recently
        return 1 if is_small_delayed else MAX_CALLS_PER_PROCESS

    def _check(self) -> None:
        """Check the running calls."""
        self._check_timer = None
        self._checks += 1
        self._spare.check(self._ready)
        self._queue.on_check()
        if self._checks % _CHECKS_PER_SECOND == 0:
            for classifier in self._connected | self._retired:
                if classifier.has_stalled(self._max_image_cpu_seconds):
                    self._kill(classifier)
                    classifier.disconnect("It made no progress and was killed.")
        self._dispatch()

    def _kill(self, classifier: ClassifierConnection) -> None:
        classifier.was_killed = True
        if classifier.pid is not None:
            self._host.kill(classifier.pid)

    def _reassign(self, classifier: ClassifierConnection) -> None:
        """End the spare process during a slow call, and give its rows to the others."""
        self._retries.add_calls(classifier.calls)
        classifier.calls.clear()
        self._kill(classifier)
        classifier.leave()

    def _fail_waiting(self) -> None:
        error = NoClassifier("No classifier process is ready. Send the request again.")
        self._retries.fail(error)
        self._queue.fail_waiting(error)

    def _start_spare(self) -> None:
        self._starter.start_spare()

    def _make_starter(self) -> Starter:
        return Starter(
            self._host,
            lambda connection, is_spare: self.connect(connection, has_greeted=False, is_spare=is_spare),
            self._healthy,
            self._faults,
        )

    def _healthy(self) -> set[int]:
        known = self._connected | self._retired
        return {classifier.pid for classifier in known if classifier.pid is not None}


# The pool replaces a crashed process within a fraction of this. Without a grace period, an image that crashes
# a service's only process would remove the service from its load balancer.
GRACE_SECONDS = 2.0


class _Availability:
    """Whether a process is ready or was within the grace period."""

    def __init__(self, on_unavailable: Callable[[], None]) -> None:
        self.is_available = True
        self._on_unavailable = on_unavailable
        self._timer: asyncio.TimerHandle | None = None

    def update(self, ready_processes: int) -> None:
        if ready_processes == 0:
            if self._timer is None and self.is_available:
                self._timer = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._end)
            return
        self.close()
        if not self.is_available:
            self.is_available = True
            logger.warning("The service can classify again.")

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        self.is_available = False
        logger.error("No classifier process is ready: requests receive 503 until one is.")
        self._on_unavailable()
