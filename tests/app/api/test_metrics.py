import io
import json
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from starlette.testclient import TestClient

from app.client import is_ready
from app.telemetry import metrics
from tests.app.forms import post_rows, text_of
from tests.app.telemetry.test_record import events
from tests.conftest import SAMPLES
from tests.model.pictures import encode, encode_array, noise
from tests.running import exchange, logging_service, wait_until

pytestmark = pytest.mark.slow

JSON = {"Content-Type": "application/json"}


def figures(text: str) -> dict[str, float]:
    """Samples by name and labels."""
    return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE)}


def test_rows_are_counted_by_outcome(client: TestClient, sample: bytes) -> None:
    def counted() -> dict[str, float]:
        return figures(client.get("/metrics").text)

    before = counted()
    post_rows(
        client, [[0, text_of(sample)], [1, None], [2, "???"], [3, text_of(sample)], [4, text_of(b"BM")]]
    )
    client.post("/classify", content=b"{", headers={"Content-Type": "application/json"})
    after = counted()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown('ext_classify_rows_total{outcome="classified"}') == 2
    assert grown('ext_classify_rows_total{outcome="null"}') == 1
    assert grown('ext_classify_rows_total{outcome="invalid_base64"}') == 1
    assert grown('ext_classify_rows_total{outcome="corrupt_image"}') == 1
    assert grown('ext_classify_requests_total{status="200"}') == 1
    assert grown('ext_classify_requests_total{status="400"}') == 1
    assert grown("ext_classify_request_seconds_count") == 2
    assert grown('ext_classify_row_step_seconds_count{step="predict"}') == 1
    assert after["ext_classify_unanswered_rows"] == after["ext_classify_pending_bytes"] == 0
    assert after["ext_classify_row_seconds"] > 0
    model = client.get("/model").json()
    assert after[f'ext_classify_model{{name="{model["name"]}",version="{model["version"]}"}}'] == 1


def test_images_are_counted_by_their_label(client: TestClient, sample: bytes) -> None:
    def counted() -> dict[str, float]:
        return figures(client.get("/metrics").text)

    before = counted()
    foreign = encode_array(noise(200, 200), "PNG")
    images = [sample, None, foreign, b"BM", (SAMPLES / "patches.png").read_bytes(), sample]
    answered = post_rows(client, [[n, image and text_of(image)] for n, image in enumerate(images)])
    outcomes = [outcome for _, outcome in answered if outcome is not None]
    assert [outcome["abstained"] for outcome in outcomes] == [False, True, False, False, False]
    grown = {name: value - before.get(name, 0) for name, value in counted().items()}
    labels = {name: count for name, count in grown.items() if name.startswith("ext_classify_labels_total")}
    assert {name: count for name, count in labels.items() if count} == {
        'ext_classify_labels_total{label="Scratches"}': 2,
        'ext_classify_labels_total{label="Patches"}': 1,
    }
    assert grown["ext_classify_confidence_count"] == 3
    sure = sum(outcome["confidence"] for outcome in outcomes if outcome["label"])
    assert grown["ext_classify_confidence_sum"] == pytest.approx(sure)
    assert grown["ext_classify_image_brightness_count"] == 0  # they are not asked for


@given(st.lists(st.floats(0, 1) | st.sampled_from(metrics.CONFIDENCE_BOUNDS)))
def test_values_observed_together_equal_values_observed_singly(values: list[float]) -> None:
    at_once, one_by_one = CollectorRegistry(), CollectorRegistry()
    buckets = metrics.CONFIDENCE_BOUNDS
    metrics.Distribution("a", "a", buckets=buckets, registry=at_once).observe_all(values)
    histogram = Histogram("a", "a", buckets=buckets, registry=one_by_one)
    for value in values:
        histogram.observe(value)

    def counted(registry: CollectorRegistry) -> dict[str, float]:
        return {n: v for n, v in figures(generate_latest(registry).decode()).items() if "_created" not in n}

    assert counted(at_once) == pytest.approx(counted(one_by_one))


def scrape(port: int) -> dict[str, float]:
    return figures(exchange(port, "GET", "/metrics").body.decode())


def test_any_worker_exposes_the_metrics_of_all(sample: bytes, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_service(log, "--workers", "2") as (_, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        wait_until(lambda: log.read_text(encoding="utf-8").count('"event":"ready"') == 2)
        batch = json.dumps({"data": [[n, text_of(sample)] for n in range(3)]}).encode()
        for _ in range(20):
            assert exchange(port, "POST", "/classify", batch, JSON).status == 200
        wait_until(lambda: scrape(port)["ext_classify_classifiers"] == 2)
        rows = 'ext_classify_rows_total{outcome="classified"}'
        wait_until(lambda: {scrape(port)[rows] for _ in range(10)} == {60})

        killed = int(re.findall(r"Started server process \[(\d+)\]", log.read_text(encoding="utf-8"))[0])
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: log.read_text(encoding="utf-8").count('"event":"ready"') == 3)
        # Its counters remain, and its gauges are removed.
        wait_until(lambda: scrape(port)["ext_classify_classifiers"] == 2)
        wait_until(lambda: {scrape(port)[rows] for _ in range(10)} == {60})


def test_image_statistics_are_summed_over_workers(sample: bytes, tmp_path: Path) -> None:
    """A failing lamp and an unfocused lens show in the metrics and in the log."""
    image = Image.open(io.BytesIO(sample)).convert("L")
    dark = encode(image.point(lambda grey: grey // 2), "PNG")
    blurred = encode(image.filter(ImageFilter.GaussianBlur(2)), "PNG")
    log, batches = tmp_path / "log", 6
    environment = {"EXT_CLASSIFY_IMAGE_STATISTICS": "true"}
    with logging_service(log, "--workers", "2", **environment) as (_, port):
        wait_until(lambda: log.read_text(encoding="utf-8").count('"event":"ready"') == 2)
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))

        latest = dict[str, float]()

        def is_counted(images: float) -> bool:
            """A worker reads the files for a tenth of its time, and may return earlier figures."""
            now = scrape(port)
            counts = [
                'ext_classify_labels_total{label="Scratches"}',
                "ext_classify_confidence_count",
                "ext_classify_image_brightness_count",
                "ext_classify_image_sharpness_count",
            ]
            if [now.get(name) for name in counts] == [images] * len(counts):
                latest.update(now)
            return latest == now

        def classify(images: list[bytes]) -> dict[str, float]:
            """The change of the metrics."""
            before = latest.copy()
            readable = sum(content != b"BM" for content in images)
            batch = json.dumps({"data": [[n, text_of(content)] for n, content in enumerate(images)]}).encode()
            for _ in range(batches):
                assert exchange(port, "POST", "/classify", batch, JSON).status == 200
            counted = before.get("ext_classify_image_brightness_count", 0.0) + readable * batches
            wait_until(lambda: is_counted(counted))
            return {name: value - before.get(name, 0.0) for name, value in latest.items()}

        usual = classify([sample, sample, b"BM"])
        darker, softer = classify([dark]), classify([blurred])
        brightness = "ext_classify_image_brightness_count"
        wait_until(lambda: {scrape(port)[brightness] for _ in range(10)} == {4 * batches})
    assert usual['ext_classify_labels_total{label="Scratches"}'] == 2 * batches
    assert usual["ext_classify_confidence_count"] == 2 * batches
    assert usual["ext_classify_image_sharpness_count"] == 2 * batches

    def mean(grown: dict[str, float], what: str) -> float:
        return grown[f"ext_classify_image_{what}_sum"] / grown[f"ext_classify_image_{what}_count"]

    assert mean(darker, "brightness") == pytest.approx(mean(usual, "brightness") / 2, abs=0.005)
    assert mean(softer, "brightness") == pytest.approx(mean(usual, "brightness"), abs=0.005)
    assert mean(softer, "sharpness") < 0.1 * mean(usual, "sharpness")
    # Each worker writes its lines in the background, so that their order says nothing.
    lines = Counter(json.dumps(event["summary"]) for event in events(log, "classified"))
    assert lines.total() == 3 * batches
    for grown, images in ((usual, 2), (darker, 1), (softer, 1)):
        expected = {
            "labels": {"Scratches": images},
            "abstained": 0,
            "mean_confidence": pytest.approx(
                grown["ext_classify_confidence_sum"] / (images * batches), abs=1e-4
            ),
            "mean_brightness": pytest.approx(mean(grown, "brightness"), abs=1e-4),
            "mean_sharpness": pytest.approx(mean(grown, "sharpness"), abs=1e-6),
        }
        assert [count for line, count in lines.items() if json.loads(line) == expected] == [batches]


def test_flood_of_scrapes_reads_the_files_of_the_workers_a_tenth_of_the_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now, reads = 100.0, 0

    def read(_: Path) -> bytes:
        nonlocal now, reads
        now += 0.02
        reads += 1
        return b"%d" % reads

    monkeypatch.setattr(metrics, "_read_files", read)
    monkeypatch.setattr(metrics, "monotonic", lambda: now)
    monkeypatch.setattr(metrics, "_WORKER_METRICS", metrics._WorkerMetrics())  # noqa: SLF001
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert [metrics.expose() for _ in range(10)] == [b"%d" % number for number in range(1, 11)]
    for _ in range(10_000):
        now += 0.001
        assert metrics.expose() == b"%d" % reads
    assert 0.1 * 10 / 0.02 <= reads <= 0.1 * 12 / 0.02 + 30
    now += 15.0
    earlier = reads
    assert metrics.expose() == b"%d" % (earlier + 1)
