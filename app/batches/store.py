"""Answers remembered in this process's memory, for a while and up to a size."""

import asyncio
import hashlib
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from time import monotonic
from typing import NamedTuple, Protocol

from app.admission import PendingBody


@dataclass
class SentBatch:
    """A batch as it was sent. Its answer follows from its content, the encoding of that, and `evidence`."""

    batch_id: str | None
    query_id: str | None
    content: bytes
    content_encoding: str
    evidence: bool
    pending: PendingBody = field(repr=False)

    def take_content(self) -> bytes:
        """Once: it is not kept beside the rows that it becomes."""
        content, self.content = self.content, b""
        return content

    @cached_property
    def digest(self) -> bytes:
        """Of all that the answer follows from, first asked for while the content is there."""
        digest = hashlib.sha256(f"{self.content_encoding}\n{self.evidence}\n".encode())
        digest.update(self.content)
        return digest.digest()


class Remembered(NamedTuple):
    """The answer to a batch with this digest."""

    digest: bytes
    answer: bytes


class AnswerStore(Protocol):
    """Where answers are remembered."""

    is_shared: bool
    """With other processes, which may have to begin a batch anew."""
    is_available: bool

    @property
    def held_bytes(self) -> int: ...

    async def look(self) -> None:
        """Whether it is available, so that `is_available` is true of now."""
        ...

    def has(self, batch_id: str) -> bool:
        """At hand."""
        ...

    async def find(
        self, batch_id: str, pending: PendingBody | None = None, digest: bytes | None = None
    ) -> Remembered | None:
        """The answer to a batch, and where `digest` is given, to one with that digest.

        `pending` takes the bytes of a large answer in addition to what it holds. Raises Overloaded.
        """
        ...

    async def keep(self, batch_id: str, remembered: Remembered) -> None: ...

    def claim(self, batch_id: str) -> AbstractAsyncContextManager[Remembered | None]:
        """The right to classify a batch, or what another process that had it has answered meanwhile."""
        ...

    async def keep_unfinished(self, batch: SentBatch) -> bool:
        """So that another process can begin anew what this one may not end. False if it could not."""
        ...

    async def forget_unfinished(self, batch_id: str) -> None:
        """Of one that would fail again wherever it is begun anew."""
        ...

    async def find_unfinished(self, batch_id: str) -> SentBatch | None:
        """One that nobody classifies any more."""
        ...

    async def is_claimed(self, batch_id: str) -> bool: ...

    async def close(self) -> None: ...


# JSON of a thousand outcomes says the same thing a thousand times; the fastest level sees that.
_ZLIB_LEVEL = 1
# Less than this is done before a thread could have begun.
_COMPRESSED_IN_PLACE_BYTES = 256 * 1024
# A fifth of a millisecond's work, and about what a connection buffers.
_DECOMPRESSED_IN_PLACE_BYTES = 128 * 1024
_MAX_CONCURRENT_DECOMPRESSIONS = 2
# What an entry takes beside its answer, about.
_OVERHEAD_BYTES = 600


@dataclass(frozen=True)
class _Entry:
    digest: bytes
    compressed: bytes
    answer_bytes: int
    """Before compression."""
    forgotten_at: float

    @property
    def size_bytes(self) -> int:
        return len(self.compressed) + _OVERHEAD_BYTES


class MemoryStore:
    """The oldest answers are forgotten first: when their time is over, or others need their room."""

    is_shared = False
    is_available = True

    def __init__(self, remembered_seconds: float, max_bytes: int) -> None:
        self.held_bytes = 0
        self._remembered_seconds = remembered_seconds
        self._max_bytes = max_bytes
        self._decompressions = asyncio.Semaphore(_MAX_CONCURRENT_DECOMPRESSIONS)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def look(self) -> None:
        """It is."""

    def has(self, batch_id: str) -> bool:
        self._forget_old()
        return batch_id in self._entries

    async def find(
        self, batch_id: str, pending: PendingBody | None = None, digest: bytes | None = None
    ) -> Remembered | None:
        self._forget_old()
        entry = self._entries.get(batch_id)
        if entry is None or (digest is not None and entry.digest != digest):
            return None
        if pending is not None and entry.answer_bytes > _DECOMPRESSED_IN_PLACE_BYTES:
            pending.take(entry.answer_bytes)
        return Remembered(entry.digest, await self.decompress(entry.compressed))

    async def decompress(self, compressed: bytes, pending: PendingBody | None = None) -> bytes:
        """Undo `compress`; of a large answer in a thread, two at a time.

        Raises Overloaded where `pending` finds no room for an answer whose length was not known before.
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

    async def keep(self, batch_id: str, remembered: Remembered) -> None:
        entry = _Entry(
            remembered.digest,
            await compress(remembered.answer),
            len(remembered.answer),
            monotonic() + self._remembered_seconds,
        )
        self._forget(batch_id)
        self._entries[batch_id] = entry
        self.held_bytes += entry.size_bytes
        self._forget_old()

    @asynccontextmanager
    async def claim(self, batch_id: str) -> AsyncIterator[Remembered | None]:  # noqa: ARG002 - nobody else can
        yield None

    async def keep_unfinished(self, batch: SentBatch) -> bool:  # noqa: ARG002
        """It is unfinished here, where it is asked for."""
        return True

    async def forget_unfinished(self, batch_id: str) -> None:
        """None is kept."""

    async def find_unfinished(self, batch_id: str) -> SentBatch | None:  # noqa: ARG002
        return None

    async def is_claimed(self, batch_id: str) -> bool:  # noqa: ARG002
        return False

    async def close(self) -> None:
        """What this process's memory holds goes with it."""

    def _forget_old(self) -> None:
        now = monotonic()
        while self._entries:
            batch_id, entry = next(iter(self._entries.items()))
            if entry.forgotten_at > now and self.held_bytes <= self._max_bytes:
                return
            self._forget(batch_id)

    def _forget(self, batch_id: str) -> None:
        if (entry := self._entries.pop(batch_id, None)) is not None:
            self.held_bytes -= entry.size_bytes


async def compress(answer: bytes) -> bytes:
    """With zlib; a large answer in a thread."""
    if len(answer) <= _COMPRESSED_IN_PLACE_BYTES:
        return zlib.compress(answer, _ZLIB_LEVEL)
    return await asyncio.to_thread(zlib.compress, answer, _ZLIB_LEVEL)
