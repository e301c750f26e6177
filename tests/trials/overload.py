"""python -m tests.trials.overload: throughput under many times the possible load, and recovery after it.

The service has one core, the load another. Each line is measured right after its own peak, a closed loop of
eight connections, so that other programs on the machine slow both.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

from app.client import is_ready
from tests.benchmarks.contenders import Form
from tests.benchmarks.footprint import cpu_seconds, server_processes
from tests.benchmarks.images import JPEG, load_images
from tests.benchmarks.request_bodies import Requests, make_bodies
from tests.running import logging_service, wait_until
from tests.trials.flood import Flood, Tally, quantiles

CELLS: tuple[tuple[Form, int], ...] = (("image", 1), ("snowflake", 64))
FACTORS = (1.5, 3.0, 10.0)
PEAK_CONNECTIONS = 8
# Enough that one is always free while refusals are quick.
MOST_CONNECTIONS = 2048
DIFFERENT_BODIES = 64
# The service has recovered once a single image takes at most this multiple of its time before the load.
RECOVERED = 3.0
COLUMNS = (
    "offered",
    "images/s",
    "of the peak",
    "images per CPU second of the service, of the peak",
    "ms, p50 / p99",
    "429/s",
    "429 in ms, p50 / p99",
    "CPU us of a 429, if images cost what they cost at the peak",
    "cores, service / load",
    "load late by ms, p99",
    "not sent for want of a connection",
    "other answers",
    "s to recover",
)


def ask_once(port: int, image: bytes) -> tuple[int, float]:
    """Status, and seconds."""
    began = time.perf_counter()
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/classify", image, {"Content-Type": "application/octet-stream"})
    status = connection.getresponse().status
    connection.close()
    return status, time.perf_counter() - began


def recovery_seconds(port: int, image: bytes, unloaded_seconds: float) -> float:
    """From the end of the load to the first of five quick answers in a row."""
    began, quick_since, quick = time.perf_counter(), time.perf_counter(), 0
    while quick < 5:
        asked_at = time.perf_counter()
        status, seconds = ask_once(port, image)
        if status == 200 and seconds <= RECOVERED * unloaded_seconds:
            quick += 1
        else:
            quick, quick_since = 0, asked_at + seconds
    return quick_since - began


def describe(factor: float, rows: int, tally: Tally, peak: Tally, recovery: float) -> str:
    images, peak_images = rows * tally.answers[200], rows * peak.answers[200]
    cpu_an_image = peak.service_cpu_seconds / peak_images
    refusals = tally.answers[429]
    refusal_cpu = (tally.service_cpu_seconds - images * cpu_an_image) / max(1, refusals)
    other = {status: count for status, count in tally.answers.items() if status not in (200, 429) and count}
    cells = (
        f"{factor:g}x",
        f"{images / tally.seconds:.0f}",
        f"{images / tally.seconds / (peak_images / peak.seconds):.0%}",
        f"{images * cpu_an_image / tally.service_cpu_seconds:.0%}",
        quantiles(tally.served_ms),
        f"{refusals / tally.seconds:.0f}",
        quantiles(tally.refused_ms),
        f"{1e6 * refusal_cpu:.0f}",
        f"{tally.service_cpu_seconds / tally.seconds:.2f} / {tally.cpu_seconds / tally.seconds:.2f}",
        quantiles(tally.late_ms).rpartition(" ")[2],
        f"{tally.unsent}",
        f"{other or '–'}" + (f", {tally.unanswered} without an answer" if tally.unanswered else ""),
        f"{recovery:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def try_cell(
    port: int, service_cpu_seconds: Callable[[], float], form: Form, rows: int, seconds: float
) -> None:
    files = load_images(JPEG).files
    bodies = make_bodies(form, rows, files[:DIFFERENT_BODIES])
    requests = iter(Requests(form, "/classify", bodies))
    unloaded = sorted(ask_once(port, files[0])[1] for _ in range(51))[25]
    print(f"\n{form}, {rows} rows a request\n\n| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for factor in FACTORS:
        peak = Flood(port, requests, rows, PEAK_CONNECTIONS).run(seconds, service_cpu_seconds)
        rate = factor * peak.answers[200] / seconds
        flood = Flood(port, requests, rows, MOST_CONNECTIONS, rate)
        tally = flood.run(seconds, service_cpu_seconds)
        recovery = recovery_seconds(port, files[0], unloaded)
        print(describe(factor, rows, tally, peak, recovery), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    first, *_, last = sorted(os.sched_getaffinity(0)) * 2
    os.sched_setaffinity(0, {first})  # the service inherits it
    with (
        tempfile.TemporaryDirectory() as folder,
        logging_service(Path(folder) / "log") as (service, port),
    ):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        os.sched_setaffinity(0, {last})
        for form, rows in CELLS:
            try_cell(port, lambda: cpu_seconds(server_processes(service.pid)), form, rows, options.seconds)


if __name__ == "__main__":
    main()
