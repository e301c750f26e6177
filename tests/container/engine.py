"""The image as it runs in production: no root, no capabilities, only /tmp writable, little memory."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import gettempdir
from typing import Any

from pydantic_core import from_json

from app.client import is_ready
from tests.running import free_port, wait_until

ENGINE = os.environ.get("ENGINE", "docker")
IMAGE = os.environ.get("CONTAINER_IMAGE", "")
HARDENED = [
    "--read-only",
    "--tmpfs=/tmp:rw,size=64m,mode=1777",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--memory=1g",
    "--pids-limit=256",
]
_NETWORK = ["--network=host", "--env=EXT_CLASSIFY_HOST=127.0.0.1"]
TIMEOUT_SECONDS = 120


def run_engine(*arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [ENGINE, *arguments],
        capture_output=True,
        text=True,
        check=check,
        timeout=TIMEOUT_SECONDS,
        cwd=gettempdir(),  # podman notes there which containers ran out of memory
    )


def inspect(what: str, kind: str = "image") -> dict[str, Any]:
    [found] = from_json(run_engine(kind, "inspect", what).stdout)
    assert isinstance(found, dict)
    return found


def run_in_image(command: str) -> str:
    """What a shell inside the image prints, as its own user."""
    return run_engine("run", "--rm", *HARDENED, "--entrypoint=sh", IMAGE, "-c", command).stdout


@dataclass(frozen=True)
class Container:
    name: str
    port: int
    ready_seconds: float
    """From the order to run it."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def exit_code(self) -> int:
        code: int = inspect(self.name, "container")["State"]["ExitCode"]
        return code

    def run(self, *command: str) -> str:
        """What a command inside prints."""
        return run_engine("exec", self.name, *command).stdout

    def stop(self, seconds: int = 40) -> None:
        run_engine("stop", "-t", str(seconds), self.name)

    def log(self) -> str:
        logged = run_engine("logs", self.name)
        return logged.stdout + logged.stderr


@contextmanager
def running_container(*options: str, **environment: str) -> Iterator[Container]:
    """Ready, and taken away afterwards."""
    port, name = free_port(), f"ext-classify-test-{time.monotonic_ns()}"
    variables = {"EXT_CLASSIFY_AUTH": "none", "EXT_CLASSIFY_PORT": str(port)} | environment
    said = [f"--env={variable}={value}" for variable, value in variables.items()]
    began = time.monotonic()
    run_engine("run", "--detach", f"--name={name}", *HARDENED, *_NETWORK, *said, *options, IMAGE)
    try:
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        yield Container(name, port, time.monotonic() - began)
    finally:
        run_engine("rm", "--force", name)


def run_to_its_end(*options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a container that must not start, until it exits."""
    said = [f"--env={variable}={value}" for variable, value in environment.items()]
    return run_engine("run", "--rm", *HARDENED, *_NETWORK, *said, *options, IMAGE, check=False)
