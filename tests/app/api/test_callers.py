"""Two authenticated callers of one service: neither starves the other, nor reads its answers."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from app.api.auth import line_of, make_key
from app.client import is_ready
from app.names import BATCH_ID_HEADER
from tests.app.api.test_shutdown import batch_of
from tests.app.telemetry.test_record import events
from tests.running import exchange, logging_service, wait_until

pytestmark = pytest.mark.slow

KEYS = {"noisy": make_key(), "quiet": make_key()}


class Called(NamedTuple):
    port: int
    log: Path

    def send(self, caller: str, body: bytes, media_type: str = "application/json", batch_id: str = "") -> int:
        """The status."""
        headers = {"X-API-Key": KEYS[caller], "Content-Type": media_type}
        if batch_id:
            headers[BATCH_ID_HEADER] = batch_id
        return exchange(self.port, "POST", "/classify", body, headers).status

    def poll(self, caller: str, batch_id: str) -> int:
        headers = {"X-API-Key": KEYS[caller], BATCH_ID_HEADER: batch_id}
        return exchange(self.port, "GET", "/classify", None, headers).status

    def count(self, metric: str, caller: str) -> float:
        metrics = exchange(self.port, "GET", "/metrics", None, {"X-API-Key": KEYS["quiet"]}).body.decode()
        line = f'\n{metric}{{caller="{caller}"}} '
        return float(metrics.partition(line)[2].partition("\n")[0] or 0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Called]:
    folder = tmp_path_factory.mktemp("callers")
    (folder / "keys").write_text("".join(f"{line_of(name, key)}\n" for name, key in KEYS.items()))
    variables = {
        "EXT_CLASSIFY_AUTH": "api_key",
        "EXT_CLASSIFY_API_KEYS_FILE": str(folder / "keys"),
        "EXT_CLASSIFY_CLASSIFIERS": "1",
        "EXT_CLASSIFY_MAX_WAIT_SECONDS": "0.02",
    }
    with logging_service(folder / "log", **variables) as (_, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        yield Called(port, folder / "log")


@pytest.mark.parametrize("flood", ["batches", "images"])
def test_flood_of_one_caller_does_not_starve_another(service: Called, sample: bytes, flood: str) -> None:
    """The quiet caller sends one image at a time, so none of its own rows is ever ahead of it."""
    body, media_type = (batch_of(64), "application/json") if flood == "batches" else (sample, "image/png")
    noisy: Counter[int] = Counter()
    has_ended = threading.Event()
    refused_before = service.count("ext_classify_caller_refusals_total", "noisy")

    def keep_sending() -> None:
        while not has_ended.is_set():
            noisy[service.send("noisy", body, media_type)] += 1

    with ThreadPoolExecutor(24) as connections:
        sending = [connections.submit(keep_sending) for _ in range(24)]
        try:
            wait_until(lambda: noisy[429] > 0 and noisy[200] > 0)
            refused = noisy[429]
            quiet = [service.send("quiet", sample, "image/png") for _ in range(30)]
            wait_until(lambda: noisy[429] > refused)
        finally:
            has_ended.set()
        for connection in sending:
            connection.result()
    assert quiet == [200] * 30
    assert set(noisy) == {200, 429}
    refusals = service.count("ext_classify_caller_refusals_total", "noisy") - refused_before
    assert refusals == noisy[429]
    assert service.count("ext_classify_caller_refusals_total", "quiet") == 0


def test_rows_and_lines_name_the_caller(service: Called, sample: bytes) -> None:
    before = service.count("ext_classify_caller_rows_total", "quiet")
    assert service.send("quiet", batch_of(5), batch_id="named") == 200
    assert service.count("ext_classify_caller_rows_total", "quiet") == before + 5
    wait_until(lambda: any(event["batch_id"] == "named" for event in events(service.log, "classified")))
    [line] = [event for event in events(service.log, "classified") if event["batch_id"] == "named"]
    assert line["caller"] == "quiet"
    assert service.send("noisy", b'{"data": 1}', batch_id="broken") == 422
    wait_until(lambda: any(event["batch_id"] == "broken" for event in events(service.log, "refused")))
    [line] = [event for event in events(service.log, "refused") if event["batch_id"] == "broken"]
    assert line["caller"] == "noisy"


def test_batch_belongs_to_its_caller(service: Called) -> None:
    """Snowflake's ids are no secrets: they are in logs, and in the query history of the account."""
    assert service.send("quiet", batch_of(3), batch_id="mine") == 200
    assert service.poll("quiet", "mine") == 200
    assert service.poll("noisy", "mine") == 404
    assert service.send("noisy", json.dumps({"data": []}).encode(), batch_id="mine") == 200
    assert service.poll("noisy", "mine") == service.poll("quiet", "mine") == 200
