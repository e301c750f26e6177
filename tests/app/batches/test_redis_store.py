"""Against a real Redis server, which `make system-deps` installs."""

import asyncio
import hashlib
import io
import json
import shutil
import signal
import socket
import subprocess
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from app.admission import Admission, PendingBytes
from app.batches import batches, redis_store
from app.batches.batches import AnswerCache, Batches, SentBatch
from app.batches.redis_store import RedisStore
from app.errors import AnswerTooLarge, BatchUnknown, DeadlineExceeded, ServiceError, Stopped
from app.telemetry import log
from app.workers.queue import Capacity, RowQueue
from tests.running import free_port, wait_until

REDIS = shutil.which("redis-server") or shutil.which("valkey-server")
pytestmark = pytest.mark.skipif(REDIS is None, reason="redis-server is not installed: make system-deps")


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


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis may be slow to answer on a busy machine."""
    monkeypatch.setattr(redis_store, "ANSWER_SECONDS", 60.0)
    monkeypatch.setattr(redis_store, "LEASE_SECONDS", 600.0)


class Replica:
    """A replica without HTTP. Its answers contain its name."""

    def __init__(
        self,
        name: str,
        port: int,
        *,
        deadline_seconds: float = 120.0,
        request_timeout_seconds: float | None = None,
    ) -> None:
        self.admission = Admission(RowQueue(Capacity(1, 1)), 1.0, PendingBytes(10_000))
        cache = AnswerCache(600, 1_000_000)
        self.store = RedisStore(f"redis://127.0.0.1:{port}/0", 600, self.admission, cache.decompress)
        self.batches = Batches(self._classify, cache, deadline_seconds, request_timeout_seconds, self.store)
        self.started = 0
        self.lookups = 0
        """Failed attempts to take a lease."""
        self.failure: ServiceError | None = None
        self.classifying = asyncio.Event()
        self.ended = asyncio.Event()
        self._name = name
        self._count_lookups()
        REPLICAS.append(self)

    def _count_lookups(self) -> None:
        take = self.store._take  # noqa: SLF001

        async def count(lease: str, token: bytes) -> bool:
            taken = await take(lease, token)
            self.lookups += not taken
            return taken

        self.store._take = count  # type: ignore[method-assign]  # noqa: SLF001

    def batch(self, batch_id: str, content: bytes = b"rows") -> SentBatch:
        return SentBatch(batch_id, "q", content, "gzip", evidence=True, pending=self.admission.reserve())

    async def answer(self, batch_id: str) -> bytes | None:
        return await self.batches.answer(batch_id, self.batch(batch_id))

    async def _classify(self, batch: SentBatch) -> bytes:
        self.started += 1
        self.classifying.set()
        said = f"{self._name}: {batch.query_id} {batch.content_encoding} {batch.evidence} ".encode()
        said += batch.take_content()
        await self.ended.wait()
        if self.failure is not None:
            raise self.failure
        return said


REPLICAS: list[Replica] = []


async def reached(condition: Callable[[], bool]) -> None:
    """Limited by the timeout of `run`."""
    while not condition():  # noqa: ASYNC110 - tests of any state
        await asyncio.sleep(0.005)


async def lease_expires(port: int, batch_id: str) -> None:
    """As that of a killed process, which neither renews nor releases it."""
    with redis.Redis(port=port) as client:
        await reached(lambda: bool(client.exists(key_of(batch_id, "lease"))))
        assert 0 < client.pttl(key_of(batch_id, "lease")) <= 1000 * redis_store.LEASE_SECONDS
        client.delete(key_of(batch_id, "lease"))


async def polled(replica: Replica, batch_id: str) -> bytes:
    while (answer := await replica.batches.poll(batch_id)) is None:  # noqa: ASYNC110 - as a client does
        await asyncio.sleep(0.005)
    return answer


async def restarted_by_a_poll(replica: Replica, batch_id: str) -> None:
    """Polls more than once, as Redis may be slow to answer on a busy machine."""
    while not replica.classifying.is_set():
        assert await replica.batches.poll(batch_id) is None
        await asyncio.sleep(0.005)


async def waits_for_lease(replica: Replica) -> None:
    """Until the replica has asked Redis for the lease and found it held."""
    await reached(lambda: replica.lookups > 0)


async def poll_until_answered(replica: Replica, batch_id: str) -> bytes:
    """Raises what the batch fails with."""
    while (answer := await replica.batches.poll(batch_id)) is None:  # noqa: ASYNC110 - Redis is asked
        await asyncio.sleep(0.01)
    return answer


def run(check: Callable[[], Awaitable[Any]]) -> None:
    async def checked() -> None:
        try:
            await asyncio.wait_for(check(), 180)
        finally:
            while REPLICAS:
                replica = REPLICAS.pop()
                replica.ended.set()
                await replica.batches.close()

    asyncio.run(checked())


def test_replicas_share_cached_answers(port: int) -> None:
    async def check() -> None:
        first, second = Replica("first", port), Replica("second", port)
        first.ended.set()
        answer = await first.answer("cached")
        assert answer == b"first: q gzip True rows"
        assert await second.answer("cached") == await second.batches.poll("cached") == answer
        assert second.started == 0

    run(check)


def test_retry_at_another_replica_joins_the_running_batch(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "LOOK_SECONDS", 0.02)

    async def check() -> None:
        first, second = Replica("first", port), Replica("second", port)
        sent = [asyncio.ensure_future(first.answer("joined"))]
        await first.classifying.wait()
        sent += [asyncio.ensure_future(second.answer("joined")) for _ in range(10)]
        await waits_for_lease(second)
        first.ended.set()
        assert set(await asyncio.gather(*sent)) == {b"first: q gzip True rows"}
        assert second.started == 0

    run(check)


def test_every_replica_answers_polls_for_a_deferred_batch(port: int) -> None:
    async def check() -> None:
        first = Replica("first", port, deadline_seconds=0.05)
        second = Replica("second", port)
        assert await first.answer("deferred") is None
        assert await second.batches.poll("deferred") is None
        first.ended.set()
        assert await polled(second, "deferred") == b"first: q gzip True rows"
        assert second.started == 0

    run(check)


def test_batch_of_a_replica_that_died_is_restarted(port: int) -> None:
    async def check() -> None:
        dying = Replica("dying", port, deadline_seconds=0.05)
        assert await dying.answer("inherited") is None
        heir = Replica("heir", port)
        heir.ended.set()
        assert await heir.batches.poll("inherited") is None
        await lease_expires(port, "inherited")
        assert await heir.batches.poll("inherited") is None  # which restarts it
        assert await polled(heir, "inherited") == b"heir: q gzip True rows"
        await reached(lambda: heir.admission.pending_bytes == 0)

    run(check)


def test_restarted_batch_stays_its_caller_s(port: int) -> None:
    async def check() -> None:
        dying, heir = Replica("dying", port, deadline_seconds=0.05), Replica("heir", port)
        batch, key = dying.batch("shared"), batches.key_of("shared", "mill")
        batch.caller = "mill"
        assert await dying.batches.answer(key, batch) is None
        await lease_expires(port, key)
        for other in ("shared", batches.key_of("shared", "other")):
            with pytest.raises(BatchUnknown, match=r"Received: 'shared'\."):
                await heir.batches.poll(other)
        restarted = await heir.store.find_unfinished(key)
        assert restarted is not None
        assert (restarted.caller, restarted.pending.caller) == ("mill", "mill")

    run(check)


def test_lease_lasts_as_long_as_its_holder(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = asyncio.sleep
    # Renews it without waiting for a quarter of its time.
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(min(seconds, 0.02)))
    lease = key_of("leased", "lease")

    async def check() -> None:
        slow, waiting = Replica("slow", port), Replica("waiting", port)
        sent = [asyncio.ensure_future(slow.answer("leased"))]
        await slow.classifying.wait()
        sent.append(asyncio.ensure_future(waiting.answer("leased")))
        with redis.Redis(port=port) as client:
            client.pexpire(lease, 300_000)
            await reached(lambda: client.pttl(lease) > 300_000)
        await waits_for_lease(waiting)
        slow.ended.set()
        assert set(await asyncio.gather(*sent)) == {b"slow: q gzip True rows"}
        assert waiting.started == 0

    run(check)


def test_replica_retries_a_batch_that_was_cancelled_at_another(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "LOOK_SECONDS", 0.02)

    async def check() -> None:
        first, second = Replica("first", port), Replica("second", port)
        sent = asyncio.ensure_future(first.answer("failed"))
        await first.classifying.wait()
        sent.cancel()
        running = next(iter(first.batches._running.values()))  # noqa: SLF001
        running.task.cancel()
        second.ended.set()
        assert await second.answer("failed") == b"second: q gzip True rows"

    run(check)


@pytest.mark.parametrize(("failure", "is_restarted"), [(AnswerTooLarge("x"), False), (Stopped("x"), True)])
def test_deferred_batch_that_fails_is_restarted_if_the_error_is_retryable(
    port: int, failure: ServiceError, is_restarted: bool
) -> None:
    async def check() -> None:
        batch_id = f"failing {failure.code}"
        failing, heir = Replica("failing", port, deadline_seconds=0.05), Replica("heir", port)
        failing.failure = failure
        assert await failing.answer(batch_id) is None
        failing.ended.set()
        await reached(lambda: not len(failing.batches))
        with pytest.raises(type(failure)):
            await failing.batches.poll(batch_id)
        if is_restarted:
            await restarted_by_a_poll(heir, batch_id)
        else:
            with pytest.raises(BatchUnknown):
                await heir.batches.poll(batch_id)
        assert heir.started == int(is_restarted)

    run(check)


def test_batch_that_no_replica_knows_is_unknown(port: int) -> None:
    async def check() -> None:
        with pytest.raises(BatchUnknown):
            await Replica("any", port).batches.poll("never sent")

    run(check)


def test_batch_that_cannot_be_stored_is_not_deferred() -> None:
    async def check() -> None:
        replica = Replica("alone", free_port(), deadline_seconds=0.05)
        sent = asyncio.ensure_future(replica.answer("long"))
        await asyncio.sleep(0.3)
        assert not sent.done()
        replica.ended.set()
        assert await sent == b"alone: q gzip True rows"

    run(check)


def test_poll_finds_an_answer_that_is_stored_meanwhile(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        first, second = Replica("first", port), Replica("second", port)
        first.ended.set()

        async def released_meanwhile(batch_id: str) -> bool:
            await first.answer(batch_id)
            return False

        monkeypatch.setattr(second.store, "is_leased", released_meanwhile)
        assert await second.batches.poll("late") == b"first: q gzip True rows"

    run(check)


def test_restarted_batch_counts_as_pending(port: int) -> None:
    async def check() -> None:
        dying, heir = Replica("dying", port, deadline_seconds=0.05), Replica("heir", port)
        assert await dying.batches.answer("large", dying.batch("large", bytes(8_000))) is None
        await lease_expires(port, "large")
        with heir.admission.reserve() as other:
            other.take(5_000)
            assert await heir.batches.poll("large") is None
            assert len(heir.batches) == 0
        await restarted_by_a_poll(heir, "large")
        # The content twice: once for its rows, and once to restart it elsewhere.
        assert (heir.started, heir.admission.pending_bytes) == (1, 16_000)

    run(check)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["down", "hangs"])
def test_replica_works_alone_while_redis_is_unavailable(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
            monkeypatch.setattr(redis_store, "ANSWER_SECONDS", 0.1)
            assert await replica.answer("during") == b"alone: q gzip True rows"
            assert await replica.answer("during") == await replica.batches.poll("during")
            assert not replica.store.is_available
            assert await replica.batches.poll("of another replica") is None
            assert await replica.batches.poll("before") == b"alone: q gzip True rows"
            assert replica.started == 2

    run(check)


def test_redis_is_used_again_once_it_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_store, "ASK_AGAIN_SECONDS", 0.1)
    lines = io.StringIO()
    monkeypatch.setattr(log, "_WRITER", log.LogWriter(lines))

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

    with caplog.at_level("INFO", log.logger.name):
        run(check)
    events = {(line["level"], line["event"]) for line in map(json.loads, lines.getvalue().splitlines())}
    assert events == {("WARNING", "redis_gone"), ("INFO", "redis_back")}


def test_ping_reports_that_redis_is_unavailable() -> None:
    async def check() -> None:
        replica = Replica("new", free_port())
        await replica.store.ping()
        assert not replica.store.is_available

    run(check)


def test_shutdown_releases_leases(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that another replica does not wait until they expire."""
    monkeypatch.setattr(batches, "CLOSING_SECONDS", 0.2)

    async def check() -> None:
        ending, heir = Replica("ending", port), Replica("heir", port)
        sent = asyncio.ensure_future(ending.answer("released"))
        await ending.classifying.wait()
        await ending.batches.close()
        heir.ended.set()
        assert await heir.answer("released") == b"heir: q gzip True rows"
        sent.cancel()

    run(check)


def key_of(batch_id: str, kind: str) -> str:
    return f"ext-classify:{{{hashlib.sha256(batch_id.encode()).hexdigest()}}}:{kind}"


def put_entry(port: int, *command: bytes | str) -> None:
    """Run a Redis command."""
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
def test_corrupt_answer_is_ignored(port: int, stored: bytes) -> None:
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
def test_corrupt_batch_is_ignored(port: int, stored: bytes) -> None:
    async def check() -> None:
        put_entry(port, "SET", key_of("corrupt", "unfinished"), stored)
        replica = Replica("first", port)
        with pytest.raises(BatchUnknown):
            await replica.batches.poll("corrupt")
        assert replica.started == 0
        assert replica.store.is_available

    run(check)


@pytest.mark.parametrize("kind", ["answer", "unfinished"])
def test_entry_of_another_type_is_ignored(port: int, kind: str) -> None:
    async def check() -> None:
        put_entry(port, "DEL", key_of("mistyped", kind))
        put_entry(port, "LPUSH", key_of("mistyped", kind), "a")
        replica = Replica("first", port)
        with pytest.raises(BatchUnknown):
            await replica.batches.poll("mistyped")
        assert replica.store.is_available

    run(check)


@pytest.mark.slow
@pytest.mark.parametrize("expiry", [[], ["PX", "100000000"]], ids=["none", "too late"])
def test_lease_without_a_valid_expiry_expires(
    port: int, monkeypatch: pytest.MonkeyPatch, expiry: list[str]
) -> None:
    monkeypatch.setattr(redis_store, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(redis_store, "LOOK_SECONDS", 0.02)

    async def check() -> None:
        put_entry(port, "SET", key_of("unexpiring", "lease"), "nobody", *expiry)
        polling, sending = Replica("polling", port), Replica("sending", port)
        assert await polling.batches.poll("unexpiring") is None
        sending.ended.set()
        assert await sending.answer("unexpiring") == b"sending: q gzip True rows"
        put_entry(port, "DEL", key_of("unexpiring", "answer"))

    run(check)


def test_request_timeout_limits_the_wait_for_a_lease(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "LOOK_SECONDS", 0.02)

    async def check() -> None:
        put_entry(port, "SET", key_of("held", "lease"), "another replica", "PX", "600000")
        replica = Replica("first", port, deadline_seconds=0.05, request_timeout_seconds=0.2)
        with pytest.raises(DeadlineExceeded):
            # At once if the machine is so slow that both deadlines pass together.
            await replica.answer("held") or await poll_until_answered(replica, "held")
        assert replica.started == 0

    run(check)
