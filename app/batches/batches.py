"""Batches by id: retries join the running batch or receive the cached answer, long ones are deferred (202).

Source: Snowflake documentation, "Remote service implementation": Snowflake may send a batch again with the
same id, also while it is still running; after a 202 it polls by GET, as often as it likes.
"""

import asyncio
import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from time import monotonic
from traceback import clear_frames
from typing import TYPE_CHECKING, NamedTuple

from app.admission import PendingBody
from app.errors import BatchUnknown, InvalidBatch, Overloaded, ServiceError, Stopped
from app.event_loop import Deadline
from app.names import MAX_ID_CHARACTERS

if TYPE_CHECKING:
    from app.batches.redis_store import RedisStore

# A client whose connection was cut retries within seconds; a cancelled query does not.
ABANDONED_SECONDS = 30.0
# After the grace period of the shutdown, in which all clients that still waited have been answered.
CLOSING_SECONDS = 3.0
# Hashing more than this takes a millisecond, which would block the event loop.
_HASHED_IN_PLACE_BYTES = 1024 * 1024


# No header holds a line break.
_KEY_SEPARATOR = "\n"


def check_batch_id(batch_id: str) -> str:
    """Return the id unchanged. Raises InvalidBatch if it is longer than Snowflake's, as ids are logged."""
    if len(batch_id) > MAX_ID_CHARACTERS:
        raise InvalidBatch(
            f"A batch's id must have at most {MAX_ID_CHARACTERS} characters. Received: {len(batch_id)}."
        )
    return batch_id


def key_of(batch_id: str, caller: str | None) -> str:
    """The key of a batch: callers do not share batches, so that none can read the answers of another."""
    return batch_id if caller is None else batch_id + _KEY_SEPARATOR + caller


@dataclass
class SentBatch:
    """A batch as the client sent it. Content, encoding and `evidence` determine its answer."""

    batch_id: str | None
    query_id: str | None
    content: bytes
    content_encoding: str
    evidence: bool
    pending: PendingBody = field(repr=False)
    caller: str | None = None

    def take_content(self) -> bytes:
        """Return the content and release it, as it must not stay in memory next to its parsed rows."""
        content, self.content = self.content, b""
        return content

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of everything that determines the answer; first computed before the content is taken."""
        digest = hashlib.sha256(f"{self.content_encoding}\n{self.evidence}\n".encode())
        digest.update(self.content)
        return digest.digest()


class CachedAnswer(NamedTuple):
    """The answer to the batch with this digest."""

    digest: bytes
    answer: bytes


class Batches:
    """All batches that have an id."""

    def __init__(
        self,
        classify: Callable[[SentBatch], Awaitable[bytes]],
        cache: "AnswerCache",
        sync_deadline_seconds: float | None,
        request_timeout_seconds: float | None = None,
        shared: "RedisStore | None" = None,
    ) -> None:
        """`request_timeout_seconds` also limits how long a batch waits for another replica's lease."""
        self.cache = cache
        self.shared = shared
        self._request_timeout_seconds = request_timeout_seconds
        self._classify = classify
        self._sync_deadline_seconds = sync_deadline_seconds
        self._running: dict[str, _RunningBatch] = {}
        # Deferred batches whose answer only this process has, with the time of the latest request for each.
        self._deferred: dict[str, float] = {}

    @property
    def has_deferred_answers(self) -> bool:
        """Whether clients are about to poll for answers that only this process has."""
        self._drop_abandoned()
        return bool(self._deferred)

    def __len__(self) -> int:
        """The number of running batches."""
        return sum(not running.task.done() for running in self._running.values())

    def knows(self, batch_id: str) -> bool:
        """Whether the batch runs here or its answer is cached, so that a request for it costs little."""
        return batch_id in self._running or self.cache.has(batch_id)

    async def answer(self, batch_id: str, batch: SentBatch) -> bytes | None:
        """The answer, or None if the batch outlasts the deadline: the client then polls for it.

        All clients that wait for a batch receive the same error.
        """
        answer = await self._answer(batch_id, batch)
        self._track_deferred(batch_id, is_deferred=answer is None)
        return answer

    async def poll(self, batch_id: str, pending: PendingBody | None = None) -> bytes | None:
        """The answer, or None while the batch runs.

        Raises BatchUnknown, the batch's own error, or Overloaded if `pending` finds no room.
        """
        try:
            answer = await self._poll(batch_id, pending)
        except Exception:
            self._deferred.pop(batch_id, None)
            raise
        self._track_deferred(batch_id, is_deferred=answer is None)
        return answer

    async def close(self) -> None:
        """Cancel running batches. With a shared store, which keeps their answers, they may finish first."""
        tasks = [running.task for running in self._running.values()]
        if self.shared is None:
            for task in tasks:
                task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSING_SECONDS)
            for task in late:
                task.cancel()
            if late:  # until they have released their leases
                await asyncio.wait(late, timeout=CLOSING_SECONDS)
        if self.shared is not None:
            await self.shared.close()

    async def _answer(self, batch_id: str, batch: SentBatch) -> bytes | None:
        digest = await _digest_of(batch)
        cached = await self._find(batch_id, batch.pending, digest)
        if cached is not None:
            return cached.answer
        running = self._running.get(batch_id)
        if running is None or running.has_failed or running.is_cancelled:
            running = self._start(batch_id, batch)
        elif running.batch.digest != digest:
            # The id belongs to other content, so this answer is not cached.
            return await self._classify(batch)
        else:
            batch.take_content()  # the running batch has the same
            batch.pending.drop()
        return await self._wait(running)

    async def _poll(self, batch_id: str, pending: PendingBody | None) -> bytes | None:
        if (running := self._running.get(batch_id)) is not None:
            return running.result() if running.task.done() else None
        if (cached := await self._find(batch_id, pending)) is not None:
            return cached.answer
        if self.shared is not None:
            if (batch := await self.shared.find_unfinished(batch_id)) is not None:
                self._restart(batch_id, batch)
                return None
            if await self.shared.is_leased(batch_id):
                return None
            # Another replica may have stored the answer and released its lease since the first look.
            if (cached := await self.shared.find(batch_id, pending)) is not None:
                return cached.answer
        raise BatchUnknown(
            "A client must send a batch before it polls for it, and poll while the answer is cached. "
            f"Received: {batch_id.partition(_KEY_SEPARATOR)[0][:80]!r}."
        )

    async def _find(
        self, batch_id: str, pending: PendingBody | None, digest: bytes | None = None
    ) -> CachedAnswer | None:
        cached = await self.cache.find(batch_id, pending, digest)
        if cached is None and self.shared is not None:
            cached = await self.shared.find(batch_id, pending, digest)
        return cached

    async def _wait(self, running: "_RunningBatch") -> bytes | None:
        with running:
            done, _ = await asyncio.wait({running.task}, timeout=self._sync_deadline_seconds)
            if not done and not await self._can_defer(running.batch):
                await asyncio.wait({running.task})
            if running.task.done():
                return running.result()
            running.is_deferred = True
            return None

    async def _can_defer(self, batch: SentBatch) -> bool:
        """Whether the client can poll for the answer: here, or with a shared store at any replica."""
        return self.shared is None or await self.shared.keep_unfinished(batch)

    def _restart(self, batch_id: str, batch: SentBatch) -> None:
        """Start a deferred batch of a replica that has died; without room for it now, a later poll does."""
        with batch.pending, suppress(Overloaded):
            batch.pending.take(len(batch.content))
            if batch_id not in self._running:
                self._start(batch_id, batch).is_deferred = True

    def _start(self, batch_id: str, batch: SentBatch) -> "_RunningBatch":
        """Raises Overloaded if a shared store needs a copy of the content and there is no room for it."""
        kept = batch
        if self.shared is not None:
            batch.pending.take(len(batch.content))
            kept = copy(batch)
        batch.pending.hold()
        run = (
            self._run(batch_id, batch)
            if self.shared is None
            else self._run_leased(batch_id, batch, self.shared)
        )
        running = self._running[batch_id] = _RunningBatch(asyncio.get_running_loop().create_task(run), kept)
        running.task.add_done_callback(lambda _: self._end(batch_id, running))
        return running

    async def _run(self, batch_id: str, batch: SentBatch) -> bytes:
        digest = batch.digest
        with self._deadline():
            answer = await self._classify(batch)
            await self.cache.keep(batch_id, CachedAnswer(digest, answer))
            return answer

    async def _run_leased(self, batch_id: str, batch: SentBatch, shared: "RedisStore") -> bytes:
        digest = batch.digest
        with self._deadline():
            async with shared.lease(batch_id) as cached:
                if cached is not None and cached.digest == digest:
                    return cached.answer
                try:
                    answer = await self._classify(batch)
                except ServiceError as error:
                    if not error.retryable:
                        await shared.discard_unfinished(batch_id)
                    raise
                await self.cache.keep(batch_id, CachedAnswer(digest, answer))
                await shared.keep(batch_id, CachedAnswer(digest, answer))
                return answer

    def _deadline(self) -> AbstractContextManager[object]:
        seconds = self._request_timeout_seconds
        return nullcontext() if seconds is None else Deadline(seconds)

    def _end(self, batch_id: str, running: "_RunningBatch") -> None:
        running.batch.take_content()
        running.batch.pending.let_go()
        if not running.task.cancelled() and (error := running.task.exception()) is not None:
            clear_frames(error.__traceback__)  # the error may be kept for a while, but not the rows
        if running.has_failed and running.is_deferred:  # the next poll returns the error
            asyncio.get_running_loop().call_later(ABANDONED_SECONDS, self._evict, batch_id, running)
        else:
            self._evict(batch_id, running)

    def _evict(self, batch_id: str, running: "_RunningBatch") -> None:
        if self._running.get(batch_id) is running:
            del self._running[batch_id]

    def _track_deferred(self, batch_id: str, *, is_deferred: bool) -> None:
        self._deferred.pop(batch_id, None)
        if is_deferred and self.shared is None:
            self._drop_abandoned()
            self._deferred[batch_id] = monotonic()

    def _drop_abandoned(self) -> None:
        now = monotonic()
        self._deferred = {one: at for one, at in self._deferred.items() if now - at < ABANDONED_SECONDS}


class _RunningBatch:
    """A context for each client that waits; some time after the last has left, the task is cancelled."""

    def __init__(self, task: asyncio.Future[bytes], batch: SentBatch) -> None:
        self.task = task
        self.batch = batch
        self.is_deferred = False
        """A client polls for the answer, so that the batch runs without one that waits."""
        self.is_cancelled = False
        self._clients = 0
        self._cancelling: asyncio.TimerHandle | None = None

    @property
    def has_failed(self) -> bool:
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)

    def result(self) -> bytes:
        """The result of the task, which must be done. Raises its error, and Stopped if it was cancelled."""
        if self.task.cancelled():
            raise Stopped("The service cancelled the batch before it was answered. Send it again.")
        return self.task.result()

    def __enter__(self) -> None:
        self._clients += 1
        if self._cancelling is not None:
            self._cancelling.cancel()
            self._cancelling = None

    def __exit__(self, *_: object) -> None:
        self._clients -= 1
        if self._clients == 0 and not self.is_deferred and not self.task.done():
            loop = asyncio.get_running_loop()
            self._cancelling = loop.call_later(ABANDONED_SECONDS, self._cancel)

    def _cancel(self) -> None:
        self.is_cancelled = True  # the task may take a while to end, and a retry must not join it
        self.task.cancel()


async def _digest_of(batch: SentBatch) -> bytes:
    if len(batch.content) > _HASHED_IN_PLACE_BYTES:
        return await asyncio.to_thread(lambda: batch.digest)
    return batch.digest


# The JSON of a thousand outcomes repeats itself, so that zlib's fastest level compresses it well.
_ZLIB_LEVEL = 1
# zlib takes as long to set up as a small answer takes to format.
_NOT_COMPRESSED_BYTES = 2048
# Smaller answers are compressed in less time than a thread needs to start.
_COMPRESSED_IN_PLACE_BYTES = 256 * 1024
# A fifth of a millisecond's work, and about what a connection buffers.
_DECOMPRESSED_IN_PLACE_BYTES = 128 * 1024
_MAX_CONCURRENT_DECOMPRESSIONS = 2
# Approximate memory of an entry in addition to its answer.
_OVERHEAD_BYTES = 600


@dataclass(frozen=True)
class _Entry:
    digest: bytes
    stored: bytes
    """The answer, compressed unless it is small."""
    answer_bytes: int
    """Before compression."""
    expires_at: float

    @property
    def size_bytes(self) -> int:
        return len(self.stored) + _OVERHEAD_BYTES


class AnswerCache:
    """Answers in memory, large ones compressed.

    Evicts those that expire, and the oldest while all exceed `max_bytes`.
    """

    def __init__(self, ttl_seconds: float, max_bytes: int) -> None:
        self.held_bytes = 0
        self._ttl_seconds = ttl_seconds
        self._max_bytes = max_bytes
        self._decompressions = asyncio.Semaphore(_MAX_CONCURRENT_DECOMPRESSIONS)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def has(self, batch_id: str) -> bool:
        self._evict_old()
        return batch_id in self._entries

    async def find(
        self, batch_id: str, pending: PendingBody | None = None, digest: bytes | None = None
    ) -> CachedAnswer | None:
        """The answer to a batch, if `digest` is None or the answer's.

        `pending` takes the bytes of a large answer in addition to those it holds. Raises Overloaded.
        """
        self._evict_old()
        entry = self._entries.get(batch_id)
        if entry is None or (digest is not None and entry.digest != digest):
            return None
        if pending is not None and entry.answer_bytes > _DECOMPRESSED_IN_PLACE_BYTES:
            pending.take(entry.answer_bytes)
        if entry.answer_bytes <= _NOT_COMPRESSED_BYTES:
            return CachedAnswer(entry.digest, entry.stored)
        return CachedAnswer(entry.digest, await self.decompress(entry.stored))

    async def keep(self, batch_id: str, cached: CachedAnswer) -> None:
        is_small = len(cached.answer) <= _NOT_COMPRESSED_BYTES
        stored = cached.answer if is_small else await compress(cached.answer)
        expires_at = monotonic() + self._ttl_seconds
        self._evict(batch_id)
        entry = _Entry(cached.digest, stored, len(cached.answer), expires_at)
        self._entries[batch_id] = entry
        self.held_bytes += entry.size_bytes
        self._evict_old()

    async def decompress(self, compressed: bytes, pending: PendingBody | None = None) -> bytes:
        """Undo `compress`. Large answers are decompressed in threads, two at a time.

        `pending` takes the bytes of a large answer whose length the caller does not know. Raises Overloaded.
        """
        beginning = zlib.decompressobj()
        answer = beginning.decompress(compressed, _DECOMPRESSED_IN_PLACE_BYTES)
        if beginning.eof:
            return answer
        async with self._decompressions:
            answer = await asyncio.to_thread(zlib.decompress, compressed)
            if pending is not None:
                pending.take(len(answer))
            return answer

    def _evict_old(self) -> None:
        now = monotonic()
        while self._entries:
            batch_id, entry = next(iter(self._entries.items()))
            if entry.expires_at > now and self.held_bytes <= self._max_bytes:
                return
            self._evict(batch_id)

    def _evict(self, batch_id: str) -> None:
        if (entry := self._entries.pop(batch_id, None)) is not None:
            self.held_bytes -= entry.size_bytes


async def compress(answer: bytes) -> bytes:
    """Compress with zlib; a large answer in a thread."""
    if len(answer) <= _COMPRESSED_IN_PLACE_BYTES:
        return zlib.compress(answer, _ZLIB_LEVEL)
    return await asyncio.to_thread(zlib.compress, answer, _ZLIB_LEVEL)
