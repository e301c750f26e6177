"""An event loop whose clock a test puts forward, in place of waiting."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


class Clock(asyncio.SelectorEventLoop):
    ahead_seconds = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_seconds


def run_with_clock(work: Coroutine[None, None, T]) -> T:
    with asyncio.Runner(loop_factory=Clock) as runner:
        return runner.run(work)


def put_forward(seconds: float) -> None:
    """The clock of the running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Clock)
    loop.ahead_seconds += seconds
