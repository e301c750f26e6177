import asyncio
import secrets
import threading
import zlib
from time import sleep

import pytest

from app.admission import PendingBytes
from app.batches.store import MemoryStore, Remembered
from app.errors import Overloaded

LARGE = secrets.token_bytes(1_000_000)


async def store_of(answer: bytes) -> MemoryStore:
    store = MemoryStore(60.0, 10_000_000)
    await store.keep("a", Remembered(b"digest", answer))
    return store


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Those in which a large answer was decompressed."""
    threads: list[threading.Thread] = []
    decompress = zlib.decompress

    def note(compressed: bytes) -> bytes:
        threads.append(threading.current_thread())
        return decompress(compressed)

    monkeypatch.setattr(zlib, "decompress", note)
    return threads


@pytest.mark.parametrize("answer", [b"x" * 100, LARGE, b"x" * 1_000_000], ids=["small", "large", "dense"])
def test_large_answer_is_inflated_in_a_thread(answer: bytes, threads: list[threading.Thread]) -> None:
    async def keep_and_find() -> Remembered | None:
        return await (await store_of(answer)).find("a")

    assert asyncio.run(keep_and_find()) == Remembered(b"digest", answer)
    assert [thread is not threading.main_thread() for thread in threads] == [True] * (len(answer) > 100)


def test_answer_takes_its_room_before_it_is_inflated(threads: list[threading.Thread]) -> None:
    async def check() -> None:
        store, pending = await store_of(LARGE), PendingBytes(len(LARGE) + 1)
        with pending.reserve() as others:
            others.take(2)
            with pending.reserve() as body, pytest.raises(Overloaded):
                await store.find("a", body)
            assert not threads
            assert pending.held_bytes == 2
        with pending.reserve() as body:
            await store.find("a", body)
            assert pending.held_bytes == len(LARGE)

    asyncio.run(check())


def test_answer_of_unknown_length_takes_its_room_when_it_is_inflated() -> None:
    async def check() -> None:
        store, pending = await store_of(b"answer"), PendingBytes(len(LARGE))
        with pending.reserve() as body:
            assert await store.decompress(zlib.compress(LARGE), body) == LARGE
            assert pending.held_bytes == len(LARGE)
            with pending.reserve() as other, pytest.raises(Overloaded):
                await store.decompress(zlib.compress(LARGE), other)

    asyncio.run(check())


def test_answer_to_another_batch_is_not_inflated(threads: list[threading.Thread]) -> None:
    async def check() -> None:
        store = await store_of(LARGE)
        assert await store.find("a", digest=b"another") is None
        assert not threads
        assert await store.find("a", digest=b"digest") == Remembered(b"digest", LARGE)

    asyncio.run(check())


def test_two_answers_at_a_time_are_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    now, at_once = 0, []
    decompress = zlib.decompress

    def note(compressed: bytes) -> bytes:
        nonlocal now
        now += 1
        at_once.append(now)
        sleep(0.01)
        now -= 1
        return decompress(compressed)

    async def check() -> None:
        store = await store_of(LARGE)
        await asyncio.gather(*(store.find("a") for _ in range(10)))

    monkeypatch.setattr(zlib, "decompress", note)
    asyncio.run(check())
    assert len(at_once) == 10
    assert max(at_once) == 2
