"""python -m tests.trials.overload: throughput under many times the possible load, and recovery after it."""

import argparse
import time
from http.client import HTTPConnection

from model.defaults import usable_cores
from tests.benchmarks.contenders import Form
from tests.benchmarks.images import JPEG, load_images
from tests.benchmarks.load import Job, Report
from tests.benchmarks.load_process import LoadProcess, load_process
from tests.running import running_service

CELLS: tuple[tuple[Form, int], ...] = (("image", 1), ("snowflake", 64))
FACTORS = (1.5, 3.0, 10.0)
# Enough connections that the load never waits for a free one.
MOST_CONNECTIONS = 2048
# The service has recovered once a single image takes at most this multiple of its time before the load.
RECOVERED = 3.0


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


def load_cores(report: Report) -> float:
    return report.load_cpu_seconds / report.seconds


def by_cores_left(report: Report) -> float:
    """Images per second for each core that the load process, on the same machine, leaves free."""
    return report.images_per_second / (usable_cores() - load_cores(report))


def describe(factor: float, report: Report, peak: Report, recovery: float) -> str:
    goodput = report.images_per_second
    other = {kind: count for kind, count in report.errors.items() if kind != "429"}
    return (
        f"| {factor:g}x | {goodput:.0f} | {goodput / peak.images_per_second:.0%} | "
        f"{by_cores_left(report) / by_cores_left(peak):.0%} | {report.p50_ms:.0f} / {report.p99_ms:.0f} | "
        f"{report.refusals} | {report.refusal_p50_ms or 0:.1f} / {report.refusal_p99_ms or 0:.1f} | "
        f"{recovery:.1f} | {load_cores(report):.2f} | {other or '–'} |"
    )


def try_cell(load: LoadProcess, port: int, form: Form, rows: int, seconds: float) -> None:
    image = load_images().files[0]
    job = Job(port=port, path="/classify", form=form, rows=rows, seconds=seconds, connections=8, images=JPEG)
    peak = load.run(job)
    rate = peak.images_per_second
    unloaded = sorted(ask_once(port, image)[1] for _ in range(51))[25]
    print(
        f"\n{form}, {rows} rows a request: at most {rate:.0f} images/s over 8 connections, "
        f"beside a load that takes {load_cores(peak):.2f} cores\n"
    )
    print(
        "| offered | images/s | of it | of it, by the cores that the load leaves | ms, p50 / p99 | refused "
        "| in ms, p50 / p99 | s to recover | cores that the load takes | else |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for factor in FACTORS:
        report = load.run(
            Job(
                port=port,
                path="/classify",
                form=form,
                rows=rows,
                seconds=seconds,
                requests_per_second=factor * rate / rows,
                most_connections=MOST_CONNECTIONS,
                images=JPEG,
            )
        )
        print(describe(factor, report, peak, recovery_seconds(port, image, unloaded)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    with running_service() as url, load_process() as load:
        for form, rows in CELLS:
            try_cell(load, int(url.rpartition(":")[2]), form, rows, options.seconds)


if __name__ == "__main__":
    main()
