"""Batch id → answer, running or remembered: a retry joins, a long batch is asked for later, none runs twice.

Source: Snowflake documentation, "Remote service implementation": a batch may be sent again with the same id,
also while it is still running; 202 makes Snowflake ask for it by GET, as often as it likes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from copy import copy
from time import monotonic
from traceback import clear_frames

from app.admission import PendingBody
from app.batches.store import AnswerStore, Remembered, SentBatch
from app.errors import BatchUnknown, InvalidBatch, Overloaded, ServiceError, Stopped
from app.event_loop import Deadline
from app.names import MAX_ID_CHARACTERS

# Whoever cut the connection asks again within seconds; a query that was cancelled does not.
ABANDONED_SECONDS = 30.0
# Beyond the grace period, in which all who still waited have been answered.
CLOSING_SECONDS = 3.0
# Hashing more than this takes a millisecond, which others need not wait for.
_HASHED_IN_PLACE_BYTES = 1024 * 1024


def check_batch_id(batch_id: str) -> str:
    """As it is. Raises InvalidBatch for one longer than any of Snowflake's: it is kept, and logged."""
    if len(batch_id) > MAX_ID_CHARACTERS:
        raise InvalidBatch(
            f"A batch's id must have at most {MAX_ID_CHARACTERS} characters. Received: {len(batch_id)}."
        )
    return batch_id


class Batches:
    """All batches that have an id. Without one, there is nothing to remember an answer by."""

    def __init__(
        self,
        classify: Callable[[SentBatch], Awaitable[bytes]],
        store: AnswerStore,
        sync_deadline_seconds: float | None,
        request_timeout_seconds: float | None = None,
    ) -> None:
        """`request_timeout_seconds` also limits how long a batch waits for another replica's lease."""
        self.store = store
        self._request_timeout_seconds = request_timeout_seconds
        self._classify = classify
        self._sync_deadline_seconds = sync_deadline_seconds
        self._running: dict[str, _Running] = {}
        # When each batch that was promised here, and that nobody else can answer, was last asked for.
        self._owed: dict[str, float] = {}

    @property
    def owes(self) -> bool:
        """Whether somebody is about to ask for what only this process can answer."""
        self._forget_unasked()
        return bool(self._owed)

    def __len__(self) -> int:
        """Those that run."""
        return sum(not running.task.done() for running in self._running.values())

    def knows(self, batch_id: str) -> bool:
        """It runs here, or its answer is at hand: to ask once more costs next to nothing."""
        return batch_id in self._running or self.store.has(batch_id)

    async def answer(self, batch_id: str, batch: SentBatch) -> bytes | None:
        """The answer, or None when it is not there within the deadline and is to be asked for.

        Raises whatever classifying it raises, to everyone who waits for it.
        """
        answer = await self._answer(batch_id, batch)
        self._note_owed(batch_id, is_owed=answer is None)
        return answer

    async def _answer(self, batch_id: str, batch: SentBatch) -> bytes | None:
        digest = await _digest_of(batch)
        remembered = await self.store.find(batch_id, batch.pending, digest)
        if remembered is not None:
            return remembered.answer
        running = self._running.get(batch_id)
        if running is None or running.has_failed or running.is_given_up:
            running = self._start(batch_id, batch)
        elif running.batch.digest != digest:
            return await self._classify(batch)  # not what the id stands for, and nothing to remember
        else:
            batch.take_content()  # it is here once already
            batch.pending.drop()
        return await self._wait(running)

    async def poll(self, batch_id: str, pending: PendingBody | None = None) -> bytes | None:
        """The answer, or None while it is not there.

        Raises BatchUnknown, what classifying has raised, or Overloaded where `pending` finds no room.
        """
        try:
            answer = await self._poll(batch_id, pending)
        except Exception:
            self._owed.pop(batch_id, None)
            raise
        self._note_owed(batch_id, is_owed=answer is None)
        return answer

    async def _poll(self, batch_id: str, pending: PendingBody | None) -> bytes | None:
        running = self._running.get(batch_id)
        if running is not None:
            return running.result() if running.task.done() else None
        if (remembered := await self.store.find(batch_id, pending)) is not None:
            return remembered.answer
        if (batch := await self.store.find_unfinished(batch_id)) is not None:
            self._begin_anew(batch_id, batch)
            return None
        if await self.store.is_claimed(batch_id):
            return None
        if (
            remembered := await self.store.find(batch_id, pending)
        ) is not None:  # answered while it was looked for
            return remembered.answer
        raise BatchUnknown(
            "A batch must have been sent before it is asked for, and not too long before. "
            f"Received: {batch_id[:80]!r}."
        )

    async def close(self) -> None:
        """End what runs. Answers that another process can give are waited for."""
        tasks = [running.task for running in self._running.values()]
        if not self.store.is_shared:
            for task in tasks:
                task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSING_SECONDS)
            for task in late:
                task.cancel()
            if late:  # to let go of what they hold, that others need not wait for it
                await asyncio.wait(late, timeout=CLOSING_SECONDS)
        await self.store.close()

    def _note_owed(self, batch_id: str, *, is_owed: bool) -> None:
        self._owed.pop(batch_id, None)
        if is_owed and not self.store.is_shared:
            self._forget_unasked()
            self._owed[batch_id] = monotonic()

    def _forget_unasked(self) -> None:
        now = monotonic()
        self._owed = {one: at for one, at in self._owed.items() if now - at < ABANDONED_SECONDS}

    async def _wait(self, running: "_Running") -> bytes | None:
        with running:
            done, _ = await asyncio.wait({running.task}, timeout=self._sync_deadline_seconds)
            if not done and not await self.store.keep_unfinished(running.batch):
                await asyncio.wait({running.task})  # what nobody else could answer is not promised
            if running.task.done():
                return running.result()
            running.promise()
            return None

    def _begin_anew(self, batch_id: str, batch: SentBatch) -> None:
        """What a process that has died had promised; later, if there is no room for it now."""
        with batch.pending, suppress(Overloaded):
            batch.pending.take(len(batch.content))
            if batch_id not in self._running:
                self._start(batch_id, batch).promise()

    def _start(self, batch_id: str, batch: SentBatch) -> "_Running":
        """Raises Overloaded where there is no room to keep it beside the rows that it becomes."""
        if self.store.is_shared:
            batch.pending.take(len(batch.content))
        batch.pending.hold()
        kept = copy(batch) if self.store.is_shared else batch
        task = asyncio.ensure_future(self._answer_anew(batch_id, batch, batch.digest))
        running = self._running[batch_id] = _Running(task, kept)
        task.add_done_callback(lambda _: self._end(batch_id, running))
        return running

    async def _answer_anew(self, batch_id: str, batch: SentBatch, digest: bytes) -> bytes:
        async with self._deadline(), self.store.claim(batch_id) as remembered:
            if remembered is not None and remembered.digest == digest:
                return remembered.answer
            answer = await self._classify_or_forget(batch_id, batch)
            await self.store.keep(batch_id, Remembered(digest, answer))
            return answer

    def _deadline(self) -> AbstractAsyncContextManager[None]:
        seconds = self._request_timeout_seconds
        return nullcontext() if seconds is None else Deadline(seconds)

    async def _classify_or_forget(self, batch_id: str, batch: SentBatch) -> bytes:
        try:
            return await self._classify(batch)
        except ServiceError as error:
            if not error.retryable:
                await self.store.forget_unfinished(batch_id)
            raise

    def _end(self, batch_id: str, running: "_Running") -> None:
        running.batch.take_content()
        running.batch.pending.let_go()
        if not running.task.cancelled() and (error := running.task.exception()) is not None:
            clear_frames(error.__traceback__)  # the error may be kept for a while, but not the rows
        if running.has_failed and running.is_promised:  # whoever asks for it is to be told
            asyncio.get_running_loop().call_later(ABANDONED_SECONDS, self._forget, batch_id, running)
        else:
            self._forget(batch_id, running)

    def _forget(self, batch_id: str, running: "_Running") -> None:
        if self._running.get(batch_id) is running:
            del self._running[batch_id]


class _Running:
    """A batch that is being classified, and who waits for it; cancelled some time after the last has left."""

    def __init__(self, task: asyncio.Future[bytes], batch: SentBatch) -> None:
        self.task = task
        self.batch = batch
        self.is_promised = False
        self.is_given_up = False
        self._callers = 0
        self._cancelling: asyncio.TimerHandle | None = None

    @property
    def has_failed(self) -> bool:
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)

    def result(self) -> bytes:
        """Of the task that is done. Raises what it has raised, and Stopped if it was cancelled."""
        if self.task.cancelled():
            raise Stopped("The batch was given up before its answer was there. Send it again.")
        return self.task.result()

    def promise(self) -> None:
        """It will be asked for, whoever leaves."""
        self.is_promised = True

    def __enter__(self) -> None:
        self._callers += 1
        if self._cancelling is not None:
            self._cancelling.cancel()
            self._cancelling = None

    def __exit__(self, *_: object) -> None:
        self._callers -= 1
        if self._callers == 0 and not self.is_promised and not self.task.done():
            loop = asyncio.get_running_loop()
            self._cancelling = loop.call_later(ABANDONED_SECONDS, self._give_up)

    def _give_up(self) -> None:
        """Whoever comes back now finds it begun anew."""
        self.is_given_up = True
        self.task.cancel()


async def _digest_of(batch: SentBatch) -> bytes:
    if len(batch.content) > _HASHED_IN_PLACE_BYTES:
        return await asyncio.to_thread(lambda: batch.digest)
    return batch.digest
