import gc
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app import serving, settings
from app.client import Client
from app.settings import Settings
from tests.conftest import SAMPLES
from tests.running import CLI, free_port, logging_service, wait_until


def workers_in(log: Path) -> list[int]:
    """Processes that ever began to serve, the latest last."""
    return list(map(int, re.findall(r"Started server process \[(\d+)\]", log.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    ("cores", "workers", "classifiers"), [(1, 1, 1), (2, 1, 2), (2, 2, 1), (3, 2, 2), (2, 4, 1), (16, 4, 4)]
)
def test_classifiers_of_all_workers_are_as_many_as_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, classifiers: int
) -> None:
    monkeypatch.setattr(settings, "usable_cores", lambda: cores)
    assert Settings(workers=workers).classifiers == classifiers
    assert Settings(workers=workers, classifiers=7).classifiers == 7
    assert Settings(workers=workers, engine="tensorflow").classifiers == 1


def test_what_is_not_needed_to_serve_is_not_imported() -> None:
    program = (
        "import sys; from app.cli import main, parse_arguments; parse_arguments(['serve']);"
        "import app.serving; app.serving.start_app(app.serving.Settings()); print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = {module.partition(".")[0] for module in ran.stdout.split()}
    assert "uvicorn" in imported
    assert not imported & {"aiohttp", "snowflake", "tensorflow", "keras", "h5py", "duckdb"}
    assert not imported & {"numpy", "PIL", "ai_edge_litert"}  # processes of their own have these


def test_app_that_has_started_is_left_to_no_garbage_collection() -> None:
    try:
        app = serving.start_app(Settings())
        assert gc.isenabled()
        assert not any(found is app for found in gc.get_objects())
    finally:
        gc.unfreeze()


def test_workers_answer_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
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


def test_workers_stop_when_the_terminal_is_lost(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_service(log, "--workers", "2") as (service, _):
        wait_until(lambda: len(workers_in(log)) == 2)
        service.send_signal(signal.SIGHUP)
        wait_until(lambda: service.poll() is not None)
    assert service.returncode == 0
    assert len(workers_in(log)) == 2


def test_fault_of_the_workers_ends_the_service_in_one_line(tmp_path: Path) -> None:
    ran = subprocess.run(
        [*CLI, "serve", "--workers", "2", "--port", str(free_port()), "--model", str(tmp_path / "m.h5")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 1
    assert "ext-classify: " in ran.stderr
    assert "m.h5" in ran.stderr
    assert "Traceback" not in ran.stderr
