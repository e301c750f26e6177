"""Prometheus metrics. Every worker exposes the values of all workers.

With several workers, prometheus_client keeps values in files that all of them read (PROMETHEUS_MULTIPROC_DIR,
which must be set before its import).
"""

import os
from bisect import bisect_left
from collections import Counter as CounterOf
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from time import monotonic

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as generate
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from app.outcome import Outcome, Steps, Summary

CONTENT_TYPE = CONTENT_TYPE_LATEST
# prometheus_client's name for the folder of these files.
_MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# The share of a worker's time for reading the files, and the longest time that it can save up.
_READ_SHARE = 0.1
_MAX_READ_BUDGET_SECONDS = 0.5

# From a single image on an idle machine to a deferred batch.
_REQUEST_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_ROW_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Most images have a confidence near 1.
CONFIDENCE_BOUNDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
_BRIGHTNESSES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# NEU images span two powers of ten; images out of focus have less.
_SHARPNESSES = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


class Distribution(Histogram):
    def observe_all(self, values: Collection[float]) -> None:
        """Observe all values in a fraction of the time, as each change of a shared value is slow."""
        if not values:
            return
        self._sum.inc(sum(values))
        for place, count in CounterOf(bisect_left(self._upper_bounds, value) for value in values).items():
            self._buckets[place].inc(count)


REQUESTS = Counter("ext_classify_requests", "Requests to /classify, by status of the response.", ["status"])
REQUEST_SECONDS = Histogram(
    "ext_classify_request_seconds", "From the head of a request to its response.", buckets=_REQUEST_SECONDS
)
ROWS = Counter(
    "ext_classify_rows", "Rows by outcome: classified, abstained, null, or an error's code.", ["outcome"]
)
CALLER_ROWS = Counter("ext_classify_caller_rows", "Answered rows by caller, with authentication.", ["caller"])
CALLER_REFUSALS = Counter(
    "ext_classify_caller_refusals", "Requests that receive an error, by caller.", ["caller"]
)
STEP_SECONDS = Histogram(
    "ext_classify_row_step_seconds", "Mean over a request's rows, by step.", ["step"], buckets=_ROW_SECONDS
)
LABELS = Counter("ext_classify_labels", "Images by label; images without one are not counted.", ["label"])
CONFIDENCE = Distribution(
    "ext_classify_confidence", "Confidence of the images that have a label.", buckets=CONFIDENCE_BOUNDS
)
IMAGE_BRIGHTNESS = Distribution(
    "ext_classify_image_brightness",
    "Mean of an image's grey of 0 to 1; with IMAGE_STATISTICS.",
    buckets=_BRIGHTNESSES,
)
IMAGE_SHARPNESS = Distribution(
    "ext_classify_image_sharpness",
    "Variance of the Laplacian of an image's grey of 0 to 1; with IMAGE_STATISTICS.",
    buckets=_SHARPNESSES,
)
UNANSWERED_ROWS = Gauge(
    "ext_classify_unanswered_rows", "Rows admitted and not answered yet.", multiprocess_mode="livesum"
)
PENDING_BYTES = Gauge(
    "ext_classify_pending_bytes",
    "Bytes of bodies that arrive or wait for their answer, and of large answers being sent.",
    multiprocess_mode="livesum",
)
ROW_SECONDS = Gauge(
    "ext_classify_row_seconds",
    "Measured time from one row to the next at full load.",
    multiprocess_mode="livemax",
)
RUNNING_BATCHES = Gauge(
    "ext_classify_running_batches", "Running batches with an id.", multiprocess_mode="livesum"
)
CACHED_ANSWER_BYTES = Gauge(
    "ext_classify_remembered_bytes", "Bytes of cached answers.", multiprocess_mode="livesum"
)
CLASSIFIERS = Gauge(
    "ext_classify_classifiers", "Processes that can classify now.", multiprocess_mode="livesum"
)
SHARED_STORE_UP = Gauge(
    "ext_classify_shared_store_up", "1 while Redis answers, or without Redis.", multiprocess_mode="livemin"
)
ABANDONED_ROWS = Counter(
    "ext_classify_abandoned_rows", "Rows dropped because the client disconnected or the request failed."
)
RELOADS = Counter("ext_classify_reloads", "Model reloads, by result: done or refused.", ["result"])
MODEL = Gauge(
    "ext_classify_model",
    "1 for the network that classifies.",
    ["name", "version"],
    multiprocess_mode="livemax",
)


# Looking up a label takes longer than counting.
_STEPS = {step: STEP_SECONDS.labels(step) for step in ("fetch", "decode", "predict")}
_requests_of = cache(REQUESTS.labels)
_rows_of = cache(ROWS.labels)
_images_of = cache(LABELS.labels)
_caller_rows: dict[str, Counter] = {}
_caller_refusals: dict[str, Counter] = {}
# An issuer of tokens, or Snowflake's users, may be many.
MAX_CALLERS = 100
_OTHER_CALLERS = "other"


def count_request(status: int, seconds: float) -> None:
    _requests_of(status).inc()
    REQUEST_SECONDS.observe(seconds)


def count_refusal(caller: str | None) -> None:
    _count_of_caller(CALLER_REFUSALS, _caller_refusals, caller, 1)


def count_rows(outcomes: Sequence[Outcome | None], steps: Steps, caller: str | None = None) -> None:
    _count_of_caller(CALLER_ROWS, _caller_rows, caller, len(outcomes))
    for name, rows in CounterOf(map(_name_of, outcomes)).items():
        _rows_of(name).inc(rows)
    for step, observed in _STEPS.items():
        if spent_seconds := getattr(steps, step).seconds:  # a skipped step has no time
            observed.observe(spent_seconds / len(outcomes))


def count_images(summary: Summary) -> None:
    for label, images in summary.labels.items():
        _images_of(label).inc(images)
    CONFIDENCE.observe_all(summary.confidences)
    IMAGE_BRIGHTNESS.observe_all([image.brightness for image in summary.statistics])
    IMAGE_SHARPNESS.observe_all([image.sharpness for image in summary.statistics])


def expose() -> bytes:
    """All metrics in Prometheus's text format."""
    folder = os.environ.get(_MULTIPROCESS_FOLDER)
    return generate(REGISTRY) if folder is None else _WORKER_METRICS.read(Path(folder))


class _WorkerMetrics:
    """The metrics of all workers. Reading their files takes longer than most requests.

    Reading takes a tenth of a worker's time at most; beyond it, requests receive the latest content.
    """

    def __init__(self) -> None:
        self._content = b""
        self._budget_seconds = _MAX_READ_BUDGET_SECONDS
        self._measured_at = monotonic()

    def read(self, folder: Path) -> bytes:
        earned_seconds = _READ_SHARE * self._elapsed_seconds()
        self._budget_seconds = min(_MAX_READ_BUDGET_SECONDS, self._budget_seconds + earned_seconds)
        if self._budget_seconds > 0.0:
            self._content = _read_files(folder)
            self._budget_seconds -= self._elapsed_seconds()
        return self._content

    def _elapsed_seconds(self) -> float:
        measured_at, self._measured_at = self._measured_at, monotonic()
        return self._measured_at - measured_at


_WORKER_METRICS = _WorkerMetrics()


def _read_files(folder: Path) -> bytes:
    _remove_dead_workers(folder)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate(registry)


def _count_of_caller(counter: Counter, known: dict[str, Counter], caller: str | None, count: int) -> None:
    """Each label costs memory for as long as the service runs, so later callers share one."""
    if caller is None:
        return
    if caller not in known and len(known) >= MAX_CALLERS:
        caller = _OTHER_CALLERS
    if caller not in known:
        known[caller] = counter.labels(caller)
    known[caller].inc(count)


def _name_of(outcome: Outcome | None) -> str:
    if outcome is None:
        return "null"
    if outcome["error"] is not None:
        return outcome["error"]["code"]
    return "abstained" if outcome["abstained"] else "classified"


def _remove_dead_workers(folder: Path) -> None:
    """Remove the gauges of workers that have died. Their counters remain."""
    for path in folder.glob("gauge_live*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not _is_alive(pid):
            with suppress(FileNotFoundError):
                mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
