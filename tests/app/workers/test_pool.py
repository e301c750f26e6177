import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from threading import Event, Thread
from typing import Any, cast

import pytest

from app.outcome import ModelIdentity, Outcome, outcome_of_error
from app.settings import Settings
from app.workers import starting
from app.workers.pool import ClassifierPool, LiveClassifiers
from app.workers.protocol import Answers, Greeting, ServedModel, WaitingRow, format_frame, read_rows
from app.workers.queue import Capacity, RowQueue
from app.workers.starting import ClassifierProcesses
from model.errors import CorruptImage
from tests.app.workers.test_host import family, needs_proc
from tests.running import wait_until

MODEL = ServedModel(ModelIdentity(name="m", version="v"), {})


def outcome_naming(image: object) -> Outcome:
    assert isinstance(image, bytes)
    return outcome_of_error(CorruptImage(image.decode()), MODEL.identity)


def name_in(outcome: Outcome | None) -> str:
    assert outcome is not None
    assert outcome["error"] is not None
    code, message = outcome["error"]["code"], outcome["error"]["message"]
    return message if code == "corrupt_image" else code


class ScriptedHost:
    """Its processes answer with the names of their images, and crash on those named `deadly`."""

    def __init__(self) -> None:
        self.started = 0
        self.calls: list[str] = []
        self.ended: list[None] = []
        """One item per process that has ended."""
        self.greeting = Greeting(MODEL)
        self.on_call: Callable[[str], None] = lambda _: None

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.started += 1
        Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return ours

    def kill(self, pid: int) -> None:
        """Threads have no process id, and end with their connection."""

    def kill_others(self, healthy: Collection[int]) -> None:
        """Its processes start at once."""

    def ticks_without(self, healthy: Collection[int]) -> int | None:
        return None

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as calls, suppress(EOFError, ConnectionError):
            greeting = self.greeting
            connection.sendall(format_frame(greeting))
            while greeting.model and (rows := read_rows(calls)):
                names = " ".join(bytes(row.image).decode() for row in rows)  # type: ignore[arg-type]
                self.calls.append(names)
                self.on_call(names)
                if "deadly" in names:
                    return
                connection.sendall(format_frame(Answers([outcome_naming(row.image) for row in rows])))
        self.ended.append(None)


def family_of(forks: int) -> tuple[int, list[int]]:
    """Wait for this number of forks."""
    wait_until(lambda: len(family()[1]) == forks)
    return family()


def rows(names: str) -> list[WaitingRow]:
    return [WaitingRow(name.encode(), evidence=False) for name in names.split()]


async def classify(queue: RowQueue, names: str) -> list[str]:
    with queue.request(len(names.split())) as request:
        return [name_in(outcome) for outcome in await request.classify(rows(names))]


def in_pool(
    host: ScriptedHost, *requests: str, processes: int = 1, max_image_cpu_seconds: float = 120
) -> Sequence[Any]:
    async def run() -> Sequence[Any]:
        queue = RowQueue(Capacity(processes, 64))
        pool = ClassifierPool(queue, host, MODEL, max_image_cpu_seconds)
        answers = [asyncio.ensure_future(classify(queue, names)) for names in requests]
        await asyncio.sleep(0)  # all rows wait before a process takes some
        for _ in range(processes):
            await pool.connect(host.connect(), has_greeted=False)
        try:
            return await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), 120)
        finally:
            pool.close()

    return asyncio.run(run())


def test_outcomes_come_back_to_their_requests() -> None:
    names = [f"{request}-{row}" for request in "abc" for row in range(20)]
    requests = [" ".join(names[begin : begin + 20]) for begin in (0, 20, 40)]
    answers = in_pool(ScriptedHost(), *requests, processes=2)
    assert [name for answer in answers for name in answer] == names


def test_failed_rows_do_not_change_the_measured_row_time() -> None:
    """ScriptedHost answers every row with an error."""

    async def run() -> float:
        queue = RowQueue(Capacity(1, 64))
        queue.capacity.record_classified(1, 0.5)
        pool = ClassifierPool(queue, ScriptedHost(), MODEL, 120)
        await pool.connect(ScriptedHost().connect(), has_greeted=False)
        await classify(queue, " ".join(map(str, range(100))))
        pool.close()
        return queue.capacity.classify_seconds

    assert asyncio.run(run()) == 0.5


def test_on_check_is_called_while_rows_are_classified() -> None:
    async def run() -> None:
        queue, looked = RowQueue(Capacity(1, 64)), asyncio.Event()
        queue.on_check = looked.set
        host, ended = ScriptedHost(), Event()
        host.on_call = lambda _: cast("None", ended.wait(120))
        pool = ClassifierPool(queue, host, MODEL, 120)
        await pool.connect(host.connect(), has_greeted=False)
        classifying = asyncio.ensure_future(classify(queue, "a"))
        await asyncio.wait_for(looked.wait(), 120)
        ended.set()
        await classifying
        pool.close()

    asyncio.run(run())


def test_image_that_crashes_processes_fails_alone() -> None:
    """Its neighbours are in the same call, and in the call that waits behind it."""
    names = " ".join(["a", "b", "deadly", *map(str, range(29))])
    host = ScriptedHost()
    others = " ".join(f"x{number}" for number in range(9))
    [answer, other] = in_pool(host, names, others)
    assert answer == names.replace("deadly", "classifier_died").split()
    assert other == others.split()
    assert host.started == 4  # after three crashes
    assert host.calls.count("deadly") == 2  # the last two attempts alone


def test_rows_of_a_process_that_crashes_once_are_retried() -> None:
    host, killed = ScriptedHost(), list[str]()

    def die_once(names: str) -> None:
        if not killed and "7" in names.split():
            killed.append(names)
            raise ConnectionError

    host.on_call = die_once
    names = " ".join(map(str, range(20)))
    assert in_pool(host, names, processes=2) == [names.split()]
    assert killed


def test_image_that_exceeds_the_time_limit_is_retried_alone_once() -> None:
    """The process ends itself; the service concludes the reason from the time that it took."""
    host = ScriptedHost()
    host.on_call = lambda names: time.sleep(0.3 if "deadly" in names else 0)
    [answer] = in_pool(host, "a b deadly c d", max_image_cpu_seconds=0.25)
    assert answer == ["a", "b", "classify_timeout", "c", "d"]
    assert host.calls.count("deadly") == 1


def test_exception_in_a_process_fails_its_request_only() -> None:
    class Failing(ScriptedHost):
        def _serve(self, connection: socket.socket) -> None:
            with connection, connection.makefile("rb") as calls, suppress(ConnectionError):
                connection.sendall(format_frame(self.greeting))
                while names := [bytes(row.image).decode() for row in read_rows(calls)]:  # type: ignore[arg-type]
                    failures = {place: "Broken: yes" for place, name in enumerate(names) if name == "bad"}
                    outcomes = [None if name == "bad" else outcome_naming(name.encode()) for name in names]
                    connection.sendall(format_frame(Answers(outcomes, failures)))

    [good, bad] = in_pool(Failing(), "a b c", "d bad f")
    assert good == ["a", "b", "c"]
    assert isinstance(bad, RuntimeError)
    assert "Broken: yes" in str(bad)


def test_process_that_sends_an_invalid_frame_is_replaced() -> None:
    class Confused(ScriptedHost):
        def _serve(self, connection: socket.socket) -> None:
            if self.started > 1:
                super()._serve(connection)
                return
            with connection, connection.makefile("rb") as calls, suppress(ConnectionError):
                connection.sendall(format_frame(self.greeting))
                read_rows(calls)
                connection.sendall(format_frame(Answers([])))
                calls.read()

    host = Confused()
    assert in_pool(host, "a b c d e f") == [["a", "b", "c", "d", "e", "f"]]
    assert host.started == 2


def test_failed_start_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "RETRY_SECONDS", 0.02)

    class Exhausted(ScriptedHost):
        refused = 0

        def connect(self) -> socket.socket:
            if self.started == 1 and self.refused < 3:
                self.refused += 1
                raise BlockingIOError("no more processes")
            return super().connect()

    host = Exhausted()

    def die_at_first(_: str) -> None:
        if host.started == 1:
            raise ConnectionError

    host.on_call = die_at_first
    [answer] = in_pool(host, "a b c")
    assert answer == ["a", "b", "c"]
    assert (host.refused, host.started) == (3, 2)


def test_process_that_cannot_classify_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "RETRY_SECONDS", 0.05)
    host = ScriptedHost()
    host.greeting = Greeting(refusal="no network")

    async def run() -> list[str]:
        queue = RowQueue(Capacity(1, 64))
        pool = ClassifierPool(queue, host, MODEL, max_image_cpu_seconds=120)
        answer = asyncio.ensure_future(classify(queue, "a"))
        await pool.connect(host.connect(), has_greeted=False)
        while host.started < 3:  # noqa: ASYNC110 - it is another task that starts one
            await asyncio.sleep(0.01)
        host.greeting = Greeting(MODEL)
        try:
            return await asyncio.wait_for(answer, 120)
        finally:
            pool.close()

    assert asyncio.run(run()) == ["a"]


def test_rows_of_an_ended_request_are_not_retried() -> None:
    host = ScriptedHost()

    async def run() -> None:
        queue = RowQueue(Capacity(1, 64))
        pool = ClassifierPool(queue, host, MODEL, max_image_cpu_seconds=120)
        leaving = asyncio.ensure_future(classify(queue, "a deadly c d e f g h"))
        host.on_call = lambda names: leaving.get_loop().call_soon_threadsafe(leaving.cancel)
        await asyncio.sleep(0)
        await pool.connect(host.connect(), has_greeted=False)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await asyncio.wait_for(classify(queue, "x"), 120) == ["x"]
        pool.close()

    asyncio.run(run())
    assert "x" in host.calls
    assert sum("deadly" in names.split() for names in host.calls) == 1


@pytest.mark.slow
@needs_proc
def test_rows_are_retried_after_all_processes_are_killed(sample: bytes) -> None:
    async def run() -> list[str | None]:
        settings = Settings(classifiers=2)
        processes = ClassifierProcesses(settings)
        queue = RowQueue(Capacity(2, 64))
        async with LiveClassifiers(settings, queue, processes, processes.wait_until_ready()):
            with queue.request(400) as request:
                answered = request.classify([WaitingRow(sample, evidence=False)] * 400)
                for kills_host in (False, True):
                    host, forked = await asyncio.to_thread(family_of, 2)
                    for pid in [*forked, host] if kills_host else forked:
                        os.kill(pid, signal.SIGKILL)
                return [outcome and outcome["label"] for outcome in await asyncio.wait_for(answered, 120)]

    assert asyncio.run(run()) == ["Scratches"] * 400
