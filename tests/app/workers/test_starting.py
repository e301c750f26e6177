import asyncio
import logging
import os
import socket
import threading

import pytest

from app.errors import NoClassifier
from app.telemetry.log import logger
from app.workers import starting
from app.workers.pool import ClassifierPool
from app.workers.protocol import Greeting, StallWatch, WaitingRow, format_frame, stat_of, stats_of_groups
from app.workers.queue import Capacity, RowQueue
from app.workers.starting import (
    CRASHES_WITHOUT_DELAY,
    FAULT_INTERVAL_SECONDS,
    MAX_DELAY_SECONDS,
    FaultLog,
    StartBackoff,
)
from tests.app.workers.test_host import needs_proc
from tests.app.workers.test_pool import MODEL, ScriptedHost, classify


def test_delay_doubles_after_each_failed_start_up_to_a_limit() -> None:
    backoff, delays = StartBackoff(), []
    for _ in range(20):
        delays.append(backoff.delay_seconds())
        backoff.count_failure()
    assert delays[:5] == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert set(delays[5:]) == {MAX_DELAY_SECONDS}
    backoff.reset_failures()
    assert backoff.delay_seconds() == 0.0


def test_crashes_delay_starts_only_when_there_are_many_without_an_answer() -> None:
    backoff = StartBackoff()
    for _ in range(CRASHES_WITHOUT_DELAY):
        backoff.count_crash()
        backoff.reset_failures()
        assert backoff.delay_seconds() == 0.0
    backoff.count_crash()
    backoff.reset_failures()
    assert backoff.delay_seconds() == 0.5
    backoff.reset()
    assert backoff.delay_seconds() == 0.0


def test_process_without_progress_has_stalled_after_some_checks() -> None:
    watch = StallWatch(3, max_checks=100)
    assert [watch.has_stalled(ticks) for ticks in (1, 1, 1, 2, 2, 2, 2)] == [False] * 6 + [True]


def test_process_without_known_cpu_time_has_a_limit_of_checks() -> None:
    watch = StallWatch(3, max_checks=6)
    assert [watch.has_stalled(None) for _ in range(6)] == [False] * 5 + [True]


@needs_proc
def test_cpu_time_is_read_from_proc() -> None:
    stat = stat_of(os.getpid())
    assert stat is not None
    assert stat.group_id == os.getpgid(0)
    assert not stat.is_stopped
    assert os.getpid() in {member.pid for member in stats_of_groups({stat.group_id})}
    sum(range(3_000_000))
    later = stat_of(os.getpid())
    assert later is not None
    assert later.ticks >= stat.ticks


def test_blocking_start_does_not_block_the_event_loop() -> None:
    may_start = threading.Event()

    class Blocking(ScriptedHost):
        def connect(self) -> socket.socket:
            if self.started:
                assert may_start.wait(120)
            return super().connect()

    host = Blocking()

    def die_at_first(_: str) -> None:
        if host.started == 1:
            raise ConnectionError

    host.on_call = die_at_first

    async def run() -> list[str]:
        queue = RowQueue(Capacity(1, 64))
        pool = ClassifierPool(queue, host, MODEL, max_image_cpu_seconds=120)
        await pool.connect(host.connect(), has_greeted=False)
        answer = asyncio.ensure_future(classify(queue, "a"))
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not answer.done()
        may_start.set()
        try:
            return await asyncio.wait_for(answer, 120)
        finally:
            pool.close()

    assert asyncio.run(run()) == ["a"]


@pytest.mark.slow
def test_processes_that_crash_repeatedly_while_idle_are_restarted_with_backoff(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(starting, "RETRY_SECONDS", 60.0)

    class Dying(ScriptedHost):
        def _serve(self, connection: socket.socket) -> None:
            with connection:
                connection.sendall(format_frame(Greeting(MODEL)))

    host = Dying()

    async def run() -> None:
        queue = RowQueue(Capacity(1, 64))
        pool = ClassifierPool(queue, host, MODEL, max_image_cpu_seconds=120)
        await pool.connect(host.connect(), has_greeted=False)
        while host.started <= CRASHES_WITHOUT_DELAY:  # noqa: ASYNC110 - threads crash
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # one more would be started at once
        pool.close()

    asyncio.run(asyncio.wait_for(run(), 120))
    assert host.started == 1 + CRASHES_WITHOUT_DELAY


def test_rows_fail_after_the_grace_period_without_a_ready_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.workers.pool.GRACE_SECONDS", 0.05)
    monkeypatch.setattr(starting, "RETRY_SECONDS", 0.05)

    class Refusing(ScriptedHost):
        def connect(self) -> socket.socket:
            if self.started and not self.may_start:
                raise BlockingIOError("no more processes")
            return super().connect()

        may_start = False

    host = Refusing()

    def die_at_first(_: str) -> None:
        if host.started == 1:
            raise ConnectionError

    host.on_call = die_at_first

    async def run() -> None:
        queue = RowQueue(Capacity(1, 64))
        pool = ClassifierPool(queue, host, MODEL, max_image_cpu_seconds=120)
        await pool.connect(host.connect(), has_greeted=False)
        for _ in range(2):
            with pytest.raises(NoClassifier):
                await asyncio.wait_for(classify(queue, "a b c"), 120)
            assert not pool.is_available
        assert queue.unanswered_rows == 0
        host.may_start = True
        while not pool.is_available:  # noqa: ASYNC110 - another task starts one
            await asyncio.sleep(0.01)
        assert await asyncio.wait_for(classify(queue, "a b c"), 120) == ["a", "b", "c"]
        pool.close()

    asyncio.run(run())


def test_second_answer_to_a_row_is_ignored() -> None:
    async def run() -> None:
        queue = RowQueue(Capacity(2, 64))
        with queue.request(2) as request:
            answered = request.classify([WaitingRow(b"a", evidence=False)] * 2)
            [first] = queue.next_rows()
            assert first.group.answer(first.place, None)
            assert not first.group.answer(first.place, None)
            assert not answered.done()
            assert queue.unanswered_rows == 1

    asyncio.run(run())


def test_repeated_fault_is_logged_at_intervals_with_a_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr("app.workers.starting.monotonic", lambda: now)
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    try:
        faults = FaultLog()
        for _ in range(1000):
            faults.log_crash()
        faults.log_failed_start(BlockingIOError("no more processes"))
        now += FAULT_INTERVAL_SECONDS
        faults.log_crash()
    finally:
        logger.removeHandler(caplog.handler)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "A classifier process died."),
        (logging.ERROR, "A classifier process cannot be started: BlockingIOError: no more processes"),
        (logging.WARNING, "A classifier process died. (999 more since the last such line)"),
    ]
