import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from app.client import is_ready
from app.names import BATCH_ID_HEADER
from model.image import encode_png
from tests.app.forms import text_of
from tests.app.workers.costly_jpeg import costly_jpeg
from tests.app.workers.test_host import children, command_of, needs_proc
from tests.running import (
    TIMEOUT_SECONDS,
    Exchanged,
    exchange,
    has_unanswered_rows,
    logging_service,
    wait_until,
)

pytestmark = pytest.mark.slow

JSON = {"Content-Type": "application/json"}


@contextmanager
def ready_service(
    tmp_path: Path, *arguments: str, **environment: str
) -> Iterator["tuple[subprocess.Popen[bytes], int]"]:
    """A service whose workers are all ready, and that listens: it logs the one just before the other."""
    log, workers = tmp_path / "log", 2 if "2" in arguments else 1
    with logging_service(log, *arguments, **environment) as (service, port):
        wait_until(lambda: log.read_text(encoding="utf-8").count('"event":"ready"') == workers)
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        yield service, port


def batch_of(rows: int) -> bytes:
    """A batch of tiny images, which take as long as any others."""
    image = text_of(encode_png(np.zeros((8, 8), np.uint8)))
    return json.dumps({"data": [[n, image] for n in range(rows)]}).encode()


def slow_batch() -> bytes:
    """More CPU time than any test takes."""
    image = text_of(costly_jpeg())
    return json.dumps({"data": [[n, image] for n in range(500)]}).encode()


class Caller(threading.Thread):
    """Sends one batch and stores the response."""

    def __init__(self, port: int, body: bytes) -> None:
        super().__init__()
        self._port = port
        self._body = body
        self.answer = Exchanged(0, {}, b"")
        self.start()

    def run(self) -> None:
        self.answer = exchange(self._port, "POST", "/classify", self._body, JSON)


def begun_batch(port: int, body: bytes) -> Caller:
    """A batch that is being classified, unless the machine is so slow that it is classified already."""
    caller = Caller(port, body)
    wait_until(lambda: has_unanswered_rows(port) or not caller.is_alive())
    return caller


def wait_until_stopping(tmp_path: Path, workers: int) -> None:
    """Until each worker has received the first signal: two that are pending count as one."""
    log = tmp_path / "log"
    wait_until(lambda: log.read_text(encoding="utf-8").count('"event":"stopping"') == workers)


def status_of(port: int, path: str) -> int:
    return exchange(port, "GET", path).status


@pytest.mark.parametrize("workers", ["1", "2"])
def test_requests_before_and_during_the_shutdown_delay_are_answered(tmp_path: Path, workers: str) -> None:
    environment = {"EXT_CLASSIFY_STOP_DELAY_SECONDS": "600", "EXT_CLASSIFY_CLASSIFIERS": "1"}
    with ready_service(tmp_path, "--workers", workers, **environment) as (service, port):
        begun = begun_batch(port, batch_of(1500))
        service.send_signal(signal.SIGTERM)
        wait_until_stopping(tmp_path, int(workers))
        assert status_of(port, "/readyz") == 503
        assert status_of(port, "/healthz") == 200
        late = Caller(port, batch_of(2))
        for caller in (begun, late):
            caller.join()
            assert caller.answer.status == 200
        assert late.answer.headers["connection"] == "close"
        assert len(json.loads(begun.answer.body)["data"]) == 1500
        service.send_signal(signal.SIGTERM)  # a second one ends the delay
        assert service.wait(TIMEOUT_SECONDS) == 0


def test_sighup_drains_like_sigterm(tmp_path: Path) -> None:
    environment = {"EXT_CLASSIFY_STOP_GRACE_SECONDS": "600", "EXT_CLASSIFY_CLASSIFIERS": "1"}
    with ready_service(tmp_path, **environment) as (service, port):
        begun = begun_batch(port, batch_of(1500))
        service.send_signal(signal.SIGHUP)
        begun.join()
        assert begun.answer.status == 200
        assert len(json.loads(begun.answer.body)["data"]) == 1500
        assert service.wait(TIMEOUT_SECONDS) == 0


def test_second_sighup_ends_the_grace_period(tmp_path: Path) -> None:
    environment = {"EXT_CLASSIFY_STOP_DELAY_SECONDS": "600", "EXT_CLASSIFY_CLASSIFIERS": "1"}
    with ready_service(tmp_path, **environment) as (service, port):
        service.send_signal(signal.SIGHUP)
        wait_until(lambda: status_of(port, "/readyz") == 503)
        service.send_signal(signal.SIGHUP)
        assert service.wait(TIMEOUT_SECONDS) == 0


@needs_proc
def test_workers_drain_and_exit_after_their_supervisor_is_killed(tmp_path: Path) -> None:
    """They finish running requests, and leave no process and no file behind."""
    (tmp_path / "tmp").mkdir()
    environment = {"EXT_CLASSIFY_CLASSIFIERS": "1", "TMPDIR": str(tmp_path / "tmp")}
    with ready_service(tmp_path, "--workers", "2", **environment) as (service, port):
        begun = begun_batch(port, batch_of(1500))
        everyone = descendants(service.pid)
        assert len(everyone) >= 6  # two workers, and each one's two processes
        service.kill()
        begun.join()
        assert begun.answer.status == 200
        wait_until(lambda: not any(map(command_of, everyone)))
    assert list((tmp_path / "tmp").iterdir()) == []


def descendants(pid: int) -> list[int]:
    return [one for child in children(pid) for one in (child, *descendants(child))]


def test_request_beyond_the_grace_period_is_refused_as_retryable(tmp_path: Path) -> None:
    environment = {
        "EXT_CLASSIFY_STOP_DELAY_SECONDS": "0",
        "EXT_CLASSIFY_STOP_GRACE_SECONDS": "1",
        "EXT_CLASSIFY_CLASSIFIERS": "1",
    }
    with ready_service(tmp_path, **environment) as (service, port):
        begun = begun_batch(port, slow_batch())
        service.send_signal(signal.SIGTERM)
        begun.join()
        assert begun.answer.status == 503
        assert json.loads(begun.answer.body)["error"]["code"] == "stopped"
        assert json.loads(begun.answer.body)["error"]["retryable"] is True
        assert service.wait(TIMEOUT_SECONDS) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_second_signal_ends_the_grace_period(tmp_path: Path, workers: str) -> None:
    environment = {"EXT_CLASSIFY_STOP_DELAY_SECONDS": "600", "EXT_CLASSIFY_CLASSIFIERS": "1"}
    with ready_service(tmp_path, "--workers", workers, **environment) as (service, port):
        begun = begun_batch(port, slow_batch())
        service.send_signal(signal.SIGTERM)
        wait_until_stopping(tmp_path, int(workers))
        service.send_signal(signal.SIGTERM)
        assert service.wait(TIMEOUT_SECONDS) == 0
        begun.join()
        assert begun.answer.status == 503


def test_incomplete_body_does_not_delay_the_shutdown(tmp_path: Path) -> None:
    environment = {"EXT_CLASSIFY_STOP_DELAY_SECONDS": "0", "EXT_CLASSIFY_STOP_GRACE_SECONDS": "1"}
    with (
        ready_service(tmp_path, **environment) as (service, port),
        socket.create_connection(("127.0.0.1", port)) as half,
    ):
        half.sendall(
            b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nx"
        )
        wait_until(
            lambda: b"\next_classify_pending_bytes 0.0\n" not in exchange(port, "GET", "/metrics").body
        )
        service.send_signal(signal.SIGTERM)
        assert service.wait(TIMEOUT_SECONDS) == 0


def test_ctrl_c_skips_the_delay(tmp_path: Path) -> None:
    with ready_service(tmp_path, EXT_CLASSIFY_STOP_DELAY_SECONDS="600") as (service, _):
        service.send_signal(signal.SIGINT)
        assert service.wait(TIMEOUT_SECONDS) in {0, 130}


def test_shutdown_is_logged(tmp_path: Path) -> None:
    with ready_service(tmp_path) as (service, _):
        os.kill(service.pid, signal.SIGTERM)
        assert service.wait(TIMEOUT_SECONDS) == 0
    assert '"event":"stopping","signal":"SIGTERM"' in (tmp_path / "log").read_text(encoding="utf-8")


def test_deferred_response_can_be_polled_during_shutdown(tmp_path: Path) -> None:
    environment = {"EXT_CLASSIFY_STOP_GRACE_SECONDS": "600", "EXT_CLASSIFY_SYNC_DEADLINE_SECONDS": "0.2"}
    headers = {"Content-Type": "application/json", BATCH_ID_HEADER: "deferred"}
    with ready_service(tmp_path, **environment, EXT_CLASSIFY_CLASSIFIERS="1") as (service, port):
        assert exchange(port, "POST", "/classify", batch_of(1500), headers).status == 202
        service.send_signal(signal.SIGTERM)
        wait_until(lambda: status_of(port, "/readyz") == 503)
        wait_until(lambda: exchange(port, "GET", "/classify", headers=headers).status == 200)
        assert service.wait(TIMEOUT_SECONDS) == 0


def test_shutdown_does_not_wait_forever_for_a_poll(tmp_path: Path) -> None:
    environment = {
        "EXT_CLASSIFY_STOP_DELAY_SECONDS": "0",
        "EXT_CLASSIFY_STOP_GRACE_SECONDS": "2",
        "EXT_CLASSIFY_SYNC_DEADLINE_SECONDS": "0.2",
    }
    headers = {"Content-Type": "application/json", BATCH_ID_HEADER: "deferred"}
    with ready_service(tmp_path, **environment, EXT_CLASSIFY_CLASSIFIERS="1") as (service, port):
        assert exchange(port, "POST", "/classify", batch_of(1500), headers).status == 202
        service.send_signal(signal.SIGTERM)
        assert service.wait(TIMEOUT_SECONDS) == 0
