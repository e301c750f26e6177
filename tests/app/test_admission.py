import asyncio
from contextlib import ExitStack

import pytest

from app.admission import MAX_WAIT_SECONDS_OF_FEW, Admission
from app.errors import Overloaded
from app.workers.protocol import WaitingRow
from app.workers.queue import FEW_ROWS, Capacity, RowQueue


def queue_of_a_thousand_rows_a_second() -> RowQueue:
    capacity = Capacity(classifiers=1, max_concurrent_fetches=1)
    capacity.record_classified(1000, 1.0)
    return RowQueue(capacity)


def admission_of(queue: RowQueue, max_wait_seconds: float = 1.0, max_pending_bytes: int = 100) -> Admission:
    return Admission(queue, max_wait_seconds, max_pending_bytes)


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
def test_youngest_requests_beyond_the_maximum_wait_are_refused(
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
            now += wait_seconds
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
    assert f" {wait_seconds:g} seconds" in str(others[0])


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
