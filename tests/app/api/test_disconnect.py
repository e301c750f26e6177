import asyncio
import json
import socket
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect, Request

from app.api.classify import while_connected
from app.client import is_ready
from tests.app.forms import text_of
from tests.app.workers.costly_jpeg import costly_jpeg
from tests.running import has_unanswered_rows, logging_service, wait_until


def request_of(*messages: dict[str, object], then_wait: bool) -> Request:
    """A request whose body has been read; `messages` are what the server sends next."""
    said = list(messages)

    async def receive() -> dict[str, object]:
        if not said and then_wait:
            await asyncio.Event().wait()
        return said.pop(0)

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def test_work_of_a_connected_client_completes() -> None:
    async def run() -> int:
        return await while_connected(request_of(then_wait=True), asyncio.sleep(0.01, 7))

    assert asyncio.run(run()) == 7


def test_work_of_a_disconnected_client_is_cancelled() -> None:
    async def run() -> None:
        cancelled = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        with pytest.raises(ClientDisconnect):
            await while_connected(request_of({"type": "http.disconnect"}, then_wait=False), work())
        assert cancelled.is_set()

    asyncio.run(run())


def test_cancellation_is_not_a_disconnect() -> None:
    async def run() -> None:
        waiting = asyncio.ensure_future(while_connected(request_of(then_wait=True), asyncio.sleep(60)))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(run())


def test_failure_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        asyncio.run(while_connected(request_of(then_wait=True), work()))


@pytest.mark.slow
def test_rows_of_a_disconnected_client_are_not_classified(tmp_path: Path) -> None:
    log = tmp_path / "log"
    body = json.dumps({"data": [[n, text_of(costly_jpeg())] for n in range(200)]}).encode()
    head = (
        f"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    with logging_service(log, EXT_CLASSIFY_CLASSIFIERS="1") as (_, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        with socket.create_connection(("127.0.0.1", port)) as caller:
            caller.sendall(f"{head}\r\n\r\n".encode() + body)
            wait_until(lambda: has_unanswered_rows(port))
        wait_until(lambda: "abandoned" in log.read_text(encoding="utf-8"))
    [line] = [line for line in log.read_text(encoding="utf-8").splitlines() if "abandoned" in line]
    event = json.loads(line[line.index("{") :])
    assert event["rows"] == 200
    assert 0 < event["abandoned_rows_since_start"] <= 200
