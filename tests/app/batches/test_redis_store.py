"""Against a real Redis server, which `make system-deps` installs."""

import asyncio
import hashlib
import json
import shutil
import signal
import socket
import subprocess
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from app.admission import Admission
from app.batches import batches, redis_store
from app.batches.batches import Batches
from app.batches.redis_store import RedisStore
from app.batches.store import MemoryStore, SentBatch
from app.errors import AnswerTooLarge, BatchUnknown, DeadlineExceeded, ServiceError, Stopped
from app.workers.capacity import Capacity
from app.workers.queue import RowQueue
from tests.running import free_port, wait_until

REDIS = shutil.which("redis-server") or shutil.which("valkey-server")
pytestmark = pytest.mark.skipif(REDIS is None, reason="there is no redis-server: make system-deps")


@contextmanager
def redis_server(port: int) -> Iterator["subprocess.Popen[bytes]"]:
    assert REDIS is not None
    command = [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        wait_until(lambda: _answers(port))
        try:
            yield server
        finally:
            server.send_signal(signal.SIGCONT)
            server.kill()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(10).startswith(b"+PONG")
    except OSError:
        return False


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    port = free_port()
    with redis_server(port):
        yield port


class Replica:
    """What one replica has, but for its HTTP; its answers name it."""

    def __init__(
        self,
        name: str,
        port: int,
        *,
        deadline_seconds: float = 5.0,
        request_timeout_seconds: float | None = None,
    ) -> None:
        self.admission = Admission(RowQueue(Capacity(1, 1)), 1.0, 10_000)
        self.store = RedisStore(
            f"redis://127.0.0.1:{port}/0", MemoryStore(600, 1_000_000), 600, self.admission
        )
        self.batches = Batches(self._classify, self.store, deadline_seconds, request_timeout_seconds)
        self.started = 0
        self.failure: ServiceError | None = None
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self._name = name
        REPLICAS.append(self)

    def batch(self, batch_id: str, content: bytes = b"rows") -> SentBatch:
        return SentBatch(batch_id, "q", content, "gzip", evidence=True, pending=self.admission.reserve())

    async def answer(self, batch_id: str) -> bytes | None:
        return await self.batches.answer(batch_id, self.batch(batch_id))

    async def _classify(self, batch: SentBatch) -> bytes:
        self.started += 1
        self.begun.set()
        said = f"{self._name}: {batch.query_id} {batch.content_encoding} {batch.evidence} ".encode()
        said += batch.take_content()
        await self.ended.wait()
        if self.failure is not None:
            raise self.failure
        return said


REPLICAS: list[Replica] = []


async def stop_renewing(replica: Replica) -> None:
    """Leave its lease to expire: a process that is killed renews no lease and releases none."""
    await replica.begun.wait()  # it renews from when it holds the lease
    renewing = [task for task in asyncio.all_tasks() if "_renew" in repr(task)]
    assert renewing
    for task in renewing:
        task.cancel()


def run(check: Callable[[], Awaitable[Any]]) -> None:
    async def checked() -> None:
        try:
            await asyncio.wait_for(check(), 60)
        finally:
            while REPLICAS:
                replica = REPLICAS.pop()
                replica.ended.set()
                await replica.batches.close()

    asyncio.run(checked())


def test_answer_of_one_replica_is_remembered_by_all(port: int) -> None:
    async def check() -> None:
        first, second = Replica("first", port), Replica("second", port)
        first.ended.set()
        answer = await first.answer("remembered")
        assert answer == b"first: q gzip True rows"
        assert await second.answer("remembered") == await second.batches.poll("remembered") == answer
        assert second.started == 0

    run(check)


def test_retry_at_another_replica_joins_what_runs(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "LOOK_SECONDS", 0.02)

    async def check() -> None:
        first, second = Replica("first", port), Replica("second", port)
        asked = [asyncio.ensure_future(first.answer("joined"))]
        await asyncio.sleep(0.1)
        asked += [asyncio.ensure_future(second.answer("joined")) for _ in range(10)]
        await asyncio.sleep(0.1)
        first.ended.set()
        assert set(await asyncio.gather(*asked)) == {b"first: q gzip True rows"}
        assert second.started == 0

    run(check)


def test_promised_answer_can_be_asked_for_anywhere(port: int) -> None:
    async def check() -> None:
        first = Replica("first", port, deadline_seconds=0.05)
        second = Replica("second", port)
        assert await first.answer("promised") is None
        assert await second.batches.poll("promised") is None
        first.ended.set()
        await asyncio.sleep(0.2)
        assert await second.batches.poll("promised") == b"first: q gzip True rows"
        assert second.started == 0

    run(check)


def test_death_of_a_replica_costs_only_to_classify_anew(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "LEASE_SECONDS", 0.5)

    async def check() -> None:
        dying = Replica("dying", port, deadline_seconds=0.05)
        assert await dying.answer("inherited") is None
        await stop_renewing(dying)
        heir = Replica("heir", port)
        heir.ended.set()
        assert await heir.batches.poll("inherited") is None
        await asyncio.sleep(0.7)
        assert await heir.batches.poll("inherited") is None  # begun anew
        await asyncio.sleep(0.2)
        assert await heir.batches.poll("inherited") == b"heir: q gzip True rows"
        assert heir.admission.pending_bytes == 0

    run(check)


def test_lease_lasts_as_long_as_its_holder(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "LEASE_SECONDS", 0.2)
    monkeypatch.setattr(redis_store, "LOOK_SECONDS", 0.02)

    async def check() -> None:
        slow, waiting = Replica("slow", port), Replica("waiting", port)
        asked = [asyncio.ensure_future(slow.answer("leased"))]
        await asyncio.sleep(0.05)
        asked.append(asyncio.ensure_future(waiting.answer("leased")))
        await asyncio.sleep(1.0)
        slow.ended.set()
        assert set(await asyncio.gather(*asked)) == {b"slow: q gzip True rows"}
        assert waiting.started == 0

    run(check)


def test_failure_at_one_replica_is_tried_at_the_next(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "LOOK_SECONDS", 0.02)

    async def check() -> None:
        first, second = Replica("first", port), Replica("second", port)
        asked = asyncio.ensure_future(first.answer("failed"))
        await asyncio.sleep(0.05)
        asked.cancel()
        running = next(iter(first.batches._running.values()))  # noqa: SLF001
        running.task.cancel()
        second.ended.set()
        assert await second.answer("failed") == b"second: q gzip True rows"

    run(check)


@pytest.mark.parametrize(("failure", "is_begun_anew"), [(AnswerTooLarge("x"), False), (Stopped("x"), True)])
def test_promised_batch_that_fails_is_begun_anew_only_if_that_can_help(
    port: int, failure: ServiceError, is_begun_anew: bool
) -> None:
    async def check() -> None:
        batch_id = f"failing {failure.code}"
        failing, heir = Replica("failing", port, deadline_seconds=0.05), Replica("heir", port)
        failing.failure = failure
        assert await failing.answer(batch_id) is None
        failing.ended.set()
        await asyncio.sleep(0.2)
        with pytest.raises(type(failure)):
            await failing.batches.poll(batch_id)
        if is_begun_anew:
            assert await heir.batches.poll(batch_id) is None
        else:
            with pytest.raises(BatchUnknown):
                await heir.batches.poll(batch_id)
        await asyncio.sleep(0.1)
        assert heir.started == int(is_begun_anew)

    run(check)


def test_unknown_batch_is_unknown_to_all(port: int) -> None:
    async def check() -> None:
        with pytest.raises(BatchUnknown):
            await Replica("any", port).batches.poll("never sent")

    run(check)


def test_what_could_not_be_stored_is_not_promised() -> None:
    async def check() -> None:
        replica = Replica("alone", free_port(), deadline_seconds=0.05)
        asked = asyncio.ensure_future(replica.answer("long"))
        await asyncio.sleep(0.3)
        assert not asked.done()
        replica.ended.set()
        assert await asked == b"alone: q gzip True rows"

    run(check)


def test_answer_that_comes_while_it_is_looked_for_is_found(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        first, second = Replica("first", port), Replica("second", port)
        first.ended.set()

        async def not_claimed_any_more(batch_id: str) -> bool:
            await first.answer(batch_id)
            return False

        monkeypatch.setattr(second.store, "is_claimed", not_claimed_any_more)
        assert await second.batches.poll("late") == b"first: q gzip True rows"

    run(check)


def test_batch_that_is_taken_over_takes_its_room(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "LEASE_SECONDS", 0.2)

    async def check() -> None:
        dying, heir = Replica("dying", port, deadline_seconds=0.05), Replica("heir", port)
        assert await dying.batches.answer("large", dying.batch("large", bytes(8_000))) is None
        await stop_renewing(dying)
        await asyncio.sleep(0.3)
        with heir.admission.reserve() as other:
            other.take(5_000)
            assert await heir.batches.poll("large") is None
            assert heir.started == 0
        while heir.started == 0:  # the check's own time bounds it
            assert await heir.batches.poll("large") is None
            await asyncio.sleep(0.05)
        # For its rows, and for what is kept should this one die too.
        assert (heir.started, heir.admission.pending_bytes) == (1, 16_000)

    run(check)


@pytest.mark.parametrize("how", ["down", "hangs"])
def test_without_redis_each_replica_goes_on_alone(how: str) -> None:
    async def check() -> None:
        port = free_port()
        with redis_server(port) as server:
            replica = Replica("alone", port)
            replica.ended.set()
            await replica.answer("before")
            assert replica.store.is_available
            server.send_signal(signal.SIGSTOP if how == "hangs" else signal.SIGKILL)
            if how == "down":
                server.wait()
            started = time.monotonic()
            assert await replica.answer("during") == b"alone: q gzip True rows"
            assert await replica.answer("during") == await replica.batches.poll("during")
            assert time.monotonic() - started < 5
            assert not replica.store.is_available
            assert await replica.batches.poll("perhaps somebody else's") is None
            assert await replica.batches.poll("before") == b"alone: q gzip True rows"
            assert replica.started == 2

    run(check)


def test_redis_that_comes_back_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "ASK_AGAIN_SECONDS", 0.1)

    async def check() -> None:
        port = free_port()
        replica = Replica("first", port)
        replica.ended.set()
        await replica.answer("during")
        assert not replica.store.is_available
        with redis_server(port):
            await asyncio.sleep(0.2)
            await replica.answer("after")
            assert replica.store.is_available
            assert await Replica("second", port).answer("after") == b"first: q gzip True rows"

    run(check)


def test_availability_is_known_before_the_first_batch() -> None:
    async def check() -> None:
        replica = Replica("new", free_port())
        await replica.store.look()
        assert not replica.store.is_available

    run(check)


def test_replica_that_ends_lets_go_of_what_it_could_not_end(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heir need not wait for the lease to run out."""
    monkeypatch.setattr(batches, "CLOSING_SECONDS", 0.2)

    async def check() -> None:
        ending, heir = Replica("ending", port), Replica("heir", port)
        asked = asyncio.ensure_future(ending.answer("let go"))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await ending.batches.close()
        heir.ended.set()
        assert await heir.answer("let go") == b"heir: q gzip True rows"
        assert time.monotonic() - began < redis_store.LEASE_SECONDS / 2
        asked.cancel()

    run(check)


def key_of(batch_id: str, kind: str) -> str:
    return f"ext-classify:{{{hashlib.sha256(batch_id.encode()).hexdigest()}}}:{kind}"


def put_entry(port: int, *command: bytes | str) -> None:
    """Run a command that no replica would."""
    with redis.Redis(port=port) as client:
        client.execute_command(*command)


HEAD = {"batch_id": "corrupt", "query_id": "q", "content_encoding": "gzip", "evidence": True}


@pytest.mark.parametrize(
    "stored",
    [
        b"x",
        b"d" * 31,
        b"d" * 32,
        b"d" * 32 + b"no zlib",
        b"d" * 32 + zlib.compress(b"answer" * 100)[:-1],
        b"d" * 32 + zlib.compress(b"answer" * 100_000)[:-5],
    ],
)
def test_corrupt_answer_counts_as_absent(port: int, stored: bytes) -> None:
    async def check() -> None:
        put_entry(port, "SET", key_of("corrupt", "answer"), stored)
        replica = Replica("first", port)
        with pytest.raises(BatchUnknown):
            await replica.batches.poll("corrupt")
        replica.ended.set()
        assert await replica.answer("corrupt") == b"first: q gzip True rows"
        assert replica.store.is_available
        assert await Replica("second", port).batches.poll("corrupt") == b"first: q gzip True rows"
        put_entry(port, "DEL", key_of("corrupt", "answer"))

    run(check)


@pytest.mark.parametrize(
    "stored",
    [
        b"x",
        b"\n",
        b"null\nrows",
        b"[]\nrows",
        b"{}\nrows",
        json.dumps(HEAD | {"more": 1}).encode() + b"\nrows",
        json.dumps(HEAD | {"batch_id": "other"}).encode() + b"\nrows",
        json.dumps(HEAD | {"batch_id": 5}).encode() + b"\nrows",
        json.dumps(HEAD | {"content_encoding": None}).encode() + b"\nrows",
        json.dumps(HEAD | {"evidence": "yes"}).encode() + b"\nrows",
        b"\xff" * 100,
    ],
)
def test_corrupt_batch_counts_as_absent(port: int, stored: bytes) -> None:
    async def check() -> None:
        put_entry(port, "SET", key_of("corrupt", "unfinished"), stored)
        replica = Replica("first", port)
        with pytest.raises(BatchUnknown):
            await replica.batches.poll("corrupt")
        assert replica.started == 0
        assert replica.store.is_available

    run(check)


@pytest.mark.parametrize("kind", ["answer", "unfinished"])
def test_entry_of_another_type_counts_as_absent(port: int, kind: str) -> None:
    async def check() -> None:
        put_entry(port, "DEL", key_of("mistyped", kind))
        put_entry(port, "LPUSH", key_of("mistyped", kind), "a")
        replica = Replica("first", port)
        with pytest.raises(BatchUnknown):
            await replica.batches.poll("mistyped")
        assert replica.store.is_available

    run(check)


@pytest.mark.parametrize("expiry", [[], ["PX", "100000000"]], ids=["none", "too late"])
def test_lease_that_nobody_ends_expires(
    port: int, monkeypatch: pytest.MonkeyPatch, expiry: list[str]
) -> None:
    monkeypatch.setattr(redis_store, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(redis_store, "LOOK_SECONDS", 0.02)

    async def check() -> None:
        put_entry(port, "SET", key_of("leased for ever", "lease"), "nobody", *expiry)
        polled, sent = Replica("polled", port), Replica("sent", port)
        assert await polled.batches.poll("leased for ever") is None
        sent.ended.set()
        assert await sent.answer("leased for ever") == b"sent: q gzip True rows"
        put_entry(port, "DEL", key_of("leased for ever", "answer"))

    run(check)


def test_batch_waits_for_a_lease_no_longer_than_a_request_may_take(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "LOOK_SECONDS", 0.02)

    async def check() -> None:
        put_entry(port, "SET", key_of("held", "lease"), "another replica", "PX", "9000")
        replica = Replica("first", port, deadline_seconds=0.05, request_timeout_seconds=0.2)
        assert await replica.answer("held") is None
        assert len(replica.batches) == 1
        while len(replica.batches):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        with pytest.raises(DeadlineExceeded):
            await replica.batches.poll("held")
        assert replica.started == 0

    run(check)
