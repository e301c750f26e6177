"""python -m tests.trials.soak: half an hour at 80% load; memory must not grow, and no request may fail."""

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from app.client import is_ready
from tests.benchmarks.contenders import Form
from tests.benchmarks.footprint import Memory, memory, server_processes
from tests.benchmarks.images import JPEG
from tests.benchmarks.load import Job, Report
from tests.benchmarks.load_process import LoadProcess, load_process
from tests.running import logging_service, wait_until

SHARE = 0.8
ROWS = 16
PERIOD_SECONDS = 30.0
# Until the allocators and the cache of answers have reached their final size.
WARM_UP_SHARE = 1 / 3
# Fewer periods are too few to fit a line.
LEAST_PERIODS = 6
MOST_GROWTH_MB_AN_HOUR = 20.0
_FORM: Form = "snowflake"


def job_for(port: int, seconds: float, requests_per_second: float | None = None) -> Job:
    return Job(
        port=port,
        path="/classify",
        form=_FORM,
        rows=ROWS,
        seconds=seconds,
        connections=8,
        requests_per_second=requests_per_second,
        images=JPEG,
    )


def run_period(load: LoadProcess, port: int, pid: int, requests_per_second: float) -> tuple[Report, Memory]:
    report = load.run(job_for(port, PERIOD_SECONDS, requests_per_second))
    return report, memory(server_processes(pid))


def slope_mb_an_hour(samples: Sequence[float]) -> float:
    """Of the line through what was sampled once a period, without the first third."""
    warm = samples[round(len(samples) * WARM_UP_SHARE) :]
    hours = [number * PERIOD_SECONDS / 3600 for number in range(len(warm))]
    return statistics.linear_regression(hours, warm).slope


def describe(number: int, report: Report, held: Memory) -> str:
    return (
        f"{number * PERIOD_SECONDS / 60:5.1f} min: {report.images_per_second:.0f} images/s, "
        f"{report.p50_ms:.1f} / {report.p99_ms:.1f} ms (p50 / p99), errors {report.errors or 'none'}, "
        f"RSS {held.rss:.0f} MB, PSS {held.pss:.0f} MB"
    )


def conclude(reports: Sequence[Report], memories: Sequence[Memory]) -> bool:
    """Whether all limits were kept."""
    errors = sum((Counter(report.errors) for report in reports), Counter[str]())
    growth = slope_mb_an_hour([held.pss for held in memories])
    print(
        f"{sum(report.requests for report in reports)} requests, "
        f"{sum(report.images for report in reports)} images, errors: {dict(errors) or 'none'}; "
        f"growth: RSS {slope_mb_an_hour([held.rss for held in memories]):+.1f} MB/h, "
        f"PSS {growth:+.1f} MB/h"
    )
    return not errors and growth < MOST_GROWTH_MB_AN_HOUR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    periods = max(LEAST_PERIODS, round(parser.parse_args().minutes * 60 / PERIOD_SECONDS))
    reports: list[Report] = []
    memories: list[Memory] = []
    with (
        TemporaryDirectory() as folder,
        load_process() as load,
        logging_service(Path(folder) / "log") as (service, port),
    ):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        peak = load.run(job_for(port, 15.0)).images_per_second
        print(f"at most {peak:.0f} images/s over 8 connections; now {SHARE:.0%} of it, {ROWS} rows each")
        for number in range(1, periods + 1):
            report, held = run_period(load, port, service.pid, SHARE * peak / ROWS)
            reports.append(report)
            memories.append(held)
            print(describe(number, report, held), flush=True)
    if not conclude(reports, memories):
        sys.exit(1)


if __name__ == "__main__":
    main()
