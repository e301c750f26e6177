"""The classifier processes as the service sees them: fed from the queue, replaced when they die.

All of it happens on the event loop, except for what blocks in the host.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from itertools import chain
from types import TracebackType
from typing import Self

from app.errors import NoClassifier
from app.settings import Settings
from app.telemetry.log import log_event, logger
from app.workers.connection import Classifier, Retries, deliver
from app.workers.host import ClassifierProcesses, Host
from app.workers.protocol import Answers, Greeting, ServedModel
from app.workers.queue import QueuedRow, RowQueue
from app.workers.starting import Notices, Spare, Starter

# A process that died is replaced within a fraction of this. Not ready at once would let an image that kills
# a service's only process take the service out of its load balancer.
GRACE_SECONDS = 2.0


class Availability:
    """True until no process has been ready for the grace period, and again once one is."""

    def __init__(self, on_unavailable: Callable[[], None]) -> None:
        self.is_available = True
        self._on_unavailable = on_unavailable
        self._timer: asyncio.TimerHandle | None = None

    def note(self, ready_processes: int) -> None:
        """Their number has changed."""
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
        logger.error("No classifier process is ready: requests are answered 503 until one is.")
        self._on_unavailable()


def no_classifier() -> NoClassifier:
    return NoClassifier(
        "A classifier process must be ready to classify images. Received: none is. Send it again."
    )


# One that is being answered and one that lies ready, so that no core waits for the event loop.
CALLS_AT_ONCE = 2
# A process that did not come up is asked for again so much later, and later each time.
RETRY_SECONDS = 0.5
_LOOK_SECONDS = 0.1
_LOOKS_A_SECOND = 10


class ClassifierPool:
    """Takes rows from the queue to whichever process has room."""

    def __init__(
        self,
        queue: RowQueue,
        host: Host,
        model: ServedModel,
        max_image_cpu_seconds: float,
        *,
        has_spare: bool = False,
    ) -> None:
        """`has_spare`: small requests may have a process of their own beside slow images."""
        self.model = model
        """The network that the processes hold, which are to be connected now."""
        self._queue = queue
        self._host = host
        self._max_image_cpu_seconds = max_image_cpu_seconds
        # The latest to become idle first: it has the network and the code in its core's cache.
        self._ready: list[Classifier] = []
        self._connected: set[Classifier] = set()
        self._retired: set[Classifier] = set()
        self._none_retired = asyncio.Event()
        self._retries = Retries(queue, max_image_cpu_seconds, lambda: self.model.identity)
        self._notices = Notices()
        self._starter = self._make_starter()
        self._spare = Spare(self._start_spare, self._take_back, queue, is_allowed=has_spare)
        self._availability = Availability(self._fail_waiting)
        self._looks = 0
        self._look_timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        queue.on_put = self._give_out

    @property
    def size(self) -> int:
        """Processes that can classify, without the spare one."""
        return len(self._ready)

    @property
    def is_available(self) -> bool:
        """False once no process has been ready for some seconds: requests are then refused."""
        return self._availability.is_available

    async def connect(
        self, connection: socket.socket, *, has_greeted: bool = True, pid: int | None = None
    ) -> Classifier:
        """To a process that can classify, or is about to say so."""
        return await self._connect(connection, Classifier(self, has_greeted=has_greeted, pid=pid))

    async def switch(
        self,
        host: Host,
        model: ServedModel,
        connections: Iterable[socket.socket],
        pids: Iterable[int | None],
    ) -> None:
        """Classify with these processes from now on. Returns once the others have ended their calls."""
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
        if self._look_timer is not None:
            self._look_timer.cancel()
        for classifier in self._connected | self._retired:
            classifier.leave()

    def connected(self, classifier: Classifier) -> None:
        """Which may not have said yet that it can classify."""
        self._connected.add(classifier)
        if classifier.has_greeted:
            self._join(classifier)

    def greeted(self, classifier: Classifier, greeting: Greeting) -> None:
        """A host that was started again has read the files as they are now, which may be a newer network."""
        self._starter.pace.note_greeting()
        if greeting.model is not None and greeting.model.identity != self.model.identity:
            self._adopt(greeting.model, classifier)
        self._join(classifier)

    def answered(self, classifier: Classifier, rows: list[QueuedRow], answers: Answers) -> None:
        self._starter.pace.note_answers()
        failed_rows = sum(outcome is None or outcome["error"] is not None for outcome in answers.outcomes)
        call_seconds = answers.decode_seconds + answers.predict_seconds
        self._queue.capacity.note_classified(len(rows), call_seconds, failed_rows)
        if classifier in self._retired:
            self._leave_when_idle(classifier)
        elif classifier.is_spare:
            self._spare.note_idle()
        else:
            self._ready.remove(classifier)
            self._ready.insert(0, classifier)
        self._give_out()
        deliver(rows, answers)

    def lost(self, classifier: Classifier) -> None:
        """Its rows are classified one by one, so that only the one it died over is to blame.

        A process that takes too long ends itself.
        """
        if self._is_closed or classifier.has_left:
            self._connected.discard(classifier)
            return
        if classifier.refusal is None:
            self._notices.died(classifier.fault)
        else:
            self._notices.cannot_classify(classifier.refusal)
        self._retries.add(classifier)
        if classifier in self._retired:
            self._forget_retired(classifier)
        elif classifier.is_spare:
            self._spare.note_lost()
        else:
            self._replace(classifier)
        self._connected.discard(classifier)
        self._give_out()

    def _join(self, classifier: Classifier) -> None:
        """It has room."""
        if classifier.is_spare:
            self._spare.note_ready(classifier)
        else:
            self._ready.insert(0, classifier)
            self._availability.note(len(self._ready))
        self._give_out()

    def _replace(self, classifier: Classifier) -> None:
        if classifier in self._ready:
            self._ready.remove(classifier)
            self._availability.note(len(self._ready))
        if classifier.has_greeted:
            self._starter.pace.note_crash()
        else:
            self._starter.pace.note_failure()
        self._starter.start_one()

    def _adopt(self, model: ServedModel, newcomer: Classifier) -> None:
        """One network answers at a time: processes that hold the earlier one are replaced."""
        log_event("reloaded", **model.identity, earlier_version=self.model.identity["version"])
        self.model = model
        missing = len(self._ready)
        self._retire({classifier for classifier in self._connected if classifier.has_greeted} - {newcomer})
        for _ in range(missing):
            self._starter.start_one()

    def _retire(self, classifiers: set[Classifier]) -> None:
        leaving = set(classifiers)
        self._retired |= leaving
        self._connected -= leaving
        self._ready = [classifier for classifier in self._ready if classifier not in leaving]
        self._availability.note(len(self._ready))
        self._spare.note_lost()
        for classifier in leaving:
            self._leave_when_idle(classifier)

    def _leave_when_idle(self, classifier: Classifier) -> None:
        if not classifier.calls:
            classifier.leave()
            self._forget_retired(classifier)

    def _forget_retired(self, classifier: Classifier) -> None:
        self._retired.discard(classifier)
        if not self._retired:
            self._none_retired.set()

    def _give_out(self) -> None:
        if not self.is_available:
            self._fail_waiting()
            return
        while classifiers := [one for one in self._ready if len(one.calls) < self._calls_at_once(one)]:
            if not (rows := self._retries.next_rows() or self._queue.next_rows()):
                break
            min(classifiers, key=lambda classifier: len(classifier.calls)).call(rows)
        self._spare.feed(self._ready)
        if self._look_timer is None and self._has_calls():
            self._look_timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _has_calls(self) -> bool:
        """Retired processes count: one that is stopped at a call would otherwise never be killed."""
        return any(classifier.calls for classifier in chain(self._connected, self._retired))

    def _calls_at_once(self, classifier: Classifier) -> int:
        """Behind a slow call, a small request would wait for longer than a core does for the event loop."""
        return 1 if classifier.is_slow and self._queue.has_small_lately else CALLS_AT_ONCE

    def _look(self) -> None:
        """At the calls that are out, ten times a second."""
        self._look_timer = None
        self._looks += 1
        self._spare.look(self._ready)
        self._queue.on_look()
        if self._looks % _LOOKS_A_SECOND == 0:
            for classifier in self._connected | self._retired:
                if classifier.has_stalled(self._max_image_cpu_seconds):
                    self._kill(classifier)
                    classifier.disconnect("It made no progress and was killed.")
        self._give_out()

    def _kill(self, classifier: Classifier) -> None:
        classifier.has_been_killed = True
        if classifier.pid is not None:
            self._host.kill(classifier.pid)

    def _take_back(self, classifier: Classifier) -> None:
        """What the spare process is at costs more than small requests may; the others are to do it."""
        self._retries.add_blameless(classifier.calls)
        classifier.calls.clear()
        self._kill(classifier)
        classifier.leave()

    def _fail_waiting(self) -> None:
        error = no_classifier()
        self._retries.fail(error)
        self._queue.fail_waiting(error)

    def _start_spare(self) -> None:
        self._starter.start_spare()

    def _make_starter(self) -> Starter:
        return Starter(self._host, self._connect_new, self._healthy, lambda: RETRY_SECONDS, self._notices)

    async def _connect_new(self, connection: socket.socket, is_spare: bool) -> Classifier:
        return await self._connect(connection, Classifier(self, has_greeted=False, is_spare=is_spare))

    async def _connect(self, connection: socket.socket, classifier: Classifier) -> Classifier:
        await asyncio.get_running_loop().create_connection(lambda: classifier, sock=connection)
        return classifier

    def _healthy(self) -> set[int]:
        known = self._connected | self._retired
        return {classifier.pid for classifier in known if classifier.pid is not None}


class LiveClassifiers:
    """Classifies what the queue has while the context lasts; whoever still waits then is not answered."""

    def __init__(
        self, settings: Settings, queue: RowQueue, processes: ClassifierProcesses, model: ServedModel
    ) -> None:
        self.pool = ClassifierPool(
            queue,
            processes.host,
            model,
            settings.max_image_cpu_seconds,
            has_spare=settings.engine == "litert",  # TensorFlow takes all cores, and memory for each process
        )
        self._settings = settings
        self._processes = processes
        self._reloading = asyncio.Lock()

    async def __aenter__(self) -> Self:
        for connection, pid in zip(self._processes.hand_over(), self._processes.pids, strict=True):
            await self.pool.connect(connection, pid=pid)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.close()
        await asyncio.to_thread(self._processes.close)

    async def reload(self) -> ServedModel:
        """Read the network anew; it takes over once it is verified, warm, and right about its golden image.

        No row waits for it: what served goes on serving until then, or for ever. Raises ArtifactError.
        """
        async with self._reloading:
            processes = await asyncio.to_thread(ClassifierProcesses, self._settings)
            try:
                model = await asyncio.to_thread(processes.wait_until_ready)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(processes.close))
                raise
            earlier, self._processes = self._processes, processes
            await self.pool.switch(processes.host, model, processes.hand_over(), processes.pids)
            await asyncio.to_thread(earlier.close)
            return model
