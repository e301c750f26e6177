import asyncio
import random
import secrets
import threading
import zlib
from time import monotonic, sleep

import pytest

from app.admission import PendingBytes
from app.batches.batches import AnswerCache, CachedAnswer
from app.errors import Overloaded

LARGE = secrets.token_bytes(1_000_000)


async def cache_of(answer: bytes) -> AnswerCache:
    cache = AnswerCache(60.0, 10_000_000)
    await cache.keep("a", CachedAnswer(b"digest", answer))
    return cache


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads in which large answers were decompressed."""
    threads: list[threading.Thread] = []
    decompress = zlib.decompress

    def note(compressed: bytes) -> bytes:
        threads.append(threading.current_thread())
        return decompress(compressed)

    monkeypatch.setattr(zlib, "decompress", note)
    return threads


@pytest.mark.parametrize("answer", [b"x" * 100, LARGE, b"x" * 1_000_000], ids=["small", "large", "dense"])
def test_large_answer_is_decompressed_in_a_thread(answer: bytes, threads: list[threading.Thread]) -> None:
    async def keep_and_find() -> CachedAnswer | None:
        return await (await cache_of(answer)).find("a")

    assert asyncio.run(keep_and_find()) == CachedAnswer(b"digest", answer)
    assert [thread is not threading.main_thread() for thread in threads] == [True] * (len(answer) > 100)


def test_answer_counts_as_pending_before_it_is_decompressed(threads: list[threading.Thread]) -> None:
    async def check() -> None:
        cache, pending = await cache_of(LARGE), PendingBytes(len(LARGE) + 1)
        with pending.reserve() as others:
            others.take(2)
            with pending.reserve() as body, pytest.raises(Overloaded):
                await cache.find("a", body)
            assert not threads
            assert pending.held_bytes == 2
        with pending.reserve() as body:
            await cache.find("a", body)
            assert pending.held_bytes == len(LARGE)

    asyncio.run(check())


def test_answer_of_unknown_length_counts_as_pending_once_it_is_decompressed() -> None:
    async def check() -> None:
        cache, pending = await cache_of(b"answer"), PendingBytes(len(LARGE))
        with pending.reserve() as body:
            assert await cache.decompress(zlib.compress(LARGE), body) == LARGE
            assert pending.held_bytes == len(LARGE)
            with pending.reserve() as other, pytest.raises(Overloaded):
                await cache.decompress(zlib.compress(LARGE), other)

    asyncio.run(check())


def test_answer_to_another_batch_is_not_decompressed(threads: list[threading.Thread]) -> None:
    async def check() -> None:
        cache = await cache_of(LARGE)
        assert await cache.find("a", digest=b"another") is None
        assert not threads
        assert await cache.find("a", digest=b"digest") == CachedAnswer(b"digest", LARGE)

    asyncio.run(check())


def test_two_answers_at_a_time_are_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
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
        cache = await cache_of(LARGE)
        await asyncio.gather(*(cache.find("a") for _ in range(10)))

    monkeypatch.setattr(zlib, "decompress", note)
    asyncio.run(check())
    assert len(at_once) == 10
    assert max(at_once) == 2


def keep_in(cache: AnswerCache, **answers: bytes) -> list[str]:
    """The ids that are still cached after all answers were added."""

    async def kept() -> list[str]:
        for batch_id, answer in answers.items():
            await cache.keep(batch_id, CachedAnswer(b"d", answer))
        return [batch_id for batch_id in answers if await cache.find(batch_id)]

    return asyncio.run(kept())


def test_oldest_answers_are_evicted_for_the_latest() -> None:
    chance = random.Random(0)  # noqa: S311 - nothing is secret
    incompressible = [chance.randbytes(2000) for _ in range(2)]
    cache = AnswerCache(600, max_bytes=3500)
    assert keep_in(cache, a=b"small", b=incompressible[0], c=incompressible[1]) != ["a", "b", "c"]
    assert cache.held_bytes <= 3500


def test_answer_that_exceeds_the_cache_is_not_cached() -> None:
    cache = AnswerCache(600, max_bytes=100)
    assert keep_in(cache, a=b"x" * 1000) == []
    assert cache.held_bytes == 0


def test_answer_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = AnswerCache(600, max_bytes=1_000_000)
    assert keep_in(cache, a=b"answer") == ["a"]
    later = monotonic() + 601
    monkeypatch.setattr("app.batches.batches.monotonic", lambda: later)
    assert not cache.has("a")
    assert (len(cache), cache.held_bytes) == (0, 0)


def test_cached_answer_is_returned_byte_for_byte() -> None:
    cache = AnswerCache(600, max_bytes=10_000_000)
    answer = b'{"data":[' + b",".join(b"[%d,null]" % n for n in range(100_000)) + b"]}"
    keep_in(cache, a=answer)
    assert asyncio.run(cache.find("a")) == CachedAnswer(b"d", answer)
    assert cache.held_bytes < len(answer) / 3
