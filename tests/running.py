"""The service as it really runs: `ext-classify serve` in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from app.client import is_ready

START_TIMEOUT_SECONDS = 60.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def running_service(*arguments: str, **environment: str) -> Iterator[str]:
    """The URL of a service that is ready; it is stopped with SIGTERM, and must then exit cleanly."""
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), *arguments]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env=os.environ | environment) as service:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not is_ready(url):
            assert service.poll() is None, "the service did not start"
            assert time.monotonic() < deadline, "the service did not become ready"
            time.sleep(0.05)
        try:
            yield url
        finally:
            service.terminate()
    assert service.returncode == 0
