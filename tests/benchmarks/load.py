"""The load process, which reads a job per line and writes a report per line: python -m tests.benchmarks.load.

A closed loop keeps n connections busy. An open loop sends at random times (Poisson) at a given rate, even if
the server does not keep up, and measures latency from the intended start, so that no stall is hidden.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial

import numpy as np
import uvloop

from tests.benchmarks.answers import AnswerCheck, WrongAnswer
from tests.benchmarks.connection import Connection, ConnectionLost
from tests.benchmarks.contenders import Form
from tests.benchmarks.footprint import cpu_seconds, server_processes
from tests.benchmarks.images import AS_THEY_ARE, load_images
from tests.benchmarks.request_bodies import Request, Requests, make_bodies
from tests.benchmarks.window import REFUSALS, ClosedWindow, OpenWindow, Tally, quantile

TIMEOUT_SECONDS = 60.0
PAUSE_BETWEEN_CONNECTIONS_SECONDS = 0.005
PAUSE_AFTER_FAILURE_SECONDS = 0.05
# An open loop opens connections as it needs them, up to here; then requests wait, on the clock.
MOST_CONNECTIONS = 128
SEED = 7


@dataclass(frozen=True)
class Job:
    port: int
    path: str
    form: Form
    rows: int
    seconds: float
    connections: int = 1
    requests_per_second: float | None = None
    """Open loop if given."""
    most_connections: int = MOST_CONNECTIONS
    warm_up_seconds: float = 0.3
    images: str = AS_THEY_ARE
    """Their kind."""
    watched_pid: int | None = None
    """Leader of the server's processes, whose CPU time is read at both ends of the window."""


@dataclass(frozen=True)
class Report:
    images: int
    requests: int
    seconds: float
    p50_ms: float | None
    p99_ms: float | None
    refusals: int
    refusal_p50_ms: float | None
    """From when it was really sent."""
    refusal_p99_ms: float | None
    errors: dict[str, int]
    """By status, or by kind; refusals are among them."""
    first_error: str | None
    server_cpu_seconds: float
    load_cpu_seconds: float

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


class CpuClock:
    """CPU seconds of the server and of this process between its first two ticks."""

    def __init__(self, watched_pid: int | None) -> None:
        self._pids = [] if watched_pid is None else server_processes(watched_pid)
        self._ticks: list[tuple[float, float]] = []

    def tick(self) -> None:
        self._ticks.append((cpu_seconds(self._pids), time.process_time()))

    @property
    def spent(self) -> tuple[float, float]:
        if len(self._ticks) < 2:
            return 0.0, 0.0
        (server_begin, load_begin), (server_end, load_end) = self._ticks[:2]
        return server_end - server_begin, load_end - load_begin


class Asker:
    """Sends a request and judges its answer."""

    def __init__(self, job: Job) -> None:
        self._check = AnswerCheck(job.form, job.rows)
        self.first_error: str | None = None
        self.refusal_seconds: list[float] = []

    async def ask(self, connection: Connection, request: Request) -> str | None:
        """What went wrong, if anything did: a status, or a kind of error."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                answer = await connection.ask(request)
            if answer.status in REFUSALS:
                self.refusal_seconds.append(time.perf_counter() - started)
            if answer.status == 200:
                self._check.require_labels(answer.body, whole=connection.answers_since_open == 1)
                return None
            return self._note(str(answer.status), answer.body[:300].decode(errors="replace"))
        except (OSError, ConnectionLost, WrongAnswer) as error:  # OSError: TimeoutError too
            connection.close()
            return self._note(type(error).__name__, str(error))

    def _note(self, kind: str, message: str) -> str:
        self.first_error = self.first_error or f"{kind}: {message}"
        return kind


def is_refusal(kind: str) -> bool:
    return kind in map(str, REFUSALS)


async def run_job(job: Job, requests: Iterator[Request]) -> Report:
    clock = CpuClock(job.watched_pid)
    asker = Asker(job)
    if job.requests_per_second is None:
        tally = await _closed_loop(job, requests, asker, clock)
    else:
        tally = await _open_loop(job, job.requests_per_second, requests, asker, clock)
    return _report(tally, asker, clock)


async def _closed_loop(job: Job, requests: Iterator[Request], asker: Asker, clock: CpuClock) -> Tally:
    connections = await _open_connections(job)
    window = ClosedWindow(job.connections, job.rows, job.warm_up_seconds, job.seconds, clock.tick)

    async def keep_asking(connection: Connection) -> None:
        while not window.is_over:
            started = time.perf_counter()
            failure = await asker.ask(connection, next(requests))
            if failure is None:
                window.answered(time.perf_counter() - started)
            else:
                window.failed(failure, is_refusal=is_refusal(failure))
                await asyncio.sleep(PAUSE_AFTER_FAILURE_SECONDS)
        connection.close()

    await asyncio.gather(*map(keep_asking, connections))
    return window.tally


async def _open_connections(job: Job) -> list[Connection]:
    """One after the other: of many at once, the first worker that looks would take all, and others none."""
    connections = [Connection(job.port) for _ in range(job.connections)]
    with suppress(OSError):  # the first request meets it again
        for connection in connections:
            await connection.open()
            await asyncio.sleep(PAUSE_BETWEEN_CONNECTIONS_SECONDS)
    return connections


async def _open_loop(
    job: Job, rate: float, requests: Iterator[Request], asker: Asker, clock: CpuClock
) -> Tally:
    began = time.perf_counter() + 0.05
    opens = began + job.warm_up_seconds
    closes = opens + job.seconds
    window = OpenWindow(job.rows, opens, closes)
    permits, idle = asyncio.Semaphore(job.most_connections), list[Connection]()

    async def ask_once(intended: float) -> None:
        async with permits:
            connection = idle.pop() if idle else Connection(job.port)
            failure = await asker.ask(connection, next(requests))
            idle.append(connection)
        if failure is None:
            window.answered(intended)
        else:
            window.failed(failure, intended, is_refusal=is_refusal(failure))

    await _start_on_time(_arrivals(began, closes, rate), ask_once, [opens, closes], clock.tick)
    for connection in idle:
        connection.close()
    return window.tally


def _arrivals(began: float, closes: float, rate: float) -> list[float]:
    """Times of a Poisson process; the same gaps, scaled, for every server."""
    random = np.random.default_rng(SEED)
    gaps = random.exponential(1 / rate, size=int((closes - began) * rate * 2) + 50)
    times = began + np.cumsum(gaps)
    return [float(at) for at in times[times < closes]]


async def _start_on_time(
    arrivals: list[float],
    start: Callable[[float], Awaitable[None]],
    edges: list[float],
    on_edge: Callable[[], None],
) -> None:
    """A thread keeps the time, for the loop's own clock has milliseconds only."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Future[None]] = []
    events: list[tuple[float, Callable[[], object]]] = [
        *((at, partial(lambda at: tasks.append(asyncio.ensure_future(start(at))), at)) for at in arrivals),
        *((at, on_edge) for at in edges),
    ]

    def keep_time() -> None:
        for at, event in sorted(events, key=lambda timed: timed[0]):
            time.sleep(max(0.0, at - time.perf_counter()))
            loop.call_soon_threadsafe(event)

    await asyncio.to_thread(keep_time)
    await asyncio.sleep(0)  # let the last event happen
    await asyncio.gather(*tasks)


def _report(tally: Tally, asker: Asker, clock: CpuClock) -> Report:
    server_cpu, load_cpu = clock.spent
    p50, p99 = _quantiles_ms(tally.latencies)
    refusal_p50, refusal_p99 = _quantiles_ms(asker.refusal_seconds)
    return Report(
        images=tally.images,
        requests=tally.requests,
        seconds=tally.seconds,
        p50_ms=p50,
        p99_ms=p99,
        refusals=tally.refusals,
        refusal_p50_ms=refusal_p50,
        refusal_p99_ms=refusal_p99,
        errors=dict(tally.errors),
        first_error=asker.first_error,
        server_cpu_seconds=server_cpu,
        load_cpu_seconds=load_cpu,
    )


def _quantiles_ms(seconds: Sequence[float]) -> list[float | None]:
    """The median, and the value that one in a hundred exceeds."""
    found = (quantile(seconds, share) for share in (0.5, 0.99))
    return [None if value is None else 1000 * value for value in found]


@lru_cache(maxsize=8)
def _bodies(form: Form, rows: int, images: str) -> list[bytes]:
    return make_bodies(form, rows, _files(images))


@lru_cache
def _files(images: str) -> tuple[bytes, ...]:
    return load_images(images).files


def main() -> None:
    for line in sys.stdin:
        job = Job(**json.loads(line))
        requests = iter(Requests(job.form, job.path, _bodies(job.form, job.rows, job.images)))
        print(json.dumps(asdict(uvloop.run(run_job(job, requests)))), flush=True)


if __name__ == "__main__":
    # The pacing thread must not wait for its turn: the default lets another thread run for 5 ms.
    sys.setswitchinterval(0.0005)
    main()
