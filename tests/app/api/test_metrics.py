import json
import os
import re
import signal
from pathlib import Path

from starlette.testclient import TestClient

from app.client import is_ready
from tests.app.forms import post_rows, text_of
from tests.running import exchange, logging_service, wait_until

JSON = {"Content-Type": "application/json"}


def figures(text: str) -> dict[str, float]:
    """By name and labels."""
    return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE)}


def test_rows_are_counted_by_what_became_of_them(client: TestClient, sample: bytes) -> None:
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


def scrape(port: int) -> dict[str, float]:
    return figures(exchange(port, "GET", "/metrics").body.decode())


def test_whichever_worker_is_asked_answers_for_all(sample: bytes, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_service(log, "--workers", "2") as (_, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        wait_until(lambda: log.read_text(encoding="utf-8").count('"event":"ready"') == 2)
        batch = json.dumps({"data": [[n, text_of(sample)] for n in range(3)]}).encode()
        for _ in range(20):
            assert exchange(port, "POST", "/classify", batch, JSON).status == 200
        wait_until(lambda: scrape(port)["ext_classify_classifiers"] == 2)
        rows = 'ext_classify_rows_total{outcome="classified"}'
        assert {scrape(port)[rows] for _ in range(10)} == {60}

        killed = int(re.findall(r"Started server process \[(\d+)\]", log.read_text(encoding="utf-8"))[0])
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: log.read_text(encoding="utf-8").count('"event":"ready"') == 3)
        # What it counted stays counted; what it held, nobody holds.
        wait_until(lambda: scrape(port)["ext_classify_classifiers"] == 2)
        assert {scrape(port)[rows] for _ in range(10)} == {60}
