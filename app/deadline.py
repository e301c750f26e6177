"""The longest that a request may take, whatever it waits for."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

from app.errors import DeadlineExceeded

A = TypeVar("A")
T = TypeVar("T")


class Deadline:
    """Cancels what is done inside when it takes longer, and raises DeadlineExceeded."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise DeadlineExceeded(
                f"A request must be answered within {self._seconds:g} seconds. Received: one that is not."
            ) from None


def within(seconds: float, work: Callable[[A], Awaitable[T]]) -> Callable[[A], Awaitable[T]]:
    """The same work, which raises DeadlineExceeded when it takes longer."""

    async def bounded(argument: A) -> T:
        async with Deadline(seconds):
            return await work(argument)

    return bounded
