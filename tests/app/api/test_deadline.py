"""Every request is answered before its deadline, whatever hangs."""

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.client import is_ready
from app.errors import DeadlineExceeded
from app.event_loop import Deadline
from app.main import create_app
from app.names import BATCH_ID_HEADER
from app.settings import Settings
from tests.app.forms import text_of
from tests.app.workers.costly_jpeg import costly_jpeg
from tests.running import Exchanged, exchange, free_port, has_unanswered_rows, logging_service, wait_until

pytestmark = pytest.mark.slow

JSON = {"Content-Type": "application/json"}
IMAGE = {"Content-Type": "image/png"}


def slow_batch() -> bytes:
    """A batch of images that take a fifth of a second of CPU time each."""
    image = text_of(costly_jpeg())
    return json.dumps({"data": [[number, image] for number in range(40)]}).encode()


def code_of(answer: Exchanged) -> str:
    code: str = json.loads(answer.body)["error"]["code"]
    return code


def test_request_past_its_deadline_is_refused_and_its_rows_are_dropped(sample: bytes, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = {"EXT_CLASSIFY_CLASSIFIERS": "1", "EXT_CLASSIFY_REQUEST_TIMEOUT_SECONDS": "1"}
    with logging_service(log, **environment) as (_, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        refused = exchange(port, "POST", "/classify", slow_batch(), JSON)
        assert (refused.status, code_of(refused)) == (503, "deadline_exceeded")
        assert json.loads(refused.body)["error"]["retryable"] is True
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["connection"] == "close"
        assert (
            'ext_classify_requests_total{status="503"} 1.0' in exchange(port, "GET", "/metrics").body.decode()
        )
        # An image may miss the deadline too, on a busy machine.
        wait_until(lambda: exchange(port, "POST", "/classify", sample, IMAGE).status == 200)
        assert not has_unanswered_rows(port)
    assert '"code":"deadline_exceeded"' in log.read_text(encoding="utf-8")
    assert "Traceback" not in log.read_text(encoding="utf-8")


def test_deferred_batch_has_the_same_deadline(tmp_path: Path) -> None:
    environment = {
        "EXT_CLASSIFY_CLASSIFIERS": "1",
        "EXT_CLASSIFY_REQUEST_TIMEOUT_SECONDS": "2",
        "EXT_CLASSIFY_SYNC_DEADLINE_SECONDS": "0.1",
    }
    headers = {**JSON, BATCH_ID_HEADER: "long"}
    answers = []

    def is_over(port: int) -> bool:
        answers.append(exchange(port, "GET", "/classify", headers=headers))
        return answers[-1].status != 202

    with logging_service(tmp_path / "log", **environment) as (_, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        # On a busy machine, both deadlines may pass before the first answer.
        wait_until(lambda: exchange(port, "POST", "/classify", slow_batch(), headers).status == 202)
        wait_until(lambda: is_over(port))
        assert (answers[-1].status, code_of(answers[-1])) == (503, "deadline_exceeded")
        assert not has_unanswered_rows(port)


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


def test_probe_does_not_wait_for_a_silent_redis(sample: bytes, tmp_path: Path) -> None:
    with (
        silent_server() as redis,
        logging_service(tmp_path / "log", EXT_CLASSIFY_REDIS_URL=f"redis://127.0.0.1:{redis}") as (_, port),
    ):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        ready = json.loads(exchange(port, "GET", "/readyz").body)
        assert (ready["status"], ready["answers"]) == ("ready", "redis_unavailable")
        assert exchange(port, "POST", "/classify", sample, IMAGE).status == 200


def test_probe_does_not_wait_for_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe has a deadline of its own, in case the store has none."""
    monkeypatch.setattr("app.api.health._PING_SECONDS", 0.05)
    monkeypatch.setattr("app.batches.redis_store.RedisStore.ping", lambda _: asyncio.Event().wait())
    with TestClient(create_app(Settings(redis_url=f"redis://127.0.0.1:{free_port()}"))) as client:  # type: ignore[arg-type]
        assert client.get("/readyz").json()["status"] == "ready"


def test_page_that_hangs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.asgi._PAGE_SECONDS", 0.05)
    app = create_app(Settings())

    @app.pages.get("/hangs")
    async def hangs() -> None:
        await asyncio.Event().wait()

    with TestClient(app) as client:
        answer = client.get("/hangs")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "deadline_exceeded")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_deadline_passes_results_and_errors_through() -> None:
    async def double(number: int) -> int:
        return 2 * number

    async def fail(_: int) -> int:
        raise TimeoutError("of its own")

    async def hang(_: int) -> int:
        return await asyncio.Event().wait()

    assert asyncio.run(double_within(10, double)) == 4
    with pytest.raises(TimeoutError, match="of its own"):
        asyncio.run(double_within(10, fail))
    with pytest.raises(DeadlineExceeded, match=r"than 0\.01 seconds"):
        asyncio.run(double_within(0.01, hang))


async def double_within(seconds: float, work: Callable[[int], Awaitable[int]]) -> int:
    with Deadline(seconds):
        return await work(2)


def test_the_deadline_that_is_over_is_exceeded() -> None:
    async def wait(*seconds: float) -> None:
        with Deadline(seconds[0]), Deadline(seconds[1]):
            await asyncio.Event().wait()

    for seconds in ((0.01, 60), (60, 0.01)):
        with pytest.raises(DeadlineExceeded, match=r"than 0\.01 seconds"):
            asyncio.run(wait(*seconds))


def test_cancelled_work_does_not_exceed_its_deadline() -> None:
    async def run() -> None:
        async def wait() -> None:
            with Deadline(60):
                await asyncio.Event().wait()

        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(run())
