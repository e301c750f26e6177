import asyncio
import os
import socket
import threading

import pytest

from app.errors import NoClassifier
from app.workers import pool as pool_module
from app.workers.capacity import Capacity
from app.workers.pool import ClassifierPool
from app.workers.protocol import Greeting, StallWatch, WaitingRow, format_frame, stat_of, stats_of_groups
from app.workers.queue import RowQueue
from app.workers.starting import CRASHES_WITHOUT_DELAY, MAX_DELAY_SECONDS, Pace
from tests.app.workers.test_host import needs_proc
from tests.app.workers.test_pool import MODEL, ScriptedHost, classify


def test_starts_that_fail_are_tried_later_each_time_up_to_a_limit() -> None:
    pace, delays = Pace(), []
    for _ in range(20):
        delays.append(pace.delay_seconds(0.5))
        pace.note_failure()
    assert delays[:5] == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert set(delays[5:]) == {MAX_DELAY_SECONDS}
    pace.note_greeting()
    assert pace.delay_seconds(0.5) == 0.0


def test_deaths_over_hostile_images_delay_nobody_and_a_crash_loop_is_slowed_down() -> None:
    pace = Pace()
    for _ in range(CRASHES_WITHOUT_DELAY):
        pace.note_crash()
        pace.note_greeting()
        assert pace.delay_seconds(0.5) == 0.0
    pace.note_crash()
    pace.note_greeting()
    assert pace.delay_seconds(0.5) == 0.5
    pace.note_answers()
    assert pace.delay_seconds(0.5) == 0.0


def test_process_without_progress_has_stalled_after_so_many_looks() -> None:
    watch = StallWatch(3, max_looks=100)
    assert [watch.has_stalled(ticks) for ticks in (1, 1, 1, 2, 2, 2, 2)] == [False] * 6 + [True]


def test_process_of_which_nothing_is_known_has_only_a_limit() -> None:
    watch = StallWatch(3, max_looks=6)
    assert [watch.has_stalled(None) for _ in range(6)] == [False] * 5 + [True]


@needs_proc
def test_progress_is_read_of_this_process() -> None:
    stat = stat_of(os.getpid())
    assert stat is not None
    assert stat.group_id == os.getpgid(0)
    assert not stat.is_stopped
    assert os.getpid() in {member.pid for member in stats_of_groups({stat.group_id})}
    sum(range(3_000_000))
    later = stat_of(os.getpid())
    assert later is not None
    assert later.ticks >= stat.ticks


def test_start_that_blocks_holds_up_nothing_else() -> None:
    """The loop turns while a process is started, or it could not let the start end."""
    may_start = threading.Event()

    class Blocking(ScriptedHost):
        def connect(self) -> socket.socket:
            if self.started:
                assert may_start.wait(20)
            return super().connect()

    host = Blocking()

    def die_at_first(_: str) -> None:
        if host.started == 1:
            raise ConnectionError

    host.on_call = die_at_first

    async def run() -> list[str]:
        queue = RowQueue(Capacity(1, 64))
        pool = ClassifierPool(queue, host, MODEL, max_image_cpu_seconds=10)
        await pool.connect(host.connect(), has_greeted=False)
        answer = asyncio.ensure_future(classify(queue, "a"))
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not answer.done()
        may_start.set()
        try:
            return await asyncio.wait_for(answer, 20)
        finally:
            pool.close()

    assert asyncio.run(run()) == ["a"]


def test_processes_that_die_idle_again_and_again_are_started_ever_more_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "RETRY_SECONDS", 60.0)

    class Dying(ScriptedHost):
        def _serve(self, connection: socket.socket) -> None:
            with connection:
                connection.sendall(format_frame(Greeting(MODEL)))

    host = Dying()

    async def run() -> None:
        queue = RowQueue(Capacity(1, 64))
        pool = ClassifierPool(queue, host, MODEL, max_image_cpu_seconds=10)
        await pool.connect(host.connect(), has_greeted=False)
        before = -1
        while host.started != before:  # until none is started any more
            before = host.started
            await asyncio.sleep(0.3)
        pool.close()

    asyncio.run(run())
    assert host.started == 1 + CRASHES_WITHOUT_DELAY


def test_rows_fail_once_no_process_has_been_ready_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.workers.pool.GRACE_SECONDS", 0.05)
    monkeypatch.setattr(pool_module, "RETRY_SECONDS", 0.05)

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
        pool = ClassifierPool(queue, host, MODEL, max_image_cpu_seconds=10)
        await pool.connect(host.connect(), has_greeted=False)
        for _ in range(2):
            with pytest.raises(NoClassifier):
                await asyncio.wait_for(classify(queue, "a b c"), 20)
            assert not pool.is_available
        assert queue.unanswered_rows == 0
        host.may_start = True
        while not pool.is_available:  # noqa: ASYNC110 - it is another task that starts one
            await asyncio.sleep(0.01)
        assert await asyncio.wait_for(classify(queue, "a b c"), 20) == ["a", "b", "c"]
        pool.close()

    asyncio.run(run())


def test_row_that_two_processes_answer_counts_once() -> None:
    async def run() -> None:
        queue = RowQueue(Capacity(1, 64))
        with queue.request(2) as request:
            answered = request.classify([WaitingRow(b"a", evidence=False)] * 2)
            [first] = queue.next_rows()
            assert first.awaited.answer(first.place, None)
            assert not first.awaited.answer(first.place, None)
            assert not answered.done()
            assert queue.unanswered_rows == 1

    asyncio.run(run())
