"""python -m app.server.probe, against the real service."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.running import TIMEOUT_SECONDS, free_port, logging_service, running_service, wait_until

pytestmark = pytest.mark.slow


def exit_code(port: int, host: str) -> int:
    variables = {"EXT_CLASSIFY_PORT": str(port), "EXT_CLASSIFY_HOST": host}
    command = [sys.executable, "-m", "app.server.probe"]
    return subprocess.run(
        command, env=os.environ | variables, check=False, timeout=TIMEOUT_SECONDS
    ).returncode


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_probe_succeeds_if_the_service_is_ready(host: str) -> None:
    with running_service() as url:
        assert exit_code(urlsplit(url).port or 0, host) == 0


def test_probe_fails_without_a_service() -> None:
    assert exit_code(free_port(), "127.0.0.1") == 1


def test_probe_fails_while_the_service_shuts_down(tmp_path: Path) -> None:
    with logging_service(tmp_path / "log", EXT_CLASSIFY_STOP_DELAY_SECONDS="600") as (service, port):
        wait_until(lambda: exit_code(port, "127.0.0.1") == 0)
        service.send_signal(signal.SIGTERM)
        wait_until(lambda: exit_code(port, "127.0.0.1") == 1)
        assert service.poll() is None


def test_probe_imports_only_the_standard_library() -> None:
    program = "import sys, app.server.probe; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"pydantic", "fastapi", "argparse", "app.settings"} & set(ran.stdout.split())
