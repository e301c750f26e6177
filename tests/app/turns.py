"""How often the event loop serves others while something runs."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def turns_during(work: Coroutine[Any, Any, object]) -> int:
    """How often another task ran during `work`."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    await work
    counting.cancel()
    return turns
