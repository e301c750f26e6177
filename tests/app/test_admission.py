import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from app.admission import MAX_WAIT_SECONDS_OF_FEW, Admission, PendingBytes
from app.errors import Overloaded
from app.workers.protocol import WaitingRow
from app.workers.queue import FEW_ROWS, Capacity, QueuedRequest, RowQueue


def queue_of_a_thousand_rows_a_second() -> RowQueue:
    capacity = Capacity(classifiers=1, max_concurrent_fetches=1)
    capacity.record_classified(1000, 1.0)
    return RowQueue(capacity)


def admission_of(
    queue: RowQueue,
    max_wait_seconds: float = 1.0,
    max_pending_bytes: int = 100,
    patience_seconds: float = 0.0,
) -> Admission:
    return Admission(queue, max_wait_seconds, PendingBytes(max_pending_bytes), patience_seconds)


def test_request_is_admitted_up_to_the_maximum_wait() -> None:
    queue = queue_of_a_thousand_rows_a_second()
    admission = admission_of(queue)
    with queue.request(1000):
        admission.refuse_rows(4096)
        with queue.request(1), pytest.raises(Overloaded):
            admission.refuse_rows(4096)
    admission.refuse_rows(4096)


def test_refusal_estimates_when_to_retry() -> None:
    queue = queue_of_a_thousand_rows_a_second()
    admission = admission_of(queue)
    with queue.request(9001), pytest.raises(Overloaded) as refusal:
        admission.refuse_rows(10_000)
    assert refusal.value.headers == {"retry-after": "9"}


def test_single_request_of_any_size_is_admitted() -> None:
    admission = admission_of(queue_of_a_thousand_rows_a_second(), max_pending_bytes=1)
    admission.refuse(body_bytes=10**9, rows=10**9)
    with admission.reserve() as body:
        body.take(1000)
        body.take(1000)


def test_small_requests_have_a_shorter_maximum_wait() -> None:
    queue = queue_of_a_thousand_rows_a_second()
    admission = admission_of(queue, max_wait_seconds=5.0)
    with ExitStack() as flood:
        for _ in range(1500):
            flood.enter_context(queue.request(1))
        admission.refuse_rows(1)
        flood.enter_context(queue.request(1))
        with pytest.raises(Overloaded):
            admission.refuse_rows(1)
        admission.refuse_rows(5)


def test_small_request_is_admitted_next_to_a_large_one() -> None:
    queue = queue_of_a_thousand_rows_a_second()
    admission = admission_of(queue)
    with queue.request(100_000):
        admission.refuse_rows(1)
        with pytest.raises(Overloaded):
            admission.refuse_rows(100_000)


def test_small_request_is_refused_while_another_exceeds_the_maximum_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Regardless of the estimate: earlier rows may cost more than any measured so far."""
    now = 100.0
    monkeypatch.setattr("app.workers.queue.monotonic", lambda: now)

    async def check() -> None:
        nonlocal now
        queue = queue_of_a_thousand_rows_a_second()
        admission = admission_of(queue, max_wait_seconds=5.0)
        with queue.request(1) as small:
            small.classify([WaitingRow(b"", evidence=False)])
            now += MAX_WAIT_SECONDS_OF_FEW
            admission.refuse_rows(1)
            now += 0.1
            with pytest.raises(Overloaded):
                admission.refuse_rows(1)
            admission.refuse_rows(FEW_ROWS + 1)
            queue.next_rows()
            admission.refuse_rows(1)

    asyncio.run(check())


@pytest.mark.parametrize(("rows", "wait_seconds"), [(1, MAX_WAIT_SECONDS_OF_FEW), (FEW_ROWS + 1, 5.0)])
def test_youngest_requests_beyond_twice_the_maximum_wait_are_shed(
    rows: int, wait_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("app.workers.queue.monotonic", lambda: now)

    async def check() -> list[BaseException | None]:
        nonlocal now
        queue = queue_of_a_thousand_rows_a_second()
        admission_of(queue, max_wait_seconds=5.0)
        with ExitStack() as burst:
            answers = [
                burst.enter_context(queue.request(rows)).classify([WaitingRow(b"", evidence=False)] * rows)
                for _ in range(10)
            ]
            queue.on_check()
            now += 2 * wait_seconds
            queue.on_check()
            assert not any(answer.done() for answer in answers)
            now += 0.1
            queue.on_check()
            errors = [answer.exception() if answer.done() else None for answer in answers]
            assert answers[0].cancel()
        return errors

    first, *others = asyncio.run(check())
    assert first is None
    assert {type(error) for error in others} == {Overloaded}
    assert f" {2 * wait_seconds:g} seconds" in str(others[0])


def test_request_with_inline_images_does_not_wait_for_fetches() -> None:
    queue = queue_of_a_thousand_rows_a_second()
    queue.capacity.record_fetched(10.0)
    admission = admission_of(queue)
    with queue.request(1, unfetched_rows=1) as slow:
        admission.refuse_rows(1)
        admission.refuse_rows(64)
        with pytest.raises(Overloaded):
            admission.refuse_rows(1, unfetched_rows=1)
        slow.mark_fetched(1)
        admission.refuse_rows(1, unfetched_rows=1)
    with queue.request(2000, unfetched_rows=500):
        with pytest.raises(Overloaded):
            admission.refuse_rows(2000)
        with pytest.raises(Overloaded):
            admission.refuse_rows(2000, unfetched_rows=1)
    admission.refuse_rows(1, unfetched_rows=1)


def test_body_is_refused_by_the_rows_expected_of_its_kind() -> None:
    queue = queue_of_a_thousand_rows_a_second()
    admission = admission_of(queue, max_pending_bytes=10**9)
    assert admission.expect_rows("identity", 64_000) == 1  # nothing is known yet
    for _ in range(20):
        admission.note_rows("identity", 64_000, 64)
    assert admission.expect_rows("identity", 64_000) == 64
    assert admission.expect_rows("gzip", 64_000) == 1
    with queue.request(2000):
        admission.refuse(10, admission.expect_rows("identity", 10))
        with pytest.raises(Overloaded):
            admission.refuse(2_000_000, admission.expect_rows("identity", 2_000_000))


def test_kinds_that_clients_invent_are_not_stored() -> None:
    admission = admission_of(queue_of_a_thousand_rows_a_second())
    for number in range(1000):
        admission.expect_rows(f"encoding {number}", 10)
    assert not admission._rows_a_byte  # noqa: SLF001


def test_bodies_share_the_limit() -> None:
    admission = admission_of(queue_of_a_thousand_rows_a_second(), max_pending_bytes=100)
    with admission.reserve() as first, admission.reserve() as second:
        first.take(60)
        second.take(40)
        with pytest.raises(Overloaded) as refusal:
            second.take(1)
        assert refusal.value.headers == {"retry-after": "1"}
        with pytest.raises(Overloaded):
            admission.refuse(body_bytes=1, rows=1)
    assert admission.pending_bytes == 0
    admission.refuse(body_bytes=100, rows=1)


def test_body_is_counted_until_its_last_holder_releases_it() -> None:
    admission = admission_of(queue_of_a_thousand_rows_a_second())
    with admission.reserve() as body:
        body.take(10)
        body.hold()
    assert admission.pending_bytes == 10
    body.let_go()
    assert admission.pending_bytes == 0


def test_declared_length_of_a_slow_body_is_not_counted() -> None:
    admission = admission_of(queue_of_a_thousand_rows_a_second(), max_pending_bytes=100)
    with admission.reserve() as slow:
        admission.refuse(body_bytes=100, rows=1)
        slow.take(1)
        admission.refuse(body_bytes=99, rows=1)


# Patience.


@contextmanager
def patient_admission(patience_seconds: float = 29.0) -> Iterator[tuple[Admission, QueuedRequest]]:
    """The admission of a full queue, and the request that fills it."""
    queue = queue_of_a_thousand_rows_a_second()
    with queue.request(2000) as before:
        yield admission_of(queue, patience_seconds=patience_seconds), before


async def is_done_soon(task: "asyncio.Task[None]") -> bool:
    await asyncio.wait({task}, timeout=20)
    return task.done()


def test_patient_request_waits_for_room_instead_of_429() -> None:
    async def check() -> None:
        with patient_admission() as (admission, before):
            waiting = asyncio.create_task(admission.admit(3000))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            before.mark_answered(1000)
            assert await is_done_soon(waiting)
            await waiting

    asyncio.run(check())


def test_patience_ends_with_429() -> None:
    async def check() -> None:
        with patient_admission(patience_seconds=0.2) as (admission, before):
            with pytest.raises(Overloaded):
                await admission.admit(3000)
            before.mark_answered(1000)
            await admission.admit(3000)

    asyncio.run(check())


@pytest.mark.parametrize(("rows", "is_admitted"), [(3000, False), (4000, False), (1000, True)])
def test_patient_request_is_overtaken_only_by_smaller_ones(rows: int, is_admitted: bool) -> None:
    async def check() -> None:
        with patient_admission() as (admission, before):
            first = asyncio.create_task(admission.admit(3000))
            await asyncio.sleep(0)
            before.mark_answered(1000)  # there is room now, and the first request has not noticed it
            second = asyncio.create_task(admission.admit(rows))
            await asyncio.sleep(0)
            assert not first.done()
            assert second.done() is is_admitted
            assert await is_done_soon(first)
            assert await is_done_soon(second)

    asyncio.run(check())


def test_request_that_stops_waiting_holds_no_other_up() -> None:
    async def check() -> None:
        with patient_admission() as (admission, before):
            first = asyncio.create_task(admission.admit(3000))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait({first})
            before.mark_answered(1000)
            second = asyncio.create_task(admission.admit(3000))
            await asyncio.sleep(0)
            assert second.done()

    asyncio.run(check())


def test_requests_are_shed_after_the_maximum_wait_and_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("app.workers.queue.monotonic", lambda: now)

    async def check() -> None:
        nonlocal now
        queue = queue_of_a_thousand_rows_a_second()
        admission_of(queue, max_wait_seconds=5.0, patience_seconds=20.0)
        with queue.request(10) as oldest, queue.request(10) as youngest:
            first = oldest.classify([WaitingRow(b"", evidence=False)] * 10)
            second = youngest.classify([WaitingRow(b"", evidence=False)] * 10)
            now += 25.0
            queue.on_check()
            assert not second.done()
            now += 0.1
            queue.on_check()
            assert isinstance(second.exception(), Overloaded)
            assert not first.done()
            first.cancel()

    asyncio.run(check())


def test_rows_to_fetch_wait_for_rows_that_are_not_fetched_yet() -> None:
    """They hold one of the few places for fetched images until they are classified."""
    queue = queue_of_a_thousand_rows_a_second()
    queue.capacity.record_fetched(0.0001)
    admission = admission_of(queue)
    with queue.request(2000, unfetched_rows=2000):
        with pytest.raises(Overloaded):
            admission.refuse_rows(2000, unfetched_rows=2000)
        admission.refuse_rows(2000)


def test_quiet_caller_is_admitted_next_to_a_noisy_one() -> None:
    queue = queue_of_a_thousand_rows_a_second()
    admission = admission_of(queue)
    with ExitStack() as flood:
        for rows in (1, 64, 10_000):
            flood.enter_context(queue.request(rows, caller="noisy"))
        flood.enter_context(queue.request(5000, unfetched_rows=5000, caller="noisy"))
        for rows in (64, 4096):
            with pytest.raises(Overloaded):
                admission.refuse(10, 10_000, "noisy")
            admission.refuse(10, rows, "quiet")
            admission.refuse_rows(rows, unfetched_rows=rows, caller="quiet")
    admission.refuse_rows(10_000, caller="noisy")


def test_wait_counts_as_many_rows_of_each_other_caller_as_own_ones() -> None:
    queue = queue_of_a_thousand_rows_a_second()
    with (
        queue.request(300, caller="own"),
        queue.request(10_000, caller="noisy"),
        queue.request(10, caller="c"),
    ):
        assert queue.wait_seconds(300, caller="own") == pytest.approx(0.3 + 0.3 + 0.01)
        assert queue.wait_seconds(10_000, caller="noisy") == pytest.approx(10 + 0.3 + 0.01)
        assert queue.wait_seconds(1, caller="own") == queue.wait_seconds(1, caller="new") == 0


def test_small_request_does_not_wait_for_those_of_another_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("app.workers.queue.monotonic", lambda: now)

    async def check() -> None:
        nonlocal now
        queue = queue_of_a_thousand_rows_a_second()
        admission = admission_of(queue, max_wait_seconds=5.0)
        with queue.request(1, caller="noisy") as small:
            small.classify([WaitingRow(b"", evidence=False)])
            now += MAX_WAIT_SECONDS_OF_FEW + 0.1
            with pytest.raises(Overloaded):
                admission.refuse_rows(1, caller="noisy")
            admission.refuse_rows(1, caller="quiet")

    asyncio.run(check())


@pytest.mark.parametrize(("rows", "wait_seconds"), [(1, MAX_WAIT_SECONDS_OF_FEW), (FEW_ROWS + 1, 5.0)])
def test_caller_that_waits_because_of_itself_is_shed(
    rows: int, wait_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's request is the youngest."""
    now = 100.0
    monkeypatch.setattr("app.workers.queue.monotonic", lambda: now)

    async def check() -> None:
        nonlocal now
        queue = queue_of_a_thousand_rows_a_second()
        admission_of(queue, max_wait_seconds=5.0)
        with ExitStack() as requests:
            noisy, quiet = (
                [
                    requests.enter_context(queue.request(rows, caller=caller)).classify(
                        [WaitingRow(b"", evidence=False)] * rows
                    )
                    for _ in range(count)
                ]
                for caller, count in (("noisy", 10), ("quiet", 1))
            )
            queue.on_check()
            now += 2 * wait_seconds - 0.1
            queue.on_check()
            assert not any(answer.done() for answer in noisy)
            now += 0.2
            queue.on_check()
            assert [answer.done() for answer in noisy] == [False] + [True] * 9
            assert all(isinstance(answer.exception(), Overloaded) for answer in noisy[1:])
            assert not quiet[0].done()

    asyncio.run(check())


def test_patient_request_does_not_wait_behind_those_of_another_caller() -> None:
    async def check() -> None:
        with patient_admission() as (admission, _):
            behind = asyncio.create_task(admission.admit(3000))
            await asyncio.sleep(0)
            other = asyncio.create_task(admission.admit(4000, caller="quiet"))
            await asyncio.sleep(0)
            assert not behind.done()
            assert other.done()
            behind.cancel()

    asyncio.run(check())
