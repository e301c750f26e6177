import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from app.images.source import Base64Text
from app.outcome import ModelIdentity, Outcome, outcome_of_error
from app.workers.protocol import WaitingRow
from app.workers.queue import MAX_BYTES_PER_CALL, Capacity, QueuedRow, RowQueue
from model.errors import CorruptImage

OUTCOME = outcome_of_error(CorruptImage("?"), ModelIdentity(name="m", version="v"))


def rows(name: str, count: int) -> list[WaitingRow]:
    return [WaitingRow(name.encode(), evidence=False)] * count


def name_of(queued: QueuedRow) -> str:
    assert isinstance(queued.row.image, bytes)
    return queued.row.image.decode()


def on_loop(check: Callable[[RowQueue], Any], classifiers: int = 1) -> None:
    async def run() -> None:
        check(RowQueue(Capacity(classifiers, 64)))

    asyncio.run(run())


def take_calls(queue: RowQueue, count: int) -> list[str]:
    """The rows of the next calls."""
    return ["".join(map(name_of, queue.next_rows())) for _ in range(count)]


def test_small_request_does_not_wait_behind_a_batch() -> None:
    def check(queue: RowQueue) -> None:
        with queue.request(4096) as large, queue.request(1) as small:
            large.classify(rows("L", 4096))
            assert take_calls(queue, 100) == ["L"] * 100
            small.classify(rows("s", 1))
            assert "s" in take_calls(queue, 2)

    on_loop(check)


def test_calls_are_long_while_there_are_only_large_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("app.workers.queue.monotonic", lambda: now)

    def check(queue: RowQueue) -> None:
        nonlocal now
        with queue.request(4096) as large:
            large.classify(rows("L", 4096))
            assert take_calls(queue, 2) == ["L" * 32] * 2
            with queue.request(4):
                assert take_calls(queue, 1) == ["L"]
            now += 0.9
            assert take_calls(queue, 1) == ["L"]
            now += 0.2
            assert take_calls(queue, 1) == ["L" * 32]

    on_loop(check)


def test_calls_are_long_while_there_are_only_small_requests() -> None:
    def check(queue: RowQueue) -> None:
        with ExitStack() as requests:
            for _ in range(32):
                requests.enter_context(queue.request(1)).classify(rows("s", 1))
            assert take_calls(queue, 2) == ["s" * 17, "s" * 8]

    on_loop(check)


@pytest.mark.parametrize(
    ("image_bytes", "call_rows"),
    [(MAX_BYTES_PER_CALL // 8, 8), (MAX_BYTES_PER_CALL // 4, 4), (MAX_BYTES_PER_CALL, 1)],
)
@pytest.mark.parametrize("kind", [bytes, Base64Text])
def test_calls_of_large_images_are_short(image_bytes: int, call_rows: int, kind: type) -> None:
    def check(queue: RowQueue) -> None:
        image = bytes(image_bytes) if kind is bytes else Base64Text(b"A" * image_bytes)
        with queue.request(64) as request:
            request.classify([WaitingRow(image, evidence=False)] * 64)
            assert len(queue.next_rows()) == call_rows

    on_loop(check)


@pytest.mark.parametrize(("row_seconds", "call_rows"), [(0.001, 32), (0.02, 2), (0.06, 1), (10.0, 1)])
def test_calls_of_slow_images_are_short(row_seconds: float, call_rows: int) -> None:
    def check(queue: RowQueue) -> None:
        queue.capacity.record_classified(1, row_seconds)
        with queue.request(64) as request:
            request.classify(rows("L", 64))
            assert len(queue.next_rows()) == call_rows

    on_loop(check)


def test_oldest_request_gets_half_of_the_calls() -> None:
    def check(queue: RowQueue) -> None:
        with queue.request(400) as oldest:
            oldest.classify(rows("L", 400))
            taken = ""
            for _ in range(20):
                with queue.request(16) as small:
                    small.classify(rows("s", 16))
                    taken += "".join(take_calls(queue, 1))
            assert taken.count("L") == taken.count("s") == 320

    on_loop(check)


def test_requests_of_one_size_are_answered_in_the_order_of_their_arrival() -> None:
    def check(queue: RowQueue) -> None:
        with queue.request(2) as first, queue.request(2) as second, queue.request(2) as third:
            for name, request in {"c": third, "b": second, "a": first}.items():
                request.classify(rows(name, 2))
            assert "".join(take_calls(queue, 4)) == "aabbcc"

    on_loop(check)


@pytest.mark.parametrize(
    ("classifiers", "calls"), [(1, [7, 3, 2]), (2, [4, 3, 2, 1, 1, 1]), (4, [2, 2, 2, *[1] * 6])]
)
def test_calls_become_shorter_so_that_processes_end_a_request_together(
    classifiers: int, calls: list[int]
) -> None:
    async def run() -> list[int]:
        queue = RowQueue(Capacity(classifiers, 64))
        with queue.request(12) as request:
            request.classify(rows("a", 12))
            return [len(queue.next_rows()) for _ in calls]

    assert asyncio.run(run()) == calls
    assert sum(calls) == 12


def test_rows_that_arrive_later_keep_the_place_of_their_request() -> None:
    """As fetched rows do."""

    def check(queue: RowQueue) -> None:
        with queue.request(3) as first, queue.request(3) as second:
            for _ in range(3):
                first.classify(rows("a", 1))
                assert take_calls(queue, 1) == ["a"]
                second.classify(rows("b", 1))
            first.classify(rows("a", 1))
            assert "".join(take_calls(queue, 4)) == "abbb"

    on_loop(check, classifiers=4)


def test_rows_of_a_client_that_disconnected_are_dropped_and_counted() -> None:
    def check(queue: RowQueue) -> None:
        with queue.request(4) as staying:
            with queue.request(10) as leaving:
                leaving.classify(rows("l", 10))
                assert take_calls(queue, 1) == ["l"]
            assert queue.abandoned_rows == 9
            staying.classify(rows("s", 4))
            assert take_calls(queue, 2) == ["sss", "s"]
        assert queue.next_rows() == []

    on_loop(check)


def test_outcomes_are_in_the_order_of_their_rows() -> None:
    async def run() -> Sequence[Outcome | None]:
        queue = RowQueue(Capacity(1, 64))
        with queue.request(3) as request:
            answered = request.classify(rows("a", 3))
            for queued in reversed([queued for _ in range(2) for queued in queue.next_rows()]):
                outcome = None if queued.place == 1 else OUTCOME
                queued.group.answer(queued.place, outcome)
            return await answered

    assert asyncio.run(run()) == [OUTCOME, None, OUTCOME]


def test_request_fails_with_its_first_error() -> None:
    async def run() -> None:
        queue = RowQueue(Capacity(2, 64))
        with queue.request(2) as request:
            answered = request.classify(rows("a", 2))
            for _ in range(2):
                [queued] = queue.next_rows()
                queued.group.fail(RuntimeError("no"))
            with pytest.raises(RuntimeError, match="no"):
                await answered
            await asyncio.sleep(0)

    asyncio.run(run())


def test_request_without_rows_is_answered_at_once() -> None:
    async def run() -> Sequence[Outcome | None]:
        with RowQueue(Capacity(1, 64)).request(0) as request:
            return await request.classify([])

    assert asyncio.run(run()) == []


def test_on_put_is_called_for_new_rows() -> None:
    def check(queue: RowQueue) -> None:
        taken: list[str] = []
        queue.on_put = lambda: taken.extend(take_calls(queue, 1))
        with queue.request(2) as request:
            request.classify(rows("a", 1))
            request.classify(rows("b", 1))
        assert taken == ["a", "b"]

    on_loop(check)


def test_ended_requests_are_removed_from_the_heaps() -> None:
    def check(queue: RowQueue) -> None:
        with queue.request(1) as small:
            small.classify(rows("s", 1))
            for _ in range(1000):
                with queue.request(2) as request:
                    request.classify(rows("a", 2))
            assert max(len(heap._heap) for heap in queue._lanes[None]._heaps) < 100  # noqa: SLF001
            assert take_calls(queue, 1) == ["s"]

    on_loop(check)


def test_callers_take_turns() -> None:
    def check(queue: RowQueue) -> None:
        with ExitStack() as noisy, queue.request(64, caller="quiet") as quiet:
            for _ in range(160):
                noisy.enter_context(queue.request(64, caller="noisy")).classify(rows("N", 64))
            taken = "".join(take_calls(queue, 10))
            assert set(taken) == {"N"}
            quiet.classify(rows("q", 64))
            taken = "".join(take_calls(queue, 4))
            assert taken.count("q") == taken.count("N") == 64
            assert set("".join(take_calls(queue, 10))) == {"N"}

    on_loop(check)


def test_no_caller_waits_for_more_than_a_row_of_each_other() -> None:
    """Whatever their requests' sizes, and with more requests arriving all the time."""

    def check(queue: RowQueue) -> None:
        names = "abcd"
        with ExitStack() as requests:
            taken = ""
            for step in range(40):
                for name in names:
                    size = {"a": 1, "b": 4, "c": 64, "d": 400}[name]
                    if step % (1 + size // 16) == 0:
                        request = requests.enter_context(queue.request(size, caller=name))
                        request.classify(rows(name, size))
                taken += "".join(take_calls(queue, 4))
                assert len(taken) >= 4 * step
            assert all(set(taken[start : start + 4]) == set(names) for start in range(0, len(names) * 9, 4))

    on_loop(check)


def test_one_caller_with_a_name_is_served_as_without() -> None:
    def order(queue: RowQueue, caller: str | None) -> str:
        with ExitStack() as requests:
            for name, size in (("a", 9), ("b", 1), ("c", 64), ("d", 4), ("e", 1)):
                requests.enter_context(queue.request(size, caller=caller)).classify(rows(name, size))
            return "|".join(take_calls(queue, 80))

    def check(queue: RowQueue) -> None:
        assert order(queue, "mill") == order(RowQueue(Capacity(1, 64)), None)

    on_loop(check)


def test_small_requests_of_callers_take_turns_in_the_spare_process() -> None:
    def check(queue: RowQueue) -> None:
        with ExitStack() as requests:
            for name in "NNNNqN":
                request = requests.enter_context(queue.request(2, caller=name))
                request.classify(rows(name, 2))
            taken = ["".join(map(name_of, queue.next_small_rows())) for _ in range(3)]
            assert taken == ["NN", "qq", "NN"]

    on_loop(check)


def test_waiting_rows_of_every_caller_fail_together() -> None:
    def check(queue: RowQueue) -> None:
        with queue.request(1, caller="a") as first, queue.request(1, caller="b") as second:
            answers = [request.classify(rows("r", 1)) for request in (first, second)]
            queue.fail_waiting(ValueError("no process"))
            assert all(isinstance(answer.exception(), ValueError) for answer in answers)

    on_loop(check)


def test_callers_without_requests_take_no_memory() -> None:
    def check(queue: RowQueue) -> None:
        with queue.request(1, caller="staying") as request:
            request.classify(rows("s", 1))
            for number in range(1000):
                with queue.request(1, caller=f"caller-{number}") as other:
                    other.classify(rows("o", 1))
                    assert take_calls(queue, 1) in (["s"], ["o"])
                    request.classify(rows("s", 1))
            assert len(queue._lanes) <= 2  # noqa: SLF001
            assert len(queue._turns) <= 2  # noqa: SLF001

    on_loop(check, classifiers=2)
