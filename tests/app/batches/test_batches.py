import asyncio
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from traceback import walk_tb
from typing import Any

import pytest

from app.admission import Admission
from app.batches import batches as batches_module
from app.batches.batches import Batches
from app.batches.store import MemoryStore, Remembered, SentBatch
from app.errors import BatchUnknown, InvalidBatch
from app.workers.capacity import Capacity
from app.workers.queue import RowQueue

ADMISSION = Admission(RowQueue(Capacity(1, 1)), 1.0, 1000)


def batch_of(content: bytes = b"rows", batch_id: str = "b", *, evidence: bool = False) -> SentBatch:
    return SentBatch(batch_id, None, content, "identity", evidence, ADMISSION.reserve())


class Classifier:
    """Answers when it is told to, and counts."""

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


def run(check: Callable[[Batches, Classifier], Awaitable[Any]], deadline_seconds: float = 5.0) -> None:
    async def checked() -> None:
        classifier = Classifier()
        store = MemoryStore(600, 1_000_000)
        await check(Batches(classifier, store, deadline_seconds), classifier)

    asyncio.run(asyncio.wait_for(checked(), 20))


async def soon(batches: Batches, batch: SentBatch) -> "asyncio.Future[bytes | None]":
    """Asked for, and running."""
    asked = asyncio.ensure_future(batches.answer("b", batch))
    await asyncio.sleep(0.01)
    return asked


def test_retries_join_what_runs_and_all_hear_the_same_bytes() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        asked = [await soon(batches, batch_of()) for _ in range(50)]
        classifier.ended.set()
        assert set(await asyncio.gather(*asked)) == {b"answer 1 to rows"}
        assert classifier.started == 1

    run(check)


def test_retry_after_the_answer_gets_the_bytes_that_are_remembered() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        classifier.ended.set()
        first = await batches.answer("b", batch_of())
        assert await batches.answer("b", batch_of()) == first == b"answer 1 to rows"
        assert await batches.poll("b") == first
        assert classifier.started == 1

    run(check)


@pytest.mark.parametrize("other", [{"content": b"other rows"}, {"evidence": True}])
def test_batch_of_other_content_is_not_given_the_answer_of_the_first(other: dict[str, Any]) -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        asked = await soon(batches, batch_of())
        differing = await soon(batches, batch_of(**other))
        classifier.ended.set()
        assert await asked != await differing
        assert classifier.started == 2
        await batches.answer("b", batch_of(**other))
        assert classifier.started == 3

    run(check)


def test_batch_that_outlasts_the_deadline_is_asked_for_later() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        assert await batches.answer("b", batch_of()) is None
        assert await batches.poll("b") is None
        assert await batches.answer("b", batch_of()) is None  # sent once more
        classifier.ended.set()
        await asyncio.sleep(0.01)
        assert await batches.poll("b") == await batches.poll("b") == b"answer 1 to rows"
        assert classifier.started == 1

    run(check, deadline_seconds=0.05)


def test_caller_who_comes_back_in_time_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "ABANDONED_SECONDS", 0.2)

    async def check(batches: Batches, classifier: Classifier) -> None:
        (await soon(batches, batch_of())).cancel()
        await asyncio.sleep(0.1)
        asked = await soon(batches, batch_of())
        await asyncio.sleep(0.2)
        classifier.ended.set()
        assert await asked == b"answer 1 to rows"
        assert classifier.cancelled == 0

    run(check)


def test_batch_that_nobody_comes_back_for_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "ABANDONED_SECONDS", 0.05)

    async def check(batches: Batches, classifier: Classifier) -> None:
        staying, leaving = [await soon(batches, batch_of()) for _ in range(2)]
        leaving.cancel()
        await asyncio.sleep(0.1)
        assert classifier.cancelled == 0
        staying.cancel()
        await asyncio.sleep(0.1)
        assert classifier.cancelled == 1
        with pytest.raises(BatchUnknown, match="Received: 'b'"):
            await batches.poll("b")
        classifier.ended.set()
        assert await batches.answer("b", batch_of()) == b"answer 2 to rows"

    run(check)


def test_promised_answer_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "ABANDONED_SECONDS", 0.02)

    async def check(batches: Batches, classifier: Classifier) -> None:
        assert await batches.answer("b", batch_of()) is None
        await asyncio.sleep(0.1)
        classifier.ended.set()
        await asyncio.sleep(0.01)
        assert await batches.poll("b") == b"answer 1 to rows"

    run(check, deadline_seconds=0.02)


def test_failure_is_everybody_s_and_is_not_remembered() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        classifier.error = InvalidBatch("no")
        asked = [await soon(batches, batch_of()) for _ in range(3)]
        classifier.ended.set()
        for failed in asked:
            with pytest.raises(InvalidBatch):
                await failed
        classifier.error = None
        assert await batches.answer("b", batch_of()) == b"answer 2 to rows"

    run(check)


def test_failure_of_a_promised_answer_is_told_to_whoever_asks() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        classifier.error = InvalidBatch("no")
        assert await batches.answer("b", batch_of()) is None
        classifier.ended.set()
        await asyncio.sleep(0.01)
        for _ in range(2):
            with pytest.raises(InvalidBatch):
                await batches.poll("b")
        classifier.error = None
        assert await batches.answer("b", batch_of()) == b"answer 2 to rows"  # it was sent anew

    run(check, deadline_seconds=0.02)


def test_failure_that_is_kept_keeps_nothing_of_the_rows() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        classifier.error = InvalidBatch("no")
        assert await batches.answer("b", batch_of()) is None
        classifier.ended.set()
        await asyncio.sleep(0.01)
        with pytest.raises(InvalidBatch) as failure:
            await batches.poll("b")
        frames = [frame for frame, _ in walk_tb(failure.value.__traceback__)]
        assert len(frames) > 3
        assert not any("answer" in frame.f_locals for frame in frames)

    run(check, deadline_seconds=0.02)


def test_body_is_held_as_long_as_the_batch_runs() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        with ADMISSION.reserve() as pending:
            pending.take(7)
            batch = SentBatch("b", None, b"rows", "identity", evidence=False, pending=pending)
            assert await batches.answer("b", batch) is None
        assert ADMISSION.pending_bytes == 7
        classifier.ended.set()
        await batches.close()
        await asyncio.sleep(0)
        assert ADMISSION.pending_bytes == 0

    run(check, deadline_seconds=0.02)


def test_what_nobody_could_ask_for_any_more_is_not_waited_for() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        assert await batches.answer("b", batch_of()) is None
        await batches.close()
        assert classifier.cancelled == 1

    run(check, deadline_seconds=0.02)


def test_unknown_batch_is_unknown() -> None:
    async def check(batches: Batches, _: Classifier) -> None:
        assert not batches.knows("x")
        with pytest.raises(BatchUnknown):
            await batches.poll("x" * 1000)

    run(check)


def test_large_batch_has_the_digest_of_its_content() -> None:
    async def check(batches: Batches, classifier: Classifier) -> None:
        classifier.ended.set()
        large = bytes(3 * 1024 * 1024)
        await batches.answer("b", batch_of(large))
        await batches.answer("b", batch_of(large))
        assert classifier.started == 1
        await batches.answer("b", batch_of(large + b"."))
        assert classifier.started == 2

    run(check)


def remember(store: MemoryStore, **answers: bytes) -> list[str]:
    """Those that are still remembered when all were."""

    async def kept() -> list[str]:
        for batch_id, answer in answers.items():
            await store.keep(batch_id, Remembered(b"d", answer))
        return [batch_id for batch_id in answers if await store.find(batch_id)]

    return asyncio.run(kept())


def test_oldest_answers_make_room_for_the_latest() -> None:
    chance = random.Random(0)  # noqa: S311 - nothing is secret
    incompressible = [chance.randbytes(2000) for _ in range(2)]
    store = MemoryStore(600, max_bytes=3500)
    assert remember(store, a=b"small", b=incompressible[0], c=incompressible[1]) != ["a", "b", "c"]
    assert store.held_bytes <= 3500


def test_answer_that_is_larger_than_all_room_is_not_remembered() -> None:
    store = MemoryStore(600, max_bytes=100)
    assert remember(store, a=b"x" * 1000) == []
    assert store.held_bytes == 0


def test_answer_is_forgotten_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(600, max_bytes=1_000_000)
    assert remember(store, a=b"answer") == ["a"]
    later = monotonic() + 601
    monkeypatch.setattr("app.batches.store.monotonic", lambda: later)
    assert not store.has("a")
    assert (len(store), store.held_bytes) == (0, 0)


def test_answer_comes_back_byte_for_byte() -> None:
    store = MemoryStore(600, max_bytes=10_000_000)
    answer = b'{"data":[' + b",".join(b"[%d,null]" % n for n in range(100_000)) + b"]}"
    remember(store, a=answer)
    remembered = asyncio.run(store.find("a"))
    assert remembered == Remembered(b"d", answer)
    assert store.held_bytes < len(answer) / 3
