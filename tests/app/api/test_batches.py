"""Batches with an id over HTTP: retries, polls and refusals."""

import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.client import is_ready
from app.main import create_app
from app.names import BATCH_ID_HEADER, QUERY_ID_HEADER
from app.settings import Settings
from tests.app.api.test_shutdown import batch_of
from tests.app.forms import post_rows, text_of
from tests.running import TIMEOUT_SECONDS, exchange, logging_service, running_service, wait_until

pytestmark = pytest.mark.slow

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def hasty() -> Iterator[TestClient]:
    """A service that defers every batch."""
    with TestClient(create_app(Settings(sync_deadline_seconds=0.001, classifiers=1))) as client:
        yield client


def poll(client: TestClient, batch_id: str) -> tuple[int, Any]:
    answer = client.get("/classify", headers={BATCH_ID_HEADER: batch_id})
    return answer.status_code, answer.json()


def test_batch_id_limit_is_exact(client: TestClient) -> None:
    for characters, status in ((512, 200), (513, 422)):
        headers = {BATCH_ID_HEADER: "y" * characters}
        assert client.post("/classify", json={"data": []}, headers=headers).status_code == status


def test_response_to_a_long_batch_is_deferred(hasty: TestClient, client: TestClient, sample: bytes) -> None:
    rows = [[n, text_of(sample)] for n in range(300)]
    sent = hasty.post("/classify", json={"data": rows}, headers={BATCH_ID_HEADER: "long:1"})
    assert (sent.status_code, sent.json()) == (202, {"status": "running"})
    assert poll(hasty, "long:1")[0] in {200, 202}
    wait_until(lambda: poll(hasty, "long:1")[0] == 200)
    assert poll(hasty, "long:1") == poll(hasty, "long:1") == (200, {"data": post_rows(client, rows)})
    again = hasty.post("/classify", json={"data": rows}, headers={BATCH_ID_HEADER: "long:1"})
    assert (again.status_code, again.json()) == (200, poll(hasty, "long:1")[1])


def test_poll_for_an_invalid_batch_is_refused(hasty: TestClient) -> None:
    sent = hasty.post("/classify", json={"data": [[0]]}, headers={BATCH_ID_HEADER: "wrong"})
    assert sent.status_code == 422
    assert poll(hasty, "wrong")[0] == 404


def test_batch_without_an_id_is_never_deferred(hasty: TestClient, sample: bytes) -> None:
    assert len(post_rows(hasty, [[n, text_of(sample)] for n in range(50)])) == 50


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 422, "invalid_batch"),
        ({BATCH_ID_HEADER: "never sent"}, 404, "batch_unknown"),
        ({BATCH_ID_HEADER: "x" * 512}, 404, "batch_unknown"),
        ({BATCH_ID_HEADER: "x" * 513}, 422, "invalid_batch"),
    ],
)
def test_poll_for_an_unknown_batch_is_not_found(
    client: TestClient, headers: dict[str, str], status: int, code: str
) -> None:
    answer = client.get("/classify", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_retry_storm_is_classified_once(sample: bytes, tmp_path: Path) -> None:
    body = json.dumps({"data": [[n, text_of(sample)] for n in range(100)]}).encode()
    headers = {**JSON, BATCH_ID_HEADER: "storm", QUERY_ID_HEADER: "q"}

    def send(port: int) -> tuple[int, bytes]:
        status, _, answer = exchange(port, "POST", "/classify", body, headers)
        return status, answer

    log = tmp_path / "log"
    with logging_service(log) as (_, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        with ThreadPoolExecutor(50) as callers:
            answers = set(callers.map(send, [port] * 50))
        assert len(answers) == 1
        assert send(port) in answers
        [(status, answer)] = answers
        assert status == 200
        assert len(json.loads(answer)["data"]) == 100
    assert log.read_text(encoding="utf-8").count('"event":"classified"') == 1


def test_retry_after_a_disconnect_joins_the_running_batch(sample: bytes, tmp_path: Path) -> None:
    body = json.dumps({"data": [[n, text_of(sample)] for n in range(1000)]}).encode()
    head = (
        f"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{BATCH_ID_HEADER}: cut\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    log = tmp_path / "log"
    with logging_service(log, EXT_CLASSIFY_CLASSIFIERS="1") as (_, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        with socket.create_connection(("127.0.0.1", port)) as caller:
            caller.sendall(head + body)
            cut = {BATCH_ID_HEADER: "cut"}
            wait_until(lambda: exchange(port, "GET", "/classify", headers=cut).status != 404)
        polled = exchange(port, "GET", "/classify", headers=cut)
        assert polled.status == 200 or (polled.status, polled.body) == (202, b'{"status":"running"}')
        answered = exchange(port, "POST", "/classify", body, {**JSON, BATCH_ID_HEADER: "cut"})
        assert len(json.loads(answered.body)["data"]) == 1000
    said = log.read_text(encoding="utf-8")
    assert said.count('"event":"classified"') == 1
    assert "abandoned" not in said


def measures_rows(port: int) -> bool:
    return b"\next_classify_row_seconds 0.0\n" not in exchange(port, "GET", "/metrics").body


def test_overload_is_refused_at_once_and_probes_are_not(sample: bytes) -> None:
    body = batch_of(3000)
    with running_service(EXT_CLASSIFY_CLASSIFIERS="1", EXT_CLASSIFY_MAX_WAIT_SECONDS="0.2") as url:
        port = int(url.rpartition(":")[2])
        with (
            ThreadPoolExecutor(1) as first_caller,
            closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)) as second,
        ):
            first = first_caller.submit(exchange, port, "POST", "/classify", body, JSON)
            wait_until(lambda: measures_rows(port))  # before, no wait can be estimated
            # Only the head is sent: it is refused by its length before there is any body.
            second.putrequest("POST", "/classify")
            for name, value in {**JSON, "Content-Length": str(len(body))}.items():
                second.putheader(name, value)
            second.endheaders()
            refused = second.getresponse()
            error = json.loads(refused.read())["error"]
            assert (refused.status, error["code"], error["retryable"]) == (429, "overloaded", True)
            assert int(refused.headers["Retry-After"]) >= 1
            for path in ("/healthz", "/readyz", "/model", "/metrics"):
                assert exchange(port, "GET", path).status == 200
            assert post_image(port, sample) == 200  # a single image waits for no batch
            assert first.result().status == 200


def test_flood_of_images_is_refused_at_once_and_counted(sample: bytes, tmp_path: Path) -> None:
    variables = {"EXT_CLASSIFY_CLASSIFIERS": "1", "EXT_CLASSIFY_MAX_WAIT_SECONDS": "0.02"}
    with logging_service(tmp_path / "log", **variables) as (_, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        with ThreadPoolExecutor(64) as callers:
            headers = {"Content-Type": "image/png"}
            asked = [callers.submit(exchange, port, "POST", "/classify", sample, headers) for _ in range(640)]
            answers = [answer.result() for answer in asked]
        statuses = Counter(answer.status for answer in answers)
        assert set(statuses) == {200, 429}
        refused = next(answer for answer in answers if answer.status == 429)
        assert json.loads(refused.body)["error"]["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["x-content-type-options"] == "nosniff"
        total = f'ext_classify_requests_total{{status="429"}} {statuses[429]:.1f}'
        wait_until(lambda: total in exchange(port, "GET", "/metrics").body.decode())

        def is_accepted() -> bool:
            status = post_image(port, sample)
            statuses[status] += 1
            return status == 200

        wait_until(is_accepted)
    lines = [json.loads(line[line.index("{") :]) for line in _lines_of(tmp_path / "log", '"refused"')]
    assert sum(line.get("requests", 1) for line in lines) == statuses[429]
    assert len(lines) < statuses[429]


def _lines_of(log: Path, word: str) -> list[str]:
    return [line for line in log.read_text(encoding="utf-8").splitlines() if word in line]


def test_bodies_share_a_limit(sample: bytes) -> None:
    with running_service(
        EXT_CLASSIFY_MAX_PENDING_BYTES="1000000", EXT_CLASSIFY_MAX_IMAGE_BYTES="100000"
    ) as url:
        port = int(url.rpartition(":")[2])

        def is_refused() -> bool:
            """False if the machine is so slow that the first body is evicted instead."""
            with socket.create_connection(("127.0.0.1", port)) as slow:
                slow.sendall(b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n")
                slow.sendall(b"Content-Length: 5000000\r\n\r\n" + bytes(900_000))
                pending = b"\next_classify_pending_bytes 900000.0\n"
                wait_until(lambda: pending in exchange(port, "GET", "/metrics").body)
                status = post_image(port, bytes(200_000))
                assert post_image(port, sample) == 200
            return status == 429

        wait_until(is_refused)
        wait_until(lambda: post_image(port, bytes(200_000)) == 200)


def post_image(port: int, body: bytes) -> int:
    return exchange(port, "POST", "/classify", body, {"Content-Type": "image/png"}).status


def test_slow_body_times_out_with_408() -> None:
    with running_service(EXT_CLASSIFY_BODY_TIMEOUT_SECONDS="0.5") as url:
        port = int(url.rpartition(":")[2])
        for form in (b"image/png", b"application/json", b"multipart/form-data; boundary=b"):
            with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as slow:
                slow.sendall(b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: %b\r\n" % form)
                slow.sendall(b"Content-Length: 500\r\n\r\n--b\r\n")
                received = b""
                while piece := slow.recv(1000):
                    received += piece
            assert received.startswith(b"HTTP/1.1 408")
            assert b'"code":"body_timeout"' in received
