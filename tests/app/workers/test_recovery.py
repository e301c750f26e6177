"""The whole service while its classifier processes are killed, stopped, or cannot be restarted."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.client import is_ready
from model.defaults import DEFAULT_MODEL_PATH
from tests.app.forms import text_of
from tests.app.workers.faults import RECIPE, put, tear
from tests.app.workers.test_host import children, command_of, needs_proc
from tests.running import Exchanged, exchange, has_unanswered_rows, logging_service, wait_until

pytestmark = [pytest.mark.slow, needs_proc]

IMAGE = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json"}


class Family:
    """The classifier processes of a service."""

    def __init__(self, service: int) -> None:
        self._service = service

    @property
    def hosts(self) -> list[int]:
        return [pid for pid in children(self._service) if "app.workers.process" in command_of(pid)]

    @property
    def forks(self) -> list[int]:
        return [fork for host in self.hosts for fork in children(host)]

    def signal(self, number: int, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, number)


class Service:
    """A service with two classifier processes and its own copy of the network."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log: Path, model_path: Path) -> None:
        self.family = Family(process.pid)
        self.model_path = model_path
        self._pid = process.pid
        self._port = port
        self._log = log

    def ready(self) -> tuple[int, str]:
        answer = exchange(self._port, "GET", "/readyz")
        return answer.status, json.loads(answer.body)["status"]

    def classify(self, image: bytes) -> Exchanged:
        return exchange(self._port, "POST", "/classify", image, IMAGE)

    def classify_rows(self, *sources: str) -> Exchanged:
        body = json.dumps({"data": list(enumerate(sources))}).encode()
        return exchange(self._port, "POST", "/classify", body, JSON)

    def has_unanswered_rows(self) -> bool:
        return has_unanswered_rows(self._port)

    def lines(self, text: str) -> int:
        return self._log.read_text(encoding="utf-8").count(text)

    def reload(self) -> None:
        os.kill(self._pid, signal.SIGUSR1)

    def spoil(self) -> None:
        for suffix in (".h5", ".tflite"):
            tear(self.model_path.with_suffix(suffix))


def answered(ask: Callable[[], Exchanged]) -> Exchanged:
    """On a busy machine, processes start later than the grace period ends; clients then repeat."""
    answers = [ask()]

    def is_answered() -> bool:
        if answers[-1].status == 200:
            return True
        assert (answers[-1].status, error_of(answers[-1])["code"]) == (503, "no_classifier")
        answers.append(ask())
        return False

    wait_until(is_answered)
    return answers[-1]


@contextmanager
def served(tmp_path: Path, **environment: str) -> Iterator[Service]:
    log, model_path = tmp_path / "log", tmp_path / "m.h5"
    put(DEFAULT_MODEL_PATH, model_path)
    settings = {"EXT_CLASSIFY_CLASSIFIERS": "2", **environment}
    with logging_service(log, "--model", str(model_path), **settings) as (process, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        yield Service(process, port, log, model_path)


def error_of(answer: Exchanged) -> dict[str, object]:
    error: dict[str, object] = json.loads(answer.body)["error"]
    return error


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with served(tmp_path) as service:
        yield service


def test_without_a_classifier_requests_are_rejected_until_the_network_loads_again(
    service: Service, sample: bytes
) -> None:
    service.spoil()
    service.family.signal(signal.SIGKILL, [*service.family.hosts, *service.family.forks])
    for _ in range(3):  # the first waits for the grace period; the others do not
        answer = service.classify(sample)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert error_of(answer)["code"] == "no_classifier"
        assert error_of(answer)["retryable"] is True
    assert service.ready() == (503, "no_classifier")
    wait_until(lambda: service.lines("must have the sha256") == 1)
    put(DEFAULT_MODEL_PATH, service.model_path)
    wait_until(lambda: service.ready() == (200, "ready"))
    assert service.classify(sample).status == 200
    assert len(service.family.forks) >= 1
    assert service.lines("No classifier process is ready") == 1
    assert service.lines("The service can classify again") == 1
    assert service.lines("must have the sha256") == 1  # after any number of attempts


def test_rows_to_fetch_are_rejected_without_a_classifier(service: Service, sample: bytes) -> None:
    """They wait in tasks, which fail as a group."""
    service.spoil()
    service.family.signal(signal.SIGKILL, [*service.family.hosts, *service.family.forks])
    answer = service.classify_rows("https://example.invalid/a.png", text_of(sample))
    assert (answer.status, error_of(answer)["code"]) == (503, "no_classifier")
    assert service.lines("Traceback") == 0


def test_stopped_processes_are_replaced_and_their_rows_are_answered(service: Service, sample: bytes) -> None:
    """Their own timers do not fire."""
    stopped = service.family.forks
    service.family.signal(signal.SIGSTOP, stopped)
    answer = answered(lambda: service.classify_rows(*[text_of(sample)] * 20))
    assert {outcome["label"] for _, outcome in json.loads(answer.body)["data"]} == {"Scratches"}
    wait_until(lambda: not set(stopped) & {*service.family.forks})
    assert not any(map(command_of, stopped))


def test_reload_does_not_wait_for_processes_that_are_stopped_at_a_call(
    service: Service, sample: bytes
) -> None:
    stopped = service.family.forks
    service.family.signal(signal.SIGSTOP, stopped)
    with ThreadPoolExecutor() as callers:
        answer = callers.submit(service.classify, sample)
        wait_until(service.has_unanswered_rows)
        service.reload()
        wait_until(lambda: service.lines('"event":"reloaded"') == 1)
        assert answer.result().status == 200
    wait_until(lambda: not any(map(command_of, stopped)))


def test_stopped_fork_server_is_replaced(service: Service, sample: bytes) -> None:
    [host] = service.family.hosts
    forks = service.family.forks
    service.family.signal(signal.SIGSTOP, [host])
    service.family.signal(signal.SIGKILL, forks)
    assert error_of(service.classify(sample))["code"] == "no_classifier"
    wait_until(lambda: service.ready() == (200, "ready"))
    assert service.classify(sample).status == 200
    assert host not in service.family.hosts


def test_requests_succeed_after_the_fork_server_is_killed(service: Service, sample: bytes) -> None:
    service.family.signal(signal.SIGKILL, service.family.hosts)
    for _ in range(3):
        service.family.signal(signal.SIGKILL, service.family.forks[:1])
        answered(lambda: service.classify(sample))
        assert service.ready() == (200, "ready")


def test_network_that_a_restarted_fork_server_loads_replaces_the_earlier_one(
    service: Service, sample: bytes
) -> None:
    """The files were replaced without SIGUSR1."""
    put(RECIPE, service.model_path)
    version = json.loads(service.classify(sample).body)["model"]["version"]
    [survivor, killed] = service.family.forks
    service.family.signal(signal.SIGKILL, [*service.family.hosts, killed])
    wait_until(lambda: service.lines('"event":"reloaded"') == 1)
    wait_until(lambda: not command_of(survivor))
    wait_until(lambda: len(service.family.forks) == 2)
    answer = answered(lambda: service.classify_rows(*[text_of(sample)] * 40))
    versions = {outcome["model"]["version"] for _, outcome in json.loads(answer.body)["data"]}
    assert len(versions) == 1
    assert version not in versions


def test_reload_restores_a_service_without_classifiers(tmp_path: Path, sample: bytes) -> None:
    log, model_path = tmp_path / "log", tmp_path / "m.h5"
    put(DEFAULT_MODEL_PATH, model_path)
    with logging_service(log, "--model", str(model_path)) as (process, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        service = Service(process, port, log, model_path)
        service.spoil()
        service.family.signal(signal.SIGKILL, [*service.family.hosts, *service.family.forks])
        wait_until(lambda: service.ready() == (503, "no_classifier"))
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: service.lines("The reload failed") == 1)
        assert service.ready() == (503, "no_classifier")
        put(RECIPE, model_path)
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: service.ready() == (200, "ready"))
        assert service.classify(sample).status == 200


def test_shutdown_does_not_wait_for_a_stopped_fork_server(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        pids = [*service.family.hosts, *service.family.forks]
        service.family.signal(signal.SIGSTOP, pids)
    wait_until(lambda: not any(map(command_of, pids)))
