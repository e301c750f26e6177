"""Batches are repeated, delayed, dropped and reordered over HTTP."""

import itertools
import json
import statistics
from collections.abc import Iterator

import pytest

from app.emulator import Chaos, LocalServer, remote
from app.emulator.remote import Fault
from tests.app.emulator.conftest import Function
from tests.app.emulator.remote_service import RemoteService, Reply, echo
from tests.app.emulator.sql import Sql

FAULTS = ("repeated", "delayed", "dropped")


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer(chaos=Chaos(7)) as server:
        yield server


@pytest.fixture
def f(function: Function) -> None:
    function("f(a VARCHAR)", "VARCHAR", "MAX_BATCH_ROWS = 50")


@pytest.mark.slow
@pytest.mark.usefixtures("f")
def test_faults_do_not_change_the_result(
    sql: Sql, service: RemoteService, server: LocalServer, numbers: int
) -> None:
    rows = sql.rows("SELECT number, f('row ' || number) FROM numbers")
    assert [value for _, value in rows] == [f"row {number}" for number, _ in rows]
    assert len(rows) == numbers
    counts = server.local.queries.finished[sql.query_id].counts
    assert all(counts[fault] > 0 for fault in FAULTS)
    assert counts["rows"] == numbers
    assert counts["batches"] + counts["repeated"] + counts["dropped"] == len(service.received)


@pytest.mark.slow
@pytest.mark.usefixtures("f")
def test_repeated_batch_has_the_same_bytes(
    sql: Sql, service: RemoteService, server: LocalServer, numbers: int
) -> None:
    sql.rows("SELECT f(number) FROM numbers")
    bodies: dict[str, set[bytes]] = {}
    for received in service.received:
        bodies.setdefault(received.batch_id, set()).add(received.body)
    assert all(len(of_one_batch) == 1 for of_one_batch in bodies.values())
    assert (
        len(bodies) == server.local.queries.finished[sql.query_id].counts["batches"] < len(service.received)
    )


@pytest.mark.usefixtures("f", "numbers")
def test_batches_are_sent_in_random_order(
    sql: Sql, service: RemoteService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads alone move a batch by about one place, a random order by twelve on average."""
    monkeypatch.setattr(remote, "MAX_DELAY_SECONDS", 0.0)
    sql.rows("SELECT f(number) FROM numbers")
    arrived = list(dict.fromkeys(received.batch_id for received in service.received))
    numbered = sorted(arrived, key=lambda batch_id: int(batch_id.split(":")[1]))
    distances = [abs(arrived.index(batch_id) - place) for place, batch_id in enumerate(numbered)]
    assert statistics.mean(distances) > 8


@pytest.mark.usefixtures("f", "numbers")
def test_different_answer_to_a_repeated_batch_ends_the_query(sql: Sql, service: RemoteService) -> None:
    count = itertools.count()

    def respond(received: object) -> Reply:
        reply = echo(received)  # type: ignore[arg-type]
        return Reply(body=reply.body.replace(b'"data"', f'"call": {next(count)}, "data"'.encode()))

    service.respond = respond
    assert sql.error("SELECT f(number) FROM numbers").errno == 100287


def test_same_seed_gives_the_same_faults() -> None:
    plans = [Chaos(seed).plan(200) for seed in (1, 1, 2)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_plan_contains_each_kind_of_fault_and_batches_without() -> None:
    order, faults = Chaos(1).plan(200)
    assert sorted(order) == list(range(200))
    assert order != list(range(200))
    assert {fault.kind for fault in faults} == {"none", *FAULTS}


def test_dropped_answer_is_ignored() -> None:
    answers = iter([b"first", b"second"])
    assert Fault("dropped").apply(lambda: next(answers)) == b"second"


def test_repeated_answer_must_be_the_same() -> None:
    answers = iter([b"first", b"second"])
    with pytest.raises(ValueError, match="same answer"):
        Fault("repeated").apply(lambda: next(answers))


def test_batch_without_fault_is_sent_once() -> None:
    answers = iter([json.dumps({"data": []}).encode()])
    assert Fault().apply(lambda: next(answers)) == b'{"data": []}'
