import asyncio
import gzip
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest

from app.event_loop import MAX_SMALL_ROWS, BulkTurn, FairSlots

SMALL = b'{"data": [%b]}' % b",".join([b'[0, "AAAA", {}]'] * MAX_SMALL_ROWS)
LARGE = SMALL * 2


def test_large_requests_take_turns() -> None:
    steps: list[int] = []

    async def work(turn: BulkTurn, number: int) -> None:
        async with turn.of_rows(MAX_SMALL_ROWS + 1) if number % 2 else turn.of_body(LARGE, "identity"):
            for _ in range(3):
                steps.append(number)
                await asyncio.sleep(0)

    async def check() -> None:
        turn = BulkTurn()
        await asyncio.gather(*(work(turn, number) for number in range(4)))

    asyncio.run(check())
    assert steps == [number for number in range(4) for _ in range(3)]


@pytest.mark.parametrize(
    ("body", "encoding", "waits"),
    [
        (SMALL, "identity", False),
        (b'{"data": [[0, "%b"]]}' % (b"A" * 200_000), "identity", False),
        (LARGE, "identity", True),
        (b'{"data": [[0, "%b"]]}' % (b"A" * 300_000), "identity", True),
        (SMALL, "deflate", True),
        (gzip.compress(SMALL, mtime=0), "gzip", True),
        (gzip.compress(SMALL, mtime=0), "identity", True),
    ],
)
def test_small_body_does_not_wait_for_large_ones(body: bytes, encoding: str, *, waits: bool) -> None:
    async def check() -> bool:
        turn = BulkTurn()

        async def work() -> None:
            async with turn.of_body(body, encoding):
                pass

        async with turn.of_rows(MAX_SMALL_ROWS + 1):
            async with turn.of_rows(MAX_SMALL_ROWS):
                working = asyncio.ensure_future(work())
                await asyncio.sleep(0)
            is_waiting = not working.done()
        await working
        return is_waiting

    assert asyncio.run(check()) == waits


def test_cancelled_request_gives_up_its_turn() -> None:
    async def check() -> None:
        turn = BulkTurn()

        async def work() -> None:
            async with turn.of_rows(MAX_SMALL_ROWS + 1):
                pass

        async with turn.of_rows(MAX_SMALL_ROWS + 1):
            first, second = asyncio.ensure_future(work()), asyncio.ensure_future(work())
            await asyncio.sleep(0)
            first.cancel()
        await second

    asyncio.run(asyncio.wait_for(check(), 20))


@pytest.mark.parametrize(
    "turn",
    [
        FairSlots(1).of,
        partial(BulkTurn().of_rows, MAX_SMALL_ROWS + 1),
        partial(BulkTurn().of_body, LARGE, "identity"),
    ],
    ids=["slots", "rows", "body"],
)
def test_callers_get_slots_in_turn(turn: Callable[[str], AbstractAsyncContextManager[None]]) -> None:
    served = ""

    async def work(caller: str) -> None:
        nonlocal served
        async with turn(caller):
            served += caller
            await asyncio.sleep(0)

    async def check() -> None:
        await asyncio.gather(*(work(caller) for caller in "aaaaaabbc"))
        assert served == "aabcabaaa"

    asyncio.run(check())


def test_cancelled_task_passes_its_slot_on() -> None:
    async def hold(slots: FairSlots, caller: str) -> None:
        async with slots.of(caller):
            pass

    async def check() -> None:
        slots = FairSlots(1)
        async with slots.of("a"):
            waiting = [asyncio.ensure_future(hold(slots, caller)) for caller in "abc"]
            await asyncio.sleep(0)
            waiting[0].cancel()  # while it waits
        waiting[1].cancel()  # once it has received the slot, before it runs
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results[:2]] == [asyncio.CancelledError] * 2
        assert results[2] is None
        await asyncio.wait_for(hold(slots, "a"), 60)

    asyncio.run(check())
