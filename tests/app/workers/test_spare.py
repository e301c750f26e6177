import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.client import is_ready
from app.workers.pool import ClassifierPool
from app.workers.queue import Capacity, RowQueue
from tests.app.forms import text_of
from tests.app.workers.costly_jpeg import costly_jpeg
from tests.app.workers.test_host import needs_proc
from tests.app.workers.test_pool import MODEL, ScriptedHost, classify
from tests.app.workers.test_recovery import Family
from tests.running import exchange, logging_service, wait_until

pytestmark = pytest.mark.slow

Check = Callable[[RowQueue, ClassifierPool], Awaitable[None]]


class Holding(ScriptedHost):
    """Its processes block on images whose names contain `slow` until they are released."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()
        self.on_call = self._hold

    def _hold(self, names: str) -> None:
        if "slow" in names:
            assert self.release.wait(120)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of the spare process that waits for a core is no slow image."""
    monkeypatch.setattr("app.workers.starting.MAX_SPARE_CALL_SECONDS", 120.0)


def in_pool(host: Holding, check: Check, *, has_spare: bool = True) -> None:
    async def run() -> None:
        queue = RowQueue(Capacity(2, 64))
        pool = ClassifierPool(queue, host, MODEL, max_image_cpu_seconds=120, has_spare=has_spare)
        for _ in range(2):
            await pool.connect(host.connect(), has_greeted=False)
        while pool.size < 2:  # noqa: ASYNC110 - threads send the greetings
            await asyncio.sleep(0.01)
        try:
            await check(queue, pool)
        finally:
            host.release.set()
            pool.close()

    asyncio.run(asyncio.wait_for(run(), 120))


SLOW_BATCH = " ".join(f"slow{number}" for number in range(8))


async def until_held(host: Holding) -> None:
    while sum("slow" in names for names in host.calls) < 2:  # noqa: ASYNC110 - threads add to them
        await asyncio.sleep(0.01)


def test_small_requests_are_answered_while_slow_images_hold_all_processes() -> None:
    host = Holding()

    async def check(queue: RowQueue, pool: ClassifierPool) -> None:
        batch = asyncio.ensure_future(classify(queue, SLOW_BATCH))
        await until_held(host)
        for name in "abc":
            assert await asyncio.wait_for(classify(queue, name), 120) == [name]
        assert not batch.done()
        assert (host.started, pool.size) == (3, 2)
        host.release.set()
        assert await asyncio.wait_for(batch, 120) == SLOW_BATCH.split()

    in_pool(host, check)


def test_small_request_sent_behind_a_slow_call_is_answered_too() -> None:
    """It was sent before the call turned out to be slow."""
    host = Holding()

    async def check(queue: RowQueue, _: ClassifierPool) -> None:
        slow = [asyncio.ensure_future(classify(queue, name)) for name in ("slow0", "slow1")]
        await until_held(host)
        assert await asyncio.wait_for(classify(queue, "a"), 120) == ["a"]
        host.release.set()
        assert [await one for one in slow] == [["slow0"], ["slow1"]]
        assert queue.unanswered_rows == 0

    in_pool(host, check)


def test_idle_process_takes_a_call_that_waits_behind_a_slow_one() -> None:
    host = Holding()

    async def check(queue: RowQueue, _: ClassifierPool) -> None:
        held = [asyncio.ensure_future(classify(queue, name)) for name in ("slow0", "b slow1", "a")]
        await until_held(host)
        assert await asyncio.wait_for(held[2], 120) == ["a"]
        host.release.set()
        await asyncio.gather(*held)
        assert queue.unanswered_rows == 0

    in_pool(host, check, has_spare=False)


def test_without_a_spare_process_small_requests_wait() -> None:
    """Proves that the tests above depend on it."""
    host = Holding()

    async def check(queue: RowQueue, _: ClassifierPool) -> None:
        batch = asyncio.ensure_future(classify(queue, SLOW_BATCH))
        await until_held(host)
        small = asyncio.ensure_future(classify(queue, "a"))
        await asyncio.sleep(0.5)
        assert not small.done()
        assert host.started == 2
        host.release.set()
        await asyncio.gather(batch, small)

    in_pool(host, check, has_spare=False)


def test_slow_image_of_a_small_request_does_not_occupy_the_spare_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.workers.starting.MAX_SPARE_CALL_SECONDS", 0.2)
    host = Holding()

    async def check(queue: RowQueue, _: ClassifierPool) -> None:
        slow = [asyncio.ensure_future(classify(queue, f"slow{number}")) for number in range(4)]
        await until_held(host)
        assert await asyncio.wait_for(classify(queue, "a"), 120) == ["a"]
        host.release.set()
        assert [await one for one in slow] == [[f"slow{number}"] for number in range(4)]

    in_pool(host, check)


def test_spare_process_ends_once_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.workers.starting.SPARE_IDLE_SECONDS", 0.1)
    host = Holding()

    async def check(queue: RowQueue, _: ClassifierPool) -> None:
        batch = asyncio.ensure_future(classify(queue, SLOW_BATCH))
        await until_held(host)
        assert await asyncio.wait_for(classify(queue, "a"), 120) == ["a"]
        host.release.set()
        await batch
        while len(host.ended) < 1:  # noqa: ASYNC110 - a thread adds to them
            await asyncio.sleep(0.01)
        assert await asyncio.wait_for(classify(queue, "b"), 120) == ["b"]

    in_pool(host, check)


def test_load_without_slow_images_starts_no_spare_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.workers.connection.SLOW_CALL_SECONDS", 120.0)
    host = Holding()

    async def check(queue: RowQueue, _: ClassifierPool) -> None:
        names = " ".join(map(str, range(200)))
        await asyncio.gather(
            *(classify(queue, names) for _ in range(5)), *(classify(queue, n) for n in "abc")
        )
        assert host.started == 2

    in_pool(host, check)


@needs_proc
def test_images_are_answered_during_a_batch_of_slow_images(tmp_path: Path, sample: bytes) -> None:
    slow_images = 40
    slow = text_of(costly_jpeg())
    body = json.dumps({"data": [[number, slow] for number in range(slow_images)]}).encode()
    with (
        logging_service(tmp_path / "log", EXT_CLASSIFY_CLASSIFIERS="1") as (process, port),
        ThreadPoolExecutor(1) as caller,
    ):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        batch = caller.submit(exchange, port, "POST", "/classify", body, {"Content-Type": "application/json"})
        # Without the spare process, at most one would be answered between two slow images.
        for _ in range(slow_images + 5):
            answer = exchange(port, "POST", "/classify", sample, {"Content-Type": "image/png"})
            assert answer.status == 200
        assert not batch.done()
        assert len(Family(process.pid).forks) == 2
        process.kill()
        assert batch.exception() is not None
