"""Log lines of the running service."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.api.auth import line_of, make_key
from app.client import is_ready
from app.errors import InvalidBatch, Unauthorized
from app.names import BATCH_ID_HEADER, QUERY_ID_HEADER
from app.telemetry.record import MAX_REFUSAL_LINES_PER_SECOND, RefusalLog
from tests.running import exchange, logging_service, wait_until

pytestmark = pytest.mark.slow

IDS = {QUERY_ID_HEADER: "01b2-query", BATCH_ID_HEADER: "b-1"}
JSON = {"Content-Type": "application/json"}


def events(log: Path, kind: str) -> list[dict[str, Any]]:
    """The fields of its events of a kind, without their time and level."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    own = {"time", "level", "event"}
    return [
        {name: value for name, value in line.items() if name not in own}
        for line in lines
        if line.get("event") == kind
    ]


def test_batch_and_rejection_are_logged_with_their_ids_and_without_content(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_service(log) as (_, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        exchange(port, "POST", "/classify", b'{"data": [[0, "c2VjcmV0"]]}', JSON | IDS)
        exchange(port, "POST", "/classify", b'{"data": "c2VjcmV0"}', JSON | IDS)
    [classified] = events(log, "classified")
    assert (classified["query_id"], classified["batch_id"]) == ("01b2-query", "b-1")
    assert (classified["rows"], classified["failed"]) == (1, 1)
    assert classified["summary"] == {
        "labels": {},
        "abstained": 0,
        "mean_confidence": None,
        "mean_brightness": None,
        "mean_sharpness": None,
    }
    assert events(log, "refused") == [
        {"query_id": "01b2-query", "batch_id": "b-1", "status": 422, "code": "invalid_batch", "caller": None}
    ]
    assert "c2VjcmV0" not in log.read_text(encoding="utf-8")


def test_logged_ids_are_truncated(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_service(log) as (_, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        long = {QUERY_ID_HEADER: "q" * 20_000, BATCH_ID_HEADER: "b" * 20_000}
        assert exchange(port, "POST", "/classify", b'{"data": []}', JSON | long).status == 422
        assert exchange(port, "GET", "/classify", None, {BATCH_ID_HEADER: "unknown"}).status == 404
    too_long, unknown = events(log, "refused")
    assert (too_long["query_id"], too_long["batch_id"]) == ("q" * 512, "b" * 512)
    assert (unknown["batch_id"], unknown["code"]) == ("unknown", "batch_unknown")


def test_rejected_key_is_not_logged(tmp_path: Path) -> None:
    log, keys = tmp_path / "log", tmp_path / "keys"
    keys.write_text(line_of("snowflake", make_key()))
    with logging_service(log, EXT_CLASSIFY_AUTH="api_key", EXT_CLASSIFY_API_KEYS_FILE=str(keys)) as (_, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        wrong = {"Authorization": "Bearer wr0ng-key"}
        assert exchange(port, "POST", "/classify", b"{}", JSON | IDS | wrong).status == 401
    [refused] = events(log, "refused")
    assert (refused["query_id"], refused["status"], refused["code"]) == ("01b2-query", 401, "unauthorized")
    assert "wr0ng-key" not in log.read_text(encoding="utf-8")


def refusals_logged(
    monkeypatch: pytest.MonkeyPatch, use: Callable[[RefusalLog], None]
) -> list[dict[str, Any]]:
    """The lines of a refusal log after `use`."""
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "app.telemetry.record.log_event", lambda event, **fields: lines.append({"event": event} | fields)
    )

    async def run() -> None:
        refusals = RefusalLog()
        use(refusals)
        refusals.close()

    asyncio.run(run())
    return lines


def test_rejections_beyond_the_first_of_a_second_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def flood(refusals: RefusalLog) -> None:
        for number in range(1000):
            refusals.add(Unauthorized("No key."), {QUERY_ID_HEADER: str(number)})

    lines = refusals_logged(monkeypatch, flood)
    assert [line["query_id"] for line in lines[:-1]] == [str(n) for n in range(MAX_REFUSAL_LINES_PER_SECOND)]
    assert lines[-1] == {
        "event": "refused",
        "query_id": None,
        "batch_id": None,
        "status": 401,
        "code": "unauthorized",
        "caller": None,
        "requests": 1000 - MAX_REFUSAL_LINES_PER_SECOND,
    }


def test_flood_of_one_error_code_does_not_hide_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def flood(refusals: RefusalLog) -> None:
        for _ in range(100):
            refusals.add(Unauthorized("No key."), {})
        refusals.add(InvalidBatch("No rows."), IDS)

    lines = refusals_logged(monkeypatch, flood)
    [other] = [line for line in lines if line["code"] == "invalid_batch"]
    assert other["query_id"] == "01b2-query"


def test_flood_of_one_caller_does_not_hide_the_rejections_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def flood(refusals: RefusalLog) -> None:
        for _ in range(100):
            refusals.add(InvalidBatch("No rows."), {}, "noisy")
        refusals.add(InvalidBatch("No rows."), IDS, "quiet")

    lines = refusals_logged(monkeypatch, flood)
    [other] = [line for line in lines if line["caller"] == "quiet"]
    assert other["query_id"] == "01b2-query"


def test_rejections_are_logged_again_in_the_next_second(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_two_seconds(refusals: RefusalLog) -> None:
        for _ in range(2):
            for _ in range(MAX_REFUSAL_LINES_PER_SECOND + 1):
                refusals.add(Unauthorized("No key."), {})
            refusals.close()

    counts = [line.get("requests") for line in refusals_logged(monkeypatch, fill_two_seconds)]
    assert counts == 2 * [*MAX_REFUSAL_LINES_PER_SECOND * [None], 1]


def test_flood_without_authentication_writes_few_lines(tmp_path: Path) -> None:
    log, keys = tmp_path / "log", tmp_path / "keys"
    keys.write_text(line_of("snowflake", make_key()))
    ids = {QUERY_ID_HEADER: '"' * 512, BATCH_ID_HEADER: '"' * 512}
    with logging_service(log, EXT_CLASSIFY_AUTH="api_key", EXT_CLASSIFY_API_KEYS_FILE=str(keys)) as (_, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        for _ in range(300):
            assert exchange(port, "GET", "/classify", None, ids).status == 401
    lines = events(log, "refused")
    assert sum(line.get("requests", 1) for line in lines) == 300
    assert any("requests" in line for line in lines)
