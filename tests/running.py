"""The service as it really runs: `ext-classify serve` in a process of its own."""

import itertools
import os
import pty
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from app.cli.main import main
from app.client import is_ready

CLI = [sys.executable, "-m", "app.cli"]
ROOT = Path(__file__).parent.parent
CONNECTOR_5 = ROOT / ".venv-connector5" / "bin" / "python"
# The interpreters with each version of Snowflake's connector.
PYTHONS = [
    pytest.param(sys.executable, id="connector 4"),
    pytest.param(
        str(CONNECTOR_5),
        id="connector 5",
        marks=pytest.mark.skipif(
            not CONNECTOR_5.exists(), reason="connector 5 is not installed: make .venv-connector5/.installed"
        ),
    ),
]
# No load balancer has to learn that a test's service stops.
_AT_ONCE = {"EXT_CLASSIFY_STOP_DELAY_SECONDS": "0"}
# No test depends on it: it ends those that would hang.
TIMEOUT_SECONDS = 180.0


def usage_error(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The reason why a command refuses its arguments, with its usage and exit code 2."""
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"usage: ext-classify {arguments[0]} ")
    return printed.splitlines()[-1]


def free_port() -> int:
    """A port that no other worker of pytest-xdist gets, nor the kernel for an outgoing connection."""
    while True:
        port = next(_ports)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _own_ports() -> Iterator[int]:
    """From a random one on, because another run of the tests may use the same ones."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 10_000 + 1000 * (worker % 20)
    own = range(first, first + 1000)
    start = random.SystemRandom().choice(own)
    return itertools.cycle([*range(start, own.stop), *range(own.start, start)])


_ports = _own_ports()


class Exchanged(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes


def exchange(
    port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Exchanged:
    """One request on a connection of its own."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)) as connection:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        said = {name.lower(): value for name, value in answer.getheaders()}
        return Exchanged(answer.status, said, answer.read())


@contextmanager
def running_service(*arguments: str, **environment: str) -> Iterator[str]:
    """The URL of a service that is ready; it is stopped with SIGTERM, and must then exit cleanly."""
    port = free_port()
    command = [*CLI, "serve", "--port", str(port), *arguments]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env=os.environ | _AT_ONCE | environment) as service:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not is_ready(url):
            assert service.poll() is None, "the service did not start"
            assert time.monotonic() < deadline, "the service did not become ready"
            time.sleep(0.05)
        try:
            yield url
        finally:
            service.terminate()
    assert service.returncode == 0


@contextmanager
def logging_service(
    log: Path, *arguments: str, **environment: str
) -> Iterator["tuple[subprocess.Popen[bytes], int]"]:
    """A service that may not be ready yet, and its port; its log goes to a file, and it is made to end."""
    port = free_port()
    command = [*CLI, "serve", "--port", str(port), *arguments]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, stderr=stderr, env=os.environ | _AT_ONCE | environment) as service,
    ):
        try:
            yield service, port
            service.terminate()
            wait_until(lambda: service.poll() is not None)
        finally:
            service.kill()


def has_unanswered_rows(port: int) -> bool:
    return b"\next_classify_unanswered_rows 0.0\n" not in exchange(port, "GET", "/metrics").body


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def running_demo(port: int, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A demo that has said all it says, and what that was."""
    command = [*CLI, "demo", "--port", str(port), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        watchdog = threading.Timer(TIMEOUT_SECONDS, demo.kill)
        watchdog.start()
        printed = ""
        while "in a browser" not in printed:
            line = demo.stdout.readline()
            assert line, printed
            printed += line
        try:
            yield demo, printed
        finally:
            watchdog.cancel()
            demo.terminate()


def shown_on_a_terminal(*arguments: str, columns: int = 100, **environment: str) -> str:
    """What our command shows there, escapes and all."""
    return run_on_a_terminal(*CLI, *arguments, columns=columns, **environment)


def run_on_a_terminal(*command: str, columns: int = 100, **environment: str) -> str:
    ours, theirs = pty.openpty()
    surroundings = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **environment}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=surroundings) as running:
        os.close(theirs)
        watchdog = threading.Timer(TIMEOUT_SECONDS, running.kill)
        watchdog.start()
        shown = b"".join(_pieces(ours))
        watchdog.cancel()
    return shown.decode()


class Terminal:
    """A command on a controlling terminal of its own, where keys can be typed; a context manager."""

    def __init__(self, *command: str, cwd: Path | None = None, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        # A session's leader gets its first terminal as the controlling one, to which Ctrl-C belongs.
        command = ("sh", "-c", f'exec "$@" <{os.ttyname(theirs)}', "sh", *command)
        surroundings = {**os.environ, "TERM": "xterm-256color", **environment}
        self.process = subprocess.Popen(
            command, stdout=theirs, stderr=theirs, env=surroundings, cwd=cwd, start_new_session=True
        )
        os.close(theirs)
        self.shown = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()  # not killed: a command ends the service that it has started
        self.process.wait(TIMEOUT_SECONDS)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, text: str, after: int = 0) -> None:
        """Wait until the terminal shows the text, from a position of `shown` on."""
        wait_until(lambda: text in self.shown[after:] or not self._reader.is_alive())
        assert text in self.shown[after:], self.shown

    def exit_code(self) -> int:
        code = self.process.wait(TIMEOUT_SECONDS)
        self._reader.join(TIMEOUT_SECONDS)
        return code

    def _read(self) -> None:
        for piece in _pieces(self._ours):
            self.shown += piece.decode(errors="replace")


def _pieces(terminal: int) -> Iterator[bytes]:
    with os.fdopen(terminal, "rb", buffering=0) as reading:
        try:
            while piece := reading.read(65536):
                yield piece
        except OSError:  # the process that wrote there has ended
            return
