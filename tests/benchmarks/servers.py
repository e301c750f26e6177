"""Contenders as processes: started, polled until ready, and stopped with all their children."""

import http.client
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.answers import WrongAnswer, labels_in
from tests.benchmarks.contenders import Contender, Form, Network
from tests.benchmarks.footprint import Instances, cpu_seconds, server_processes
from tests.benchmarks.request_bodies import Requests, make_bodies
from tests.benchmarks.served import NotServing, require_label
from tests.running import free_port

START_TIMEOUT_SECONDS = 180.0
# For a server that answers, but not with a label.
ANSWER_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 8.0
IDLE_SECONDS = 2.0
# So few that camera-size images fit into a body.
_CHECKED_ROWS = 4


@dataclass(frozen=True)
class Server:
    contender: Contender
    network: Network
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    def form(self, wanted: Form) -> Form | None:
        """The form that it speaks in place of `wanted`, if it speaks one."""
        if wanted in self.contender.paths:
            return wanted
        return "v2" if wanted == "snowflake" and "v2" in self.contender.paths else None

    def classify(self, files: Sequence[bytes], form: Form = "snowflake") -> list[str]:
        """Labels in the order of `files`. Raises OSError, HTTPException, NotServing or WrongAnswer."""
        spoken = self.form(form)
        if spoken is None:
            raise NotServing(f"it does not speak the form {form}")
        [body, *_] = make_bodies(spoken, len(files), files)
        request = next(iter(Requests(spoken, self.contender.paths[spoken], [body])))
        status, answer = _exchange(self.port, request.head + request.body)
        if status != 200:
            raise NotServing(f"status {status}: {answer[:200].decode(errors='replace')}")
        return labels_in(spoken, answer)

    def idle_cores(self) -> float:
        """CPU time and memory of an idle server."""
        before, began = cpu_seconds(server_processes(self.process.pid)), time.perf_counter()
        time.sleep(IDLE_SECONDS)
        spent = cpu_seconds(server_processes(self.process.pid)) - before
        return spent / (time.perf_counter() - began)

    def last_words(self) -> str:
        """The end of what it wrote to its standard output and error."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])[-400:]


@contextmanager
def suspended(servers: Iterable[Server]) -> Iterator[None]:
    """All their processes stopped, until the context ends."""
    pids = [pid for server in servers for pid in server_processes(server.process.pid)]
    _signal_all(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal_all(reversed(pids), signal.SIGCONT)  # supervisors last


@contextmanager
def started(contender: Contender, network: Network) -> Iterator[Server]:
    """Yields its processes before the first request; all of them end with the context. Raises NotServing."""
    port = free_port()
    with tempfile.NamedTemporaryFile(suffix=".log") as log, ExitStack() as exits:
        try:
            process = subprocess.Popen(
                contender.command(network, port),
                cwd=contender.cwd,
                env=os.environ | contender.environment(network, port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise NotServing(f"its command cannot be run: {error}") from None
        exits.callback(_stop, process)
        yield Server(contender, network, port, process, Path(log.name))


def wait_for_label(server: Server, file: bytes) -> None:
    """Ask for one label until it is answered. Raises NotServing."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    reason: str | None = None
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise NotServing(f"it ended with {server.process.returncode}: {server.last_words()}")
        try:
            server.classify([file])
        except (OSError, http.client.HTTPException):
            time.sleep(0.01)
        # Some answer before they are able to, with an error or with nonsense.
        except Exception as error:  # noqa: BLE001
            if reason is None:
                deadline = min(deadline, time.monotonic() + ANSWER_TIMEOUT_SECONDS)
            reason = str(error)
            time.sleep(0.05)
        else:
            return
    raise NotServing(f"it gives no label: {reason or 'the port is closed'}; {server.last_words()}")


@contextmanager
def answering(contender: Contender, network: Network, file: bytes) -> Iterator[tuple[Server, float]]:
    """A server that serves what its label says, and the seconds from its command to its first label.

    Raises NotServing, or Mislabelled.
    """
    began = time.perf_counter()
    with started(contender, network) as server:
        wait_for_label(server, file)
        seconds = time.perf_counter() - began
        require_label(contender, network, server.port, server.log)
        yield server, seconds


def agreement(server: Server, files: Sequence[bytes], labels: Sequence[str]) -> float:
    """The share of `files` that it labels as `labels` says, however it spells them. Raises NotServing."""
    answered: list[str] = []
    for begin in range(0, len(files), _CHECKED_ROWS):
        try:
            answered += server.classify(files[begin : begin + _CHECKED_ROWS])
        except (OSError, http.client.HTTPException, WrongAnswer) as error:
            raise NotServing(f"it fails with {_CHECKED_ROWS} images: {error}") from error
    pairs = zip(map(_spelt_alike, answered), map(_spelt_alike, labels), strict=True)
    return sum(a == b for a, b in pairs) / len(files)


def _spelt_alike(label: str) -> str:
    return "".join(filter(str.isalnum, label.casefold()))


def _exchange(port: int, request: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.connect()
        connection.sock.sendall(request)
        response = http.client.HTTPResponse(connection.sock, method="POST")
        response.begin()
        return response.status, response.read()
    finally:
        connection.close()


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Terminate the server and the orphans that some servers leave."""
    seen = Instances(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_SECONDS)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in seen.still_running():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        _wait_until_gone(seen)
    process.wait()


def _signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait_until_gone(seen: Instances) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS / 2
    while seen.still_running() and time.monotonic() < deadline:
        time.sleep(0.05)
