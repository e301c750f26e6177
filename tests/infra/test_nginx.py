"""infra/nginx under a real nginx, in front of scripted replicas."""

import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.names import BATCH_ID_HEADER
from app.settings import Settings
from tests.running import TIMEOUT_SECONDS, Exchanged, exchange, free_port, wait_until
from tests.test_house import ROOT

pytestmark = pytest.mark.slow

FOLDER = ROOT / "infra" / "nginx"
CONFIGURATION = (FOLDER / "nginx.conf").read_text(encoding="utf-8")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: make system-deps")
JSON = {"Content-Type": "application/json"}


class Replica(ThreadingHTTPServer):
    """Answers each request with `status`, or hangs up on it once it has read it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.status = 200
        self.hangs_up = False
        self.seen: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Replica

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.seen.append(f"{self.command} {self.path} {self.headers.get(BATCH_ID_HEADER)}")
        if self.server.hangs_up:
            self.close_connection = True
            return
        self.send_response(self.server.status)
        self.send_header("Retry-After", "7")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST  # noqa: N815 - the base class names it

    def log_message(self, *_: object) -> None:
        pass


class Balancer:
    def __init__(self, folder: Path, replicas: list[Replica]) -> None:
        assert NGINX is not None
        self.port = free_port()
        self.replicas = replicas
        configuration = folder / "nginx.conf"
        configuration.write_text(CONFIGURATION.replace("listen 8080", f"listen 127.0.0.1:{self.port}"))
        servers = (FOLDER / "upstreams.conf").read_text(encoding="utf-8")
        (folder / "upstreams.conf").write_text(
            "".join(servers.replace("classify:8000", f"127.0.0.1:{r.server_address[1]}") for r in replicas)
        )
        self._command = [NGINX, "-e", "stderr", "-p", f"{folder}/", "-c", str(configuration)]
        self.checked = subprocess.run(
            [*self._command, "-t"], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
        assert self.checked.returncode == 0, self.checked.stderr
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([*self._command, "-g", "daemon off;"], stdout=log, stderr=log)
        wait_until(lambda: self._answers("/healthz"))
        for replica in replicas:
            replica.seen.clear()

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def send(self, batch_id: str | None = None, method: str = "POST", body: bytes = b"{}") -> Exchanged:
        ids = {} if batch_id is None else {BATCH_ID_HEADER: batch_id}
        return exchange(self.port, method, "/classify", body if method == "POST" else None, JSON | ids)

    def who_saw(self, text: str) -> list[int]:
        """Replicas, by their numbers, once for each time."""
        return [number for number, r in enumerate(self.replicas) for seen in r.seen if text in seen]

    def _answers(self, path: str) -> bool:
        with suppress(OSError, HTTPException):
            return exchange(self.port, "GET", path).status == 200
        return False


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[Balancer]:
    replicas = [Replica() for _ in range(3)]
    balancer = Balancer(tmp_path, replicas)
    try:
        yield balancer
    finally:
        balancer.process.send_signal(signal.SIGQUIT)
        for replica in replicas:
            replica.shutdown()
            replica.server_close()
        balancer.process.wait(TIMEOUT_SECONDS)


def test_bodies_and_times_are_those_of_the_service() -> None:
    fields = Settings.model_fields
    [megabytes] = re.findall(r"client_max_body_size (\d+)m;", CONFIGURATION)
    assert int(megabytes) * 2**20 == fields["max_body_bytes"].default
    assert str(fields["max_body_bytes"].default) in CONFIGURATION
    seconds = [int(found) for found in re.findall(r"proxy_read_timeout (\d+)s;", CONFIGURATION)]
    assert len(seconds) == 2
    assert min(seconds) > fields["sync_deadline_seconds"].default
    [drain] = re.findall(r"worker_shutdown_timeout (\d+)s;", CONFIGURATION)
    assert int(drain) >= max(seconds)
    assert f"$http_{BATCH_ID_HEADER.replace('-', '_')} consistent;" in CONFIGURATION


@needs_nginx
def test_a_batch_comes_to_the_same_replica_whenever_it_is_sent_or_asked_for(balancer: Balancer) -> None:
    for batch_id in (f"batch-{number:02}" for number in range(12)):
        for method in ("POST", "POST", "GET"):
            assert balancer.send(batch_id, method).status == 200
        assert len(balancer.who_saw(batch_id)) == 3
        assert len(set(balancer.who_saw(batch_id))) == 1
    assert set(balancer.who_saw("batch-")) == {0, 1, 2}


@needs_nginx
def test_requests_without_an_id_are_spread(balancer: Balancer) -> None:
    for _ in range(12):
        assert balancer.send().status == 200
    assert set(balancer.who_saw("POST /classify None")) == {0, 1, 2}


@needs_nginx
def test_a_batch_is_sent_to_another_replica_when_the_first_dies_over_it(balancer: Balancer) -> None:
    balancer.send("lost")
    [first] = balancer.who_saw("lost")
    balancer.replicas[first].hangs_up = True
    assert balancer.send("lost").status == 200
    assert len(balancer.who_saw("lost")) == 3


@needs_nginx
def test_a_batch_that_ends_replicas_does_not_end_them_all(balancer: Balancer) -> None:
    """Over new connections, for nginx does not count an attempt over one that it had kept."""
    for replica in balancer.replicas:
        replica.hangs_up = True
    refused = balancer.send("deadly")
    assert (refused.status, refused.headers["retry-after"]) == (502, "1")
    assert b'"code":"no_replica"' in refused.body
    assert len(balancer.who_saw("deadly")) == 2


@needs_nginx
def test_what_has_no_id_is_never_sent_twice(balancer: Balancer) -> None:
    for replica in balancer.replicas:
        replica.hangs_up = True
    assert balancer.send().status == 502
    assert len(balancer.who_saw("POST /classify None")) == 1


@needs_nginx
@pytest.mark.parametrize("batch_id", [None, "busy"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_is_passed_on_and_takes_no_replica_out(
    balancer: Balancer, batch_id: str | None, status: int
) -> None:
    for replica in balancer.replicas:
        replica.status = status
    for _ in range(15):
        refused = balancer.send(batch_id)
        assert (refused.status, refused.headers["retry-after"]) == (status, "7")
    assert len(balancer.who_saw("POST /classify")) == 15


@needs_nginx
def test_a_batch_that_one_replica_does_not_know_is_asked_for_at_another(balancer: Balancer) -> None:
    balancer.send("moved", "GET")
    [first] = balancer.who_saw("moved")
    balancer.replicas[first].status = 404
    assert balancer.send("moved", "GET").status == 200
    for replica in balancer.replicas:
        replica.status = 404
    assert balancer.send("never sent", "GET").status == 404


@needs_nginx
@pytest.mark.parametrize(
    "path", ["/metrics", "//metrics", "/%6Detrics", "/docs/../metrics", "/batch", "/other"]
)
def test_nothing_else_is_there_for_outside(balancer: Balancer, path: str) -> None:
    answer = exchange(balancer.port, "GET", path)
    assert answer.status == 404
    assert balancer.who_saw("GET") == []


@needs_nginx
def test_a_body_beyond_the_services_bound_is_refused_in_its_shape(balancer: Balancer) -> None:
    connection = HTTPConnection("127.0.0.1", balancer.port, timeout=TIMEOUT_SECONDS)
    connection.putrequest("POST", "/classify")
    connection.putheader("Content-Length", str(64 * 2**20 + 1))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert b'"code":"payload_too_large"' in answer.read()
    connection.close()


@needs_nginx
def test_a_reload_loses_no_request(balancer: Balancer) -> None:
    for number in range(60):
        if number % 20 == 10:
            balancer.reload()
        assert balancer.send(f"batch-{number}").status == 200
        assert balancer.send().status == 200
