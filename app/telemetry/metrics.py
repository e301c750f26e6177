"""What the service counts, for Prometheus; correct over several workers, whichever of them is asked.

With workers, the library keeps values in files that all of them read (PROMETHEUS_MULTIPROC_DIR, which must be
set before it is imported).
"""

import os
from bisect import bisect_left
from collections import Counter as CounterOf
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as generate
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from app.outcome import Outcome, Steps, Summary

CONTENT_TYPE = CONTENT_TYPE_LATEST
# The library's own name for where workers keep their values.
_MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Of a worker's time, and how much of it may be saved up.
_READ_SHARE = 0.1
_MAX_READ_BUDGET_SECONDS = 0.5

# From a single image on an idle machine to a batch that is asked for later.
_REQUEST_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_ROW_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# A trained network is mostly sure: where it is less so shows near 1.
CONFIDENCE_BOUNDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
_BRIGHTNESSES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# Those of the NEU images span two powers of ten, and out of focus they have less.
_SHARPNESSES = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


class Distribution(Histogram):
    def observe_all(self, values: Collection[float]) -> None:
        """As to observe each, for a fraction of the time: a value that workers share is slow to grow."""
        if not values:
            return
        self._sum.inc(sum(values))
        for place, count in CounterOf(bisect_left(self._upper_bounds, value) for value in values).items():
            self._buckets[place].inc(count)


REQUESTS = Counter(
    "ext_classify_requests", "Requests to /classify, by the status they were answered.", ["status"]
)
REQUEST_SECONDS = Histogram(
    "ext_classify_request_seconds", "From the head of a request to its answer.", buckets=_REQUEST_SECONDS
)
ROWS = Counter(
    "ext_classify_rows",
    "Rows by what became of them: classified, abstained, null, or an error's code.",
    ["outcome"],
)
STEP_SECONDS = Histogram(
    "ext_classify_row_step_seconds", "Mean of a request's rows, by step.", ["step"], buckets=_ROW_SECONDS
)
LABELS = Counter("ext_classify_labels", "Images by label; one that was abstained on has none.", ["label"])
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
    "ext_classify_unanswered_rows", "Rows let in and not answered yet.", multiprocess_mode="livesum"
)
PENDING_BYTES = Gauge(
    "ext_classify_pending_bytes",
    "Bytes of bodies that arrive or wait for their answer, and of large answers being sent.",
    multiprocess_mode="livesum",
)
ROW_SECONDS = Gauge(
    "ext_classify_row_seconds",
    "From one row to the next at full load, as measured.",
    multiprocess_mode="livemax",
)
RUNNING_BATCHES = Gauge(
    "ext_classify_running_batches", "Batches with an id that run.", multiprocess_mode="livesum"
)
REMEMBERED_BYTES = Gauge(
    "ext_classify_remembered_bytes", "Bytes of remembered answers.", multiprocess_mode="livesum"
)
CLASSIFIERS = Gauge(
    "ext_classify_classifiers", "Processes that can classify now.", multiprocess_mode="livesum"
)
SHARED_STORE_UP = Gauge(
    "ext_classify_shared_store_up", "1 while Redis answers, or none is set.", multiprocess_mode="livemin"
)
ABANDONED_ROWS = Counter("ext_classify_abandoned_rows", "Rows dropped, for whoever asked had left.")
RELOADS = Counter(
    "ext_classify_reloads", "Networks read anew, and those that did not prove themselves.", ["result"]
)
MODEL = Gauge(
    "ext_classify_model", "1 for the network that answers.", ["name", "version"], multiprocess_mode="livemax"
)


# To look a label up takes longer than to count.
_STEPS = {step: STEP_SECONDS.labels(step) for step in ("fetch", "decode", "predict")}
_requests: dict[int, Counter] = {}
_rows: dict[str, Counter] = {}
_labels: dict[str, Counter] = {}


def count_request(status: int, seconds: float) -> None:
    if status not in _requests:
        _requests[status] = REQUESTS.labels(status)
    _requests[status].inc()
    REQUEST_SECONDS.observe(seconds)


def count_rows(outcomes: Sequence[Outcome | None], steps: Steps) -> None:
    """Of one request."""
    for name, rows in CounterOf(map(_name_of, outcomes)).items():
        if name not in _rows:
            _rows[name] = ROWS.labels(name)
        _rows[name].inc(rows)
    for step, observed in _STEPS.items():
        if spent_seconds := getattr(steps, step).seconds:  # what was not done has no time
            observed.observe(spent_seconds / len(outcomes))


def count_images(summary: Summary) -> None:
    """Of one request."""
    for label, images in summary.labels.items():
        if label not in _labels:
            _labels[label] = LABELS.labels(label)
        _labels[label].inc(images)
    CONFIDENCE.observe_all(summary.confidences)
    IMAGE_BRIGHTNESS.observe_all([image.brightness for image in summary.statistics])
    IMAGE_SHARPNESS.observe_all([image.sharpness for image in summary.statistics])


def expose() -> bytes:
    """All that is counted, in Prometheus's text format."""
    folder = os.environ.get(_MULTIPROCESS_FOLDER)
    return generate(REGISTRY) if folder is None else _EXPOSED.read(Path(folder))


class _ExposedByWorkers:
    """All values of all workers. To read their files takes longer than most requests.

    Reading them takes a tenth of a worker's time at most; requests past that get what was read last.
    """

    def __init__(self) -> None:
        self._content = b""
        self._budget_seconds = _MAX_READ_BUDGET_SECONDS
        self._counted_at = monotonic()

    def read(self, folder: Path) -> bytes:
        earned_seconds = _READ_SHARE * self._elapsed_seconds()
        self._budget_seconds = min(_MAX_READ_BUDGET_SECONDS, self._budget_seconds + earned_seconds)
        if self._budget_seconds > 0.0:
            self._content = _read_files(folder)
            self._budget_seconds -= self._elapsed_seconds()
        return self._content

    def _elapsed_seconds(self) -> float:
        counted_at, self._counted_at = self._counted_at, monotonic()
        return self._counted_at - counted_at


_EXPOSED = _ExposedByWorkers()


def _read_files(folder: Path) -> bytes:
    _forget_dead(folder)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate(registry)


def _name_of(outcome: Outcome | None) -> str:
    if outcome is None:
        return "null"
    if outcome["error"] is not None:
        return outcome["error"]["code"]
    return "abstained" if outcome["abstained"] else "classified"


def _forget_dead(folder: Path) -> None:
    """What a worker that has died held, nobody holds; what it counted stays counted."""
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
