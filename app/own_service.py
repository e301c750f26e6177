"""Run the service in a child process for the duration of a command."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app.client import ClientError, is_ready
from app.command_line import CommandError
from app.listening import refuse_taken_port

HOST = "127.0.0.1"
START_TIMEOUT_SECONDS = 60.0


@contextmanager
def own_service(
    host: str = HOST,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
    python: Path = Path(sys.executable),
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Yield the URL and the process of a ready service, by default on a free port. Raises ClientError."""
    reach_loopback_directly()
    port = _free_port(host) if port is None else _require_free(host, port)
    command = [str(python), "-m", "app.cli", "serve", "--host", host, "--port", str(port)]
    variables = _child_environment(environment or {})
    with subprocess.Popen(command, env=variables) as service:
        try:
            url = f"http://{host}:{port}"
            _wait_until_ready(service, url)
            yield url, service
        finally:
            service.terminate()


def reach_loopback_directly() -> None:
    """Exclude loopback from HTTP proxies, in this process and its children."""
    for name in ("no_proxy", "NO_PROXY"):
        known = os.environ.get(name, "")
        if HOST not in known:
            os.environ[name] = ",".join(filter(None, [known, HOST, "localhost"]))


def _child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with a lower log level.

    If `environment` is given, it replaces all Snowflake settings, so that two accounts never mix.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not (environment and name.upper().startswith("EXT_CLASSIFY_SNOWFLAKE_"))
    }
    # Info lines of the service would mix with the command's output.
    return {"EXT_CLASSIFY_LOG_LEVEL": "warning", **inherited, **environment}


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _require_free(host: str, port: int) -> int:
    try:
        refuse_taken_port(host, port)
    except CommandError as error:
        raise ClientError(f"{error}, or: make run PORT={port + 1}") from None
    return port


def _wait_until_ready(service: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not is_ready(url):
        if service.poll() is not None:
            raise ClientError("The service did not start: see its messages above.")
        if time.monotonic() > deadline:
            raise ClientError(f"The service was not ready after {START_TIMEOUT_SECONDS:.0f} seconds.")
        time.sleep(0.05)
