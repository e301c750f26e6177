import asyncio
from collections.abc import Awaitable, Callable
from traceback import walk_tb
from typing import Any

import pytest

from app.admission import Admission, PendingBytes
from app.batches import batches as batches_module
from app.batches.batches import AnswerCache, Batches, SentBatch
from app.errors import BatchUnknown, InvalidBatch
from app.workers.queue import Capacity, RowQueue
from tests.app.clock import put_forward, run_with_clock


def new_admission() -> Admission:
    return Admission(RowQueue(Capacity(1, 1)), 1.0, PendingBytes(1000))


def batch_of(content: bytes = b"rows", batch_id: str = "b", *, evidence: bool = False) -> SentBatch:
    return SentBatch(batch_id, None, content, "identity", evidence, new_admission().reserve())


class Classifier:
    """Answers once `ended` is set."""

    def __init__(self) -> None:
        self.started = 0
        self.ended = asyncio.Event()
        self.cancelled = 0
        self.error: Exception | None = None

    async def __call__(self, batch: SentBatch) -> bytes:
        self.started += 1
        answer = b"answer %d to " % self.started + batch.take_content()
        try:
            await self.ended.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return answer


def run(check: Callable[[Batches, Classifier], Awaitable[Any]], deadline_seconds: float = 120.0) -> None:
    async def checked() -> None:
        classifier = Classifier()
        await check(Batches(classifier, AnswerCache(600, 1_000_000), deadline_seconds), classifier)

    run_with_clock(asyncio.wait_for(checked(), 180))


async def send(batches: Batches, batch: SentBatch) -> "asyncio.Future[bytes | None]":
    """A request that waits for the running batch."""
    sent = asyncio.ensure_future(batches.answer("b", batch))
    await settle()
    return sent


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def reached(condition: Callable[[], bool]) -> None:
    """Limited by the timeout of `run`."""
    while not condition():  # noqa: ASYNC110 - tests of any state
        await asyncio.sleep(0.005)


@pytest.mark.slow
def test_retries_join_the_running_batch_and_receive_the_same_bytes() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        sent = [await send(batches, batch_of()) for _ in range(50)]
        classifier.ended.set()
        assert set(await asyncio.gather(*sent)) == {b"answer 1 to rows"}
        assert classifier.started == 1

    run(check)


def test_retry_after_the_answer_receives_the_cached_bytes() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        classifier.ended.set()
        first = await batches.answer("b", batch_of())
        assert await batches.answer("b", batch_of()) == first == b"answer 1 to rows"
        assert await batches.poll("b") == first
        assert classifier.started == 1

    run(check)


@pytest.mark.parametrize("other", [{"content": b"other rows"}, {"evidence": True}])
def test_batch_with_other_content_does_not_receive_the_answer_of_the_first(other: dict[str, Any]) -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        sent = await send(batches, batch_of())
        differing = await send(batches, batch_of(**other))
        classifier.ended.set()
        assert await sent != await differing
        assert classifier.started == 2
        await batches.answer("b", batch_of(**other))
        assert classifier.started == 3

    run(check)


def test_batch_that_outlasts_the_deadline_is_polled() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        assert await batches.answer("b", batch_of()) is None
        assert await batches.poll("b") is None
        assert await batches.answer("b", batch_of()) is None  # a retry
        classifier.ended.set()
        await reached(lambda: not len(batches))
        assert await batches.poll("b") == await batches.poll("b") == b"answer 1 to rows"
        assert classifier.started == 1

    run(check, deadline_seconds=0.05)


def test_client_that_retries_in_time_joins_the_running_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "ABANDONED_SECONDS", 60)

    async def check(batches: Batches, classifier: Classifier) -> None:
        (await send(batches, batch_of())).cancel()
        await settle()
        sent = await send(batches, batch_of())
        put_forward(61)
        await settle()
        classifier.ended.set()
        assert await sent == b"answer 1 to rows"
        assert classifier.cancelled == 0

    run(check)


def test_abandoned_batch_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "ABANDONED_SECONDS", 0.05)

    async def check(batches: Batches, classifier: Classifier) -> None:
        staying, leaving = [await send(batches, batch_of()) for _ in range(2)]
        leaving.cancel()
        await asyncio.sleep(0.1)
        assert classifier.cancelled == 0
        staying.cancel()
        await reached(lambda: classifier.cancelled == 1)
        await settle()
        with pytest.raises(BatchUnknown, match="Received: 'b'"):
            await batches.poll("b")
        classifier.ended.set()
        assert await batches.answer("b", batch_of()) == b"answer 2 to rows"

    run(check)


def test_deferred_batch_is_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "ABANDONED_SECONDS", 0.02)

    async def check(batches: Batches, classifier: Classifier) -> None:
        assert await batches.answer("b", batch_of()) is None
        await asyncio.sleep(0.1)
        classifier.ended.set()
        await reached(lambda: not len(batches))
        assert await batches.poll("b") == b"answer 1 to rows"

    run(check, deadline_seconds=0.02)


def test_every_waiting_client_receives_the_error_and_it_is_not_cached() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        classifier.error = InvalidBatch("no")
        sent = [await send(batches, batch_of()) for _ in range(3)]
        classifier.ended.set()
        for failed in sent:
            with pytest.raises(InvalidBatch):
                await failed
        classifier.error = None
        assert await batches.answer("b", batch_of()) == b"answer 2 to rows"

    run(check)


def test_poll_for_a_deferred_batch_that_failed_raises_its_error() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        classifier.error = InvalidBatch("no")
        assert await batches.answer("b", batch_of()) is None
        classifier.ended.set()
        await reached(lambda: not len(batches))
        for _ in range(2):
            with pytest.raises(InvalidBatch):
                await batches.poll("b")
        classifier.error = None
        assert await batches.answer("b", batch_of()) == b"answer 2 to rows"  # a new request

    run(check, deadline_seconds=0.02)


def test_kept_error_does_not_reference_the_rows() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        classifier.error = InvalidBatch("no")
        assert await batches.answer("b", batch_of()) is None
        classifier.ended.set()
        await reached(lambda: not len(batches))
        with pytest.raises(InvalidBatch) as failure:
            await batches.poll("b")
        frames = [frame for frame, _ in walk_tb(failure.value.__traceback__)]
        assert len(frames) > 3
        assert not any("answer" in frame.f_locals for frame in frames)

    run(check, deadline_seconds=0.02)


def test_body_counts_as_pending_while_the_batch_runs() -> None:
    admission = new_admission()

    async def check(batches: Batches, classifier: Classifier) -> None:
        with admission.reserve() as pending:
            pending.take(7)
            batch = SentBatch("b", None, b"rows", "identity", evidence=False, pending=pending)
            assert await batches.answer("b", batch) is None
        assert admission.pending_bytes == 7
        classifier.ended.set()
        await batches.close()
        await asyncio.sleep(0)
        assert admission.pending_bytes == 0

    run(check, deadline_seconds=0.02)


def test_shutdown_cancels_a_deferred_batch() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        assert await batches.answer("b", batch_of()) is None
        await batches.close()
        assert classifier.cancelled == 1

    run(check, deadline_seconds=0.02)


def test_poll_for_an_unknown_batch_raises_batch_unknown() -> None:
    async def check(batches: Batches, _: Classifier) -> None:
        assert not batches.knows("x")
        with pytest.raises(BatchUnknown):
            await batches.poll("x" * 1000)

    run(check)


def test_large_batches_are_compared_by_their_content() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        classifier.ended.set()
        large = bytes(3 * 1024 * 1024)
        await batches.answer("b", batch_of(large))
        await batches.answer("b", batch_of(large))
        assert classifier.started == 1
        await batches.answer("b", batch_of(large + b"."))
        assert classifier.started == 2

    run(check)
