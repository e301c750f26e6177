"""Keeps the event loop responsive and fair: one large request at a time, turns of callers, deadlines.

Each large request works in steps of about a millisecond and lets other tasks run between two steps. When
many large requests are ready together, each of them runs one step in every turn of the loop, and a small
request waits for all of these steps. Large requests therefore work one after the other.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, Self, cast

from app.errors import DeadlineExceeded

# Joining more takes over a millisecond.
_JOINED_IN_PLACE_BYTES = 1024 * 1024


async def join_pieces(pieces: Sequence[bytes], joined_bytes: int) -> bytes:
    """The joined pieces; large ones are joined in a thread, so that the event loop can run other tasks."""
    if joined_bytes > _JOINED_IN_PLACE_BYTES:
        return await asyncio.to_thread(b"".join, pieces)
    return b"".join(pieces)


class FairSlots:
    """A semaphore that serves callers in turn, and the tasks of one caller in the order of their arrival."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._waiting: dict[str | None, deque[asyncio.Future[None]]] = {}
        """By caller, the next first."""

    @asynccontextmanager
    async def of(self, caller: str | None) -> AsyncIterator[None]:
        await self._acquire(caller)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, caller: str | None) -> None:
        if self._free:  # then no task waits
            self._free -= 1
            return
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(slot)
        try:
            await slot
        except asyncio.CancelledError:
            if not slot.cancelled():  # the task received the slot before it was cancelled
                self._release()
            raise

    def _release(self) -> None:
        while self._waiting:
            caller = next(iter(self._waiting))
            slots = self._waiting.pop(caller)
            slot = slots.popleft()
            if slots:
                self._waiting[caller] = slots
            if not slot.cancelled():
                slot.set_result(None)
                return
        self._free += 1


# Work on fewer rows is a fraction of a millisecond.
MAX_SMALL_ROWS = 64
_MAX_SMALL_BYTES = 256 * 1024
# A row is [number, source] or [number, source, options].
_COMMAS_PER_ROW = 3
GZIP_MAGIC = b"\x1f\x8b"


_NO_TURN: AbstractAsyncContextManager[None] = nullcontext()


class BulkTurn:
    """Serialises the work of large requests, by callers in turn. Small requests do not wait for it."""

    def __init__(self) -> None:
        self._turn = FairSlots(1)

    def of_rows(self, rows: int, caller: str | None = None) -> AbstractAsyncContextManager[None]:
        """Work that takes one step for every few hundred rows."""
        return self._turn.of(caller) if rows > MAX_SMALL_ROWS else _NO_TURN

    def of_body(
        self, body: bytes, encoding: str, caller: str | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Decompression and parsing of a JSON body. A few compressed bytes can hold thousands of rows."""
        is_compressed = encoding != "identity" or body.startswith(GZIP_MAGIC)
        is_small = len(body) <= _MAX_SMALL_BYTES and not _has_more_commas(
            body, _COMMAS_PER_ROW * MAX_SMALL_ROWS
        )
        return _NO_TURN if is_small and not is_compressed else self._turn.of(caller)


def _has_more_commas(body: bytes, most: int) -> bool:
    """Base64 has none, and `find` passes over it several times faster than `count` does."""
    at = -1
    for _ in range(most + 1):
        at = body.find(b",", at + 1)
        if at < 0:
            return False
    return True


class Deadline:
    """A context that raises DeadlineExceeded if its body takes longer.

    It cancels the task as `asyncio.timeout` does, which takes three times as long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_over = False

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._task = cast("asyncio.Task[Any]", asyncio.current_task(loop))  # a coroutine runs in a task
        self._cancelling = self._task.cancelling()
        self._timer = loop.call_later(self._seconds, self.end)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        if (
            self._is_over
            and self._task.uncancel() <= self._cancelling
            and isinstance(error, asyncio.CancelledError)
        ):
            raise DeadlineExceeded(
                f"The request took longer than {self._seconds:g} seconds. Send it again."
            ) from None

    def end(self) -> None:
        """Let the time be over now."""
        if not self._is_over:
            self._is_over = True
            self._task.cancel()
