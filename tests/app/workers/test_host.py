import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import pytest

from app.settings import Settings
from app.workers.process import NetworkLoader, fork_for_each
from app.workers.protocol import (
    Answers,
    FrameReader,
    Greeting,
    WaitingRow,
    format_rows,
    parse_answers,
    parse_greeting,
)
from app.workers.starting import ClassifierProcesses
from model.artifact import load_artifact
from model.defaults import DEFAULT_MODEL_PATH
from model.errors import ArtifactError
from tests.app.workers.faults import put
from tests.running import wait_until

pytestmark = pytest.mark.slow

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are read from /proc")


def children(pid: int) -> list[int]:
    """The running child processes."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, *_ = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(parent) == pid and state != "Z":
                found.append(int(stat.parent.name))
    return found


@contextmanager
def processes(**settings: object) -> Iterator[ClassifierProcesses]:
    started = ClassifierProcesses(Settings(**settings))  # type: ignore[arg-type]
    try:
        yield started
    finally:
        started.close()


def family() -> tuple[int, list[int]]:
    """The latest fork server, and the processes that it has forked."""
    hosts = [pid for pid in children(os.getpid()) if "app.workers.process" in command_of(pid)]
    latest = max(hosts, key=start_of)
    return latest, children(latest)


def start_of(pid: int) -> int:
    """In ticks since boot: field 22 of proc(5)."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    except OSError:
        return ""


def test_greeting_contains_the_model() -> None:
    artifact = load_artifact(DEFAULT_MODEL_PATH)
    with processes(classifiers=2) as started:
        model = started.wait_until_ready()
    assert model.identity == {"name": artifact.name, "version": artifact.version}
    assert model.card["class_names"] == list(artifact.card.class_names)
    assert "class_weights" not in model.card
    assert set(model.card["novelty"]).isdisjoint({"whitening", "class_means", "prototypes"})


@pytest.mark.parametrize("engine", ["litert", "tensorflow"])
def test_missing_network_raises_artifact_error(engine: str, tmp_path: Path) -> None:
    with (
        processes(model_path=tmp_path / "none.h5", engine=engine, classifiers=1) as started,
        pytest.raises(ArtifactError, match=r"Missing: .*none\.h5"),
    ):
        started.wait_until_ready()


def test_fork_server_that_ends_without_a_greeting_raises_artifact_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = (sys.executable, "-c", "raise SystemExit(3)")
    monkeypatch.setattr("app.workers.starting._PROGRAM", program)
    with processes(classifiers=1) as started, pytest.raises(ArtifactError, match="fork server"):
        started.wait_until_ready()


def test_each_engine_classifies(sample: bytes) -> None:
    for engine in ("litert", "tensorflow"):
        with processes(engine=engine, classifiers=1) as started:
            started.wait_until_ready()
            [connection] = started.take_connections()
            with connection:
                connection.sendall(b"".join(format_rows([WaitingRow(sample, evidence=False)])))
                reader, frames = FrameReader(), list[bytes]()
                while not frames:
                    frames += reader.read(connection.recv(65536))
        answers: Answers = parse_answers(frames[0], rows=1)
        [outcome] = answers.outcomes
        assert outcome is not None
        assert outcome["label"] == "Scratches"
        assert answers.failures == {}


@needs_proc
def test_classifier_processes_have_a_lower_priority_than_the_service() -> None:
    with processes() as started:
        started.wait_until_ready()
        _, forked = family()
        assert forked
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert {os.getpriority(os.PRIO_PROCESS, pid) - own for pid in forked} == {5}


@needs_proc
def test_close_ends_all_processes() -> None:
    with processes(classifiers=3) as started:
        started.wait_until_ready()
        host, forked = family()
        assert len(forked) == 3
    assert not any(map(command_of, [host, *forked]))


@needs_proc
def test_processes_end_when_their_owner_is_garbage_collected() -> None:
    started = ClassifierProcesses(Settings(classifiers=1))
    started.wait_until_ready()
    host, forked = family()
    del started
    gc.collect()
    assert not any(map(command_of, [host, *forked]))


@needs_proc
def test_processes_end_with_a_service_that_is_killed() -> None:
    program = (
        "import time; from app.workers.starting import ClassifierProcesses;"
        "from app.settings import Settings;"
        "started = ClassifierProcesses(Settings(classifiers=2)); started.wait_until_ready();"
        "print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        assert service.stdout.readline() == b"ready\n"
        [host] = children(service.pid)
        pids = [host, *children(host)]
        assert len(pids) == 3
        service.kill()
    wait_until(lambda: not any(map(command_of, pids)))


@needs_proc
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_processes_ignore_signals_to_the_process_group(name: str) -> None:
    """Terminals and supervisors send them to the whole group, and accepted rows must be answered."""
    with processes(classifiers=1) as started:
        started.wait_until_ready()
        host, forked = family()
        for pid in (host, *forked):
            os.kill(pid, getattr(signal, name))
        time.sleep(0.2)
        assert family() == (host, forked)


@needs_proc
def test_killed_fork_server_is_restarted() -> None:
    with processes(classifiers=1) as started:
        started.wait_until_ready()
        killed, _ = family()
        os.kill(killed, signal.SIGKILL)

        def is_greeted() -> bool:
            """False until the kernel has closed the sockets of the killed one."""
            with started.host.connect() as connection:
                said = connection.recv(65536)
                return any(parse_greeting(frame).model for frame in FrameReader().read(said))

        wait_until(is_greeted)
        assert family()[0] != killed


@needs_proc
def test_classifier_processes_do_not_inherit_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXT_CLASSIFY_SNOWFLAKE_TOKEN", "of-the-mill")
    monkeypatch.setenv("LANGUAGE", "en")
    with processes(classifiers=1) as started:
        started.wait_until_ready()
        host, [forked] = family()
        for pid in (host, forked):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"of-the-mill" not in environment
            assert b"LANGUAGE=en" in environment


class FakeLoader:
    """A loader without a network."""

    def __init__(self, *, has_failed: bool) -> None:
        self.has_failed = has_failed


def greeting_from(connection: socket.socket) -> Greeting:
    connection.settimeout(120)
    [frame] = FrameReader().read(connection.recv(65536))
    return parse_greeting(frame)


def test_failed_fork_is_refused_with_its_reason_and_the_next_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    orders, theirs = socket.socketpair()
    loader = cast(NetworkLoader, FakeLoader(has_failed=False))
    host = threading.Thread(target=fork_for_each, args=(theirs, loader), daemon=True)
    host.start()
    with theirs, orders:
        for _ in range(2):
            ours, handed = socket.socketpair()
            with ours:
                with handed:
                    socket.send_fds(orders, [b"f"], [handed.fileno()])
                refusal = greeting_from(ours).refusal
                assert refusal is not None
                assert "cannot be forked: Resource temporarily unavailable" in refusal
        orders.shutdown(socket.SHUT_RDWR)
        host.join(120)
    assert not host.is_alive()


@needs_proc
def test_fork_server_whose_network_did_not_load_is_restarted(tmp_path: Path) -> None:
    """Its forks would repeat the error."""
    model_path = tmp_path / "m.h5"
    with processes(classifiers=1, model_path=model_path) as started:
        with pytest.raises(ArtifactError):
            started.wait_until_ready()
        put(DEFAULT_MODEL_PATH, model_path)

        def opens() -> bool:
            with started.host.connect() as connection:
                connection.settimeout(120)
                frames = list(FrameReader().read(connection.recv(65536)))
                return any(parse_greeting(frame).model for frame in frames)

        wait_until(opens)


@needs_proc
def test_fork_request_to_a_stopped_fork_server_times_out() -> None:
    with processes(classifiers=1) as started:
        started.wait_until_ready()
        stopped, _ = family()
        os.kill(stopped, signal.SIGSTOP)
        connections = []
        while family()[0] == stopped:  # until the socket is full
            connections.append(started.host.connect())
        for connection in connections:
            connection.close()
    assert not command_of(stopped)


@needs_proc
def test_kill_ignores_processes_of_other_programs() -> None:
    """A process id may belong to another program by now."""
    with processes(classifiers=1) as started, subprocess.Popen(["/bin/sleep", "60"]) as other:
        started.wait_until_ready()
        _, [forked] = family()
        for pid in (other.pid, forked):
            started.host.kill(pid)
        wait_until(lambda: not family()[1])
        assert other.poll() is None
        other.kill()


def test_closed_fork_server_starts_no_process() -> None:
    with processes(classifiers=1) as started:
        started.wait_until_ready()
        started.close()
        with pytest.raises(ConnectionAbortedError):
            started.host.connect()
