"""Whoever asked may leave before the answer: a query is cancelled, a gateway's time is over."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")


async def while_caller_waits(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns. Cancels it, and raises ClientDisconnect, when the caller leaves before.

    The request's body must have been read to its end.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())  # after the body comes nothing but the disconnect
    leaving.add_done_callback(lambda _: working.cancel())
    try:
        return await working
    except asyncio.CancelledError:
        if leaving.done() and not leaving.cancelled():
            raise ClientDisconnect from None
        raise
    finally:
        leaving.cancel()
