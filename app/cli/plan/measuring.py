"""Measures a service over HTTP: a closed loop of batches in Snowflake's format, for a few seconds.

Generating the load takes CPU time too: on the service's own machine, it lowers the measured rate.
"""

import base64
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from itertools import cycle, islice, repeat
from pathlib import Path
from urllib.parse import urlsplit

from app.cli.plan.figures import Measured
from app.cli.service_process import own_service
from app.client import TIMEOUT_SECONDS, ClientError

CONCURRENCY = (1, 2, 4, 8, 16)
ROUNDS = 3
ROUND_SECONDS = 0.5
# Limits of one measured batch, so that slow models and large photographs also take seconds only.
MOST_ROWS = 64
MOST_BATCH_SECONDS = 0.5
MOST_BODY_BYTES = 8_000_000
# After this time, no higher concurrency is tried.
BUDGET_SECONDS = 15.0
# The minimum gain of a higher concurrency; less is noise.
GAIN = 1.05

CpuClock = Callable[[], float | None]


@dataclass(frozen=True)
class Level:
    """The measurement at one concurrency."""

    concurrency: int
    rate: float
    """Images a second, the median of the rounds."""
    cpu_seconds_per_image: float | None


def measure(
    url: str,
    images: Sequence[bytes],
    cores: int,
    cpu_clock: CpuClock = lambda: None,
    *,
    evidence: bool = False,
) -> Measured:
    """Measure the service at `url`, which has `cores` cores, with `images`. Raises ClientError."""
    url = f"{url.rstrip('/')}/classify{'?evidence=true' if evidence else ''}"
    seconds_of_one, outcome_bytes = _probe(url, images)
    rows = _affordable_rows(images, seconds_of_one)
    overhead = _fit_overhead(url, images, rows)
    levels = _find_saturation(url, _batch(images, rows), rows, cpu_clock)
    best = max(level.rate for level in levels)
    busy = next(level for level in levels if level.rate * GAIN >= best)
    return Measured(
        images_per_second=best,
        cores=cores,
        image_bytes=round(statistics.mean(map(len, images))),
        outcome_bytes=outcome_bytes,
        batch_overhead_seconds=overhead,
        busy_batches=busy.concurrency,
        cpu_seconds_per_image=busy.cpu_seconds_per_image,
        how=f"median of {ROUNDS} rounds; {cores} cores, {busy.concurrency} concurrent batches of {rows} rows",
    )


@contextmanager
def service_to_measure() -> Iterator[tuple[str, CpuClock]]:
    """Start a service; yields its URL and a clock of its CPU time."""
    with own_service() as (url, service):
        yield url, lambda: cpu_seconds(service.pid)


def cpu_seconds(pid: int) -> float | None:
    """CPU seconds of a process and its descendants; None without /proc."""
    times = {int(folder.name): _parent_and_ticks(folder) for folder in Path("/proc").glob("[0-9]*")}
    family = {pid}
    while more := {child for child, (parent, _) in times.items() if parent in family} - family:
        family |= more
    found = [times[member][1] for member in family if member in times]
    return sum(found) / os.sysconf("SC_CLK_TCK") if found else None


def _parent_and_ticks(folder: Path) -> tuple[int, int]:
    try:
        # ppid, utime and stime are fields 4, 14 and 15 of proc(5); the name before them may have spaces.
        fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:  # the process has just ended
        return 0, 0
    return int(fields[1]), int(fields[11]) + int(fields[12])


class _Caller:
    """Sends batches in turn over one connection."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            parts = urlsplit(url)
            kind = {"http": HTTPConnection, "https": HTTPSConnection}[parts.scheme]
            self.connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
        except (KeyError, ValueError):
            message = f"The service's URL must begin with http:// or https://. Received: {url}"
            raise ClientError(message) from None
        self.target = f"{parts.path}?{parts.query}" if parts.query else parts.path

    def post(self, body: bytes) -> tuple[float, bytes]:
        """The seconds that one batch took, and the response body. Raises ClientError."""
        started = time.perf_counter()
        try:
            self.connection.request("POST", self.target, body, {"Content-Type": "application/json"})
            response = self.connection.getresponse()
            answer = response.read()
        except (OSError, HTTPException, ValueError) as error:
            message = f"{self.url} does not answer ({error}); start it with: ext-classify serve"
            raise ClientError(message) from None
        if response.status != 200:
            text = answer[:300].decode(errors="replace")
            raise ClientError(f"{self.url} answered {response.status}: {text}")
        return time.perf_counter() - started, answer

    def close(self) -> None:
        self.connection.close()


def _probe(url: str, images: Sequence[bytes]) -> tuple[float, int]:
    """Median seconds of a batch of one image, and the largest response to one."""
    with closing(_Caller(url)) as caller:
        answers = [caller.post(_batch([image], 1)) for image in images]
    for _, answer in answers:
        _require_outcome(url, answer)
    return statistics.median(seconds for seconds, _ in answers), max(len(answer) for _, answer in answers)


def _require_outcome(url: str, answer: bytes) -> None:
    """Raises ClientError for an image with an error: it would take less time than others."""
    try:
        [[_, outcome]] = json.loads(answer)["data"]
        error = outcome["error"]
    except (ValueError, KeyError, TypeError):
        raise ClientError(f"{url} must answer in Snowflake's format. Received: {answer[:100]!r}") from None
    if error is not None:
        raise ClientError(f"Images to measure with must be classified. Received: {error['code']}.")


def _affordable_rows(images: Sequence[bytes], seconds_of_one: float) -> int:
    """The largest power of two of rows within the limits of time and bytes."""
    largest = max(map(len, images))
    most = min(
        MOST_ROWS,
        int(MOST_BATCH_SECONDS / seconds_of_one),
        MOST_BODY_BYTES // (4 * largest // 3 + 1),
    )
    return int(2 ** (max(1, most).bit_length() - 1))


def _fit_overhead(url: str, images: Sequence[bytes], rows: int) -> float:
    """Seconds of a batch that do not depend on its rows: the intercept of a line through the medians."""
    sizes = sorted({max(1, rows // 4), max(1, rows // 2), rows})
    if len(sizes) == 1:
        return 0.0
    with closing(_Caller(url)) as caller:
        medians = [
            statistics.median(caller.post(body)[0] for _ in range(5))
            for body in (_batch(images, size) for size in sizes)
        ]
    return max(0.0, statistics.linear_regression(sizes, medians).intercept)


def _find_saturation(url: str, body: bytes, rows: int, cpu_clock: CpuClock) -> list[Level]:
    """Measure with increasing concurrency until the rate stops growing."""
    started = time.perf_counter()
    levels: list[Level] = []
    for concurrency in CONCURRENCY:
        level = _measure_level(url, body, rows, concurrency, cpu_clock)
        gained = not levels or level.rate > levels[-1].rate * GAIN
        levels.append(level)
        if not gained or time.perf_counter() - started > BUDGET_SECONDS:
            break
    return levels


def _measure_level(url: str, body: bytes, rows: int, concurrency: int, cpu_clock: CpuClock) -> Level:
    before = cpu_clock()
    images, rates = 0, []
    with ExitStack() as stack:
        callers = [stack.enter_context(closing(_Caller(url))) for _ in range(concurrency)]
        threads = stack.enter_context(ThreadPoolExecutor(concurrency))
        for _ in range(ROUNDS):
            started = time.perf_counter()
            count = sum(threads.map(_post_for_a_round, callers, repeat(body))) * rows
            rates.append(count / (time.perf_counter() - started))
            images += count
    after = cpu_clock()
    spent = None if before is None or after is None else (after - before) / images
    return Level(concurrency, statistics.median(rates), spent)


def _post_for_a_round(caller: _Caller, body: bytes) -> int:
    """Post batches for ROUND_SECONDS; returns how many were answered, at least one."""
    until = time.perf_counter() + ROUND_SECONDS
    batches = 0
    while not batches or time.perf_counter() < until:
        caller.post(body)
        batches += 1
    return batches


def _batch(images: Sequence[bytes], rows: int) -> bytes:
    texts = [base64.b64encode(image).decode() for image in islice(cycle(images), rows)]
    return json.dumps({"data": list(enumerate(texts))}).encode()
