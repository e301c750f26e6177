"""Batches that are repeated, delayed, dropped and reordered, over real HTTP."""

import itertools
import json
import statistics
from collections.abc import Iterator

import pytest

import app.snowflake.local.chaos
from app.snowflake.local.chaos import Accident, Chaos
from app.snowflake.local.server import LocalServer
from tests.app.snowflake.local.conftest import Function
from tests.app.snowflake.local.remote_service import RemoteService, Reply, echo
from tests.app.snowflake.local.sql import Sql

ACCIDENTS = ("repeated", "delayed", "dropped")


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer(chaos=Chaos(7)) as server:
        yield server


@pytest.fixture
def f(function: Function) -> None:
    function("f(a VARCHAR)", "VARCHAR", "MAX_BATCH_ROWS = 50")


@pytest.mark.usefixtures("f")
def test_rows_are_as_without_accidents(
    sql: Sql, service: RemoteService, server: LocalServer, numbers: int
) -> None:
    rows = sql.rows("SELECT number, f('row ' || number) FROM numbers")
    assert [value for _, value in rows] == [f"row {number}" for number, _ in rows]
    assert len(rows) == numbers
    counts = server.local.queries[sql.query_id].counts
    assert all(counts[accident] > 0 for accident in ACCIDENTS)
    assert counts["rows"] == numbers
    assert counts["batches"] + counts["repeated"] + counts["dropped"] == len(service.received)


@pytest.mark.usefixtures("f")
def test_repeated_batch_is_the_same_to_the_byte(
    sql: Sql, service: RemoteService, server: LocalServer, numbers: int
) -> None:
    sql.rows("SELECT f(number) FROM numbers")
    bodies: dict[str, set[bytes]] = {}
    for received in service.received:
        bodies.setdefault(received.batch_id, set()).add(received.body)
    assert all(len(of_one_batch) == 1 for of_one_batch in bodies.values())
    assert len(bodies) == server.local.queries[sql.query_id].counts["batches"] < len(service.received)


@pytest.mark.usefixtures("f", "numbers")
def test_batches_arrive_in_another_order_than_they_are_numbered(
    sql: Sql, service: RemoteService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads alone would swap neighbours: by a place or so, where it is twelve by chance."""
    monkeypatch.setattr(app.snowflake.local.chaos, "MAX_DELAY_SECONDS", 0.0)
    sql.rows("SELECT f(number) FROM numbers")
    arrived = list(dict.fromkeys(received.batch_id for received in service.received))
    numbered = sorted(arrived, key=lambda batch_id: int(batch_id.split(":")[1]))
    distances = [abs(arrived.index(batch_id) - place) for place, batch_id in enumerate(numbered)]
    assert statistics.mean(distances) > 8


@pytest.mark.usefixtures("f", "numbers")
def test_service_that_answers_a_repeated_batch_differently_is_found_out(
    sql: Sql, service: RemoteService
) -> None:
    count = itertools.count()

    def respond(received: object) -> Reply:
        reply = echo(received)  # type: ignore[arg-type]
        return Reply(body=reply.body.replace(b'"data"', f'"call": {next(count)}, "data"'.encode()))

    service.respond = respond
    error = sql.error("SELECT f(number) FROM numbers")
    assert "a repeated batch must get the same answer" in str(error)


def test_same_seed_means_the_same_accidents() -> None:
    plans = [Chaos(seed).plan(200) for seed in (1, 1, 2)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_each_kind_of_accident_happens_and_none_to_some() -> None:
    order, accidents = Chaos(1).plan(200)
    assert sorted(order) == list(range(200))
    assert order != list(range(200))
    assert {accident.kind for accident in accidents} == {"none", *ACCIDENTS}


def test_dropped_answer_is_lost_whatever_it_was() -> None:
    answers = iter([b"first", b"second"])
    assert Accident("dropped").befall(lambda: next(answers)) == b"second"


def test_repeated_answer_must_be_the_same() -> None:
    answers = iter([b"first", b"second"])
    with pytest.raises(ValueError, match="same answer"):
        Accident("repeated").befall(lambda: next(answers))


def test_plain_batch_is_sent_once() -> None:
    answers = iter([json.dumps({"data": []}).encode()])
    assert Accident().befall(lambda: next(answers)) == b'{"data": []}'
