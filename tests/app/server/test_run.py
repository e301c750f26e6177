import gc
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from app import settings
from app.client import Client, is_ready
from app.server import run as serving
from app.settings import Settings
from model.defaults import DEFAULT_MODEL_PATH
from tests.app.workers.faults import put, tear
from tests.conftest import SAMPLES
from tests.running import CLI, TIMEOUT_SECONDS, exchange, free_port, logging_service, wait_until

pytestmark = pytest.mark.slow


def workers_in(log: Path) -> list[int]:
    """Process ids of all workers that have started, the latest last."""
    return list(map(int, re.findall(r"Started server process \[(\d+)\]", log.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    ("cores", "workers", "classifiers"), [(1, 1, 1), (2, 1, 2), (2, 2, 1), (3, 2, 2), (2, 4, 1), (16, 4, 4)]
)
def test_workers_share_one_classifier_per_core(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, classifiers: int
) -> None:
    monkeypatch.setattr(settings, "usable_cores", lambda: cores)
    assert Settings(workers=workers).classifiers == classifiers
    assert Settings(workers=workers, classifiers=7).classifiers == 7
    assert Settings(workers=workers, engine="tensorflow").classifiers == 1


def test_serve_imports_only_what_it_needs() -> None:
    program = (
        "import sys; from app.cli.main import main, parse_arguments; parse_arguments(['serve']);"
        "import app.server.run; app.server.run.start_app(app.server.run.Settings()); print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = {module.partition(".")[0] for module in ran.stdout.split()}
    assert "uvicorn" in imported
    assert not imported & {"aiohttp", "snowflake", "tensorflow", "keras", "h5py", "duckdb"}
    assert not imported & {"numpy", "PIL", "ai_edge_litert"}  # only classifier processes import these


def test_started_app_is_frozen_for_the_garbage_collector() -> None:
    try:
        app = serving.start_app(Settings())
        assert gc.isenabled()
        assert not any(found is app for found in gc.get_objects())
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_line_of_the_log_is_json_where_no_terminal_is(workers: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    misspelt = {"EXT_CLASSIFY_MISSPELT": "1\n{"}
    with logging_service(log, "--workers", str(workers), **misspelt) as (service, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        Client(f"http://127.0.0.1:{port}").classify(SAMPLES / "pitted.png")
    assert service.returncode == 0
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert all(datetime.fromisoformat(line["time"]).tzinfo and line["level"] for line in lines)
    assert {"starting", "ready", "classified", "stopping"} <= {line.get("event") for line in lines}
    messages = {(line["logger"], line["level"]) for line in lines if "event" not in line}
    assert messages == {("uvicorn.error", "INFO"), ("ext_classify", "WARNING")}


def test_second_ctrl_c_ends_the_service_without_a_traceback(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_service(log) as (service, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        with socket.create_connection(("127.0.0.1", port)) as unfinished:
            unfinished.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            assert exchange(port, "GET", "/readyz").status == 200  # after the service has read the other
            service.send_signal(signal.SIGINT)
            wait_until(lambda: "Shutting down" in log.read_text(encoding="utf-8"))
            service.send_signal(signal.SIGINT)
            assert service.wait(TIMEOUT_SECONDS) == 130
    assert "Traceback" not in log.read_text(encoding="utf-8")


def test_dead_worker_is_replaced(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_service(log, "--workers", "2") as (service, port):
        wait_until(lambda: len(workers_in(log)) == 2)
        os.kill(workers_in(log)[0], signal.SIGKILL)
        wait_until(lambda: len(workers_in(log)) == 3)
        for _ in range(10):
            outcome = Client(f"http://127.0.0.1:{port}").classify(SAMPLES / "pitted.png")
            assert outcome["label"] == "Pitted"
    assert service.returncode == 0
    assert len(set(workers_in(log))) == 3


def test_workers_stop_on_sighup(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_service(log, "--workers", "2") as (service, _):
        wait_until(lambda: len(workers_in(log)) == 2)
        service.send_signal(signal.SIGHUP)
        wait_until(lambda: service.poll() is not None)
    assert service.returncode == 0
    assert len(workers_in(log)) == 2


def test_workers_that_cannot_start_stop_the_service_with_one_line(tmp_path: Path) -> None:
    model = str(tmp_path / "m.h5")
    command = [*CLI, "serve", "--workers", "3", "--port", str(free_port()), "--model", model]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    assert ran.returncode == 1
    assert ran.stderr.count("ext-classify: ") == 1
    assert "m.h5" in ran.stderr
    assert "Traceback" not in ran.stderr


def fault_lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if not line.startswith("{")]


@pytest.mark.parametrize("room", ["16k", "300k"])
def test_missing_room_for_metrics_is_printed_once(room: str, tmp_path: Path) -> None:
    """Otherwise a full tmpfs would kill each of them with SIGBUS, again and again."""
    apart = ["unshare", "-rm"]
    tried = ["sh", "-c", shlex.join([*apart, "mount", "-t", "tmpfs", "none", str(tmp_path)])]
    if subprocess.run(tried, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted: run as root, or allow user namespaces")
    serve = shlex.join([*CLI, "serve", "--workers", "2", "--port", str(free_port())])
    ran = subprocess.run(
        [*apart, "sh", "-c", f"mount -t tmpfs -o size={room} none {tmp_path} && exec {serve}"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    assert ran.returncode == 1
    [line] = fault_lines(ran.stderr)
    assert line.startswith("ext-classify: The metrics of the workers need ")
    assert "No space left on device" in line
    assert str(tmp_path) in line


def test_metrics_files_of_workers_are_not_sparse(tmp_path: Path) -> None:
    environment = {"TMPDIR": str(tmp_path)}
    with logging_service(tmp_path / "log", "--workers", "2", **environment) as (_, port):
        wait_until(lambda: len(workers_in(tmp_path / "log")) == 2)
        assert Client(f"http://127.0.0.1:{port}").classify(SAMPLES / "pitted.png")["label"] == "Pitted"
        files = list(tmp_path.rglob("*.db"))
        assert len(files) == 10
        assert [file.name for file in files if 512 * file.stat().st_blocks < file.stat().st_size] == []


def test_worker_that_cannot_restart_does_not_stop_the_others(tmp_path: Path) -> None:
    log, model_path = tmp_path / "log", tmp_path / "m.h5"
    put(DEFAULT_MODEL_PATH, model_path)
    with logging_service(log, "--workers", "2", "--model", str(model_path)) as (service, port):
        wait_until(lambda: log.read_text(encoding="utf-8").count("Application startup complete") == 2)
        tear(model_path)
        os.kill(workers_in(log)[0], signal.SIGKILL)
        wait_until(lambda: "ended (exit code 3)" in log.read_text(encoding="utf-8"))
        client = Client(f"http://127.0.0.1:{port}")
        assert client.classify(SAMPLES / "pitted.png")["label"] == "Pitted"
        put(DEFAULT_MODEL_PATH, model_path)
        wait_until(lambda: log.read_text(encoding="utf-8").count("Application startup complete") == 3)
        assert service.poll() is None
    assert service.returncode == 0
    assert log.read_text(encoding="utf-8").count("must have the sha256") == 1


def test_worker_that_is_slow_to_start_is_not_restarted(tmp_path: Path) -> None:
    """By default, uvicorn kills it after five seconds."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\nif 'spawn_main' in ' '.join(sys.orig_argv): time.sleep(6)\n", encoding="utf-8"
    )
    path, log = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]), tmp_path / "log"
    with logging_service(log, "--workers", "2", PYTHONPATH=path):
        wait_until(lambda: len(workers_in(log)) == 2)
    assert "cannot start" not in log.read_text(encoding="utf-8")


def test_service_exits_if_its_workers_always_die_at_start(tmp_path: Path) -> None:
    """Killed by a signal, such as for lack of memory, so that they print nothing."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'spawn_main' in ' '.join(sys.orig_argv): os.abort()\n", encoding="utf-8"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [*CLI, "serve", "--workers", "2", "--port", str(free_port())],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    assert ran.returncode == 1
    assert ran.stderr.count("The workers cannot start") == 1


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return socket.has_dualstack_ipv6()
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="This machine has no IPv6.")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_unspecified_ipv6_address_listens_on_both_families(tmp_path: Path, workers: str) -> None:
    options = ("--host", "::", "--workers", workers)
    with logging_service(tmp_path / "log", *options, EXT_CLASSIFY_AUTH="none") as (_, port):
        for address in ("127.0.0.1", "[::1]"):
            wait_until(lambda address=address: is_ready(f"http://{address}:{port}"))
