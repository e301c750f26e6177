"""Service functions of Snowpark Container Services, with Snowflake's rule of retries."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from app.emulator import LocalServer
from tests.app.emulator.remote_service import DROP, Received, RemoteService, Reply, answer, echo
from tests.app.emulator.sql import Sql


class ServiceFunction:
    """Creates service functions that call the service."""

    def __init__(self, sql: Sql, server: LocalServer, service: RemoteService) -> None:
        self._sql = sql
        schema = sql.value("SELECT CURRENT_SCHEMA()")
        server.run_service(("LOCAL", schema, "MODELS"), service.origin)

    def __call__(self, clauses: str = "") -> None:
        self._sql.rows(
            "CREATE OR REPLACE FUNCTION f(a VARCHAR) RETURNS VARCHAR SERVICE = models ENDPOINT = api "
            f"{clauses} AS '/classify'"
        )


@pytest.fixture
def function(sql: Sql, server: LocalServer, service: RemoteService) -> Iterator[ServiceFunction]:
    yield ServiceFunction(sql, server, service)
    server.local.catalog.services.clear()


def retries_of(sql: Sql, server: LocalServer) -> int:
    query = server.query(sql.query_id)
    assert query is not None
    return query.counts["retries"]


def test_rows_are_posted_to_the_endpoint_without_compression(
    sql: Sql, service: RemoteService, function: ServiceFunction
) -> None:
    function("MAX_BATCH_ROWS = 2")
    assert sql.column("SELECT f(a) FROM (VALUES ('x'), ('y'), ('z')) AS t(a)") == ["x", "y", "z"]
    assert sorted(len(received.rows) for received in service.received) == [1, 2]
    assert {received.headers["Content-Encoding"] for received in service.received} == {None}
    assert service.received[0].headers["sf-external-function-name"] == "F"


@pytest.mark.slow
@pytest.mark.parametrize("status", [404, 429, 500, 502, 503, 504])
def test_failed_batch_is_sent_again_three_times(
    sql: Sql, server: LocalServer, service: RemoteService, function: ServiceFunction, status: int
) -> None:
    failures = iter([Reply(status), DROP, Reply(status)])
    service.respond = lambda received: next(failures, None) or echo(received)
    function()
    assert sql.value("SELECT f('x')") == "x"
    assert retries_of(sql, server) == 3
    assert len({received.batch_id for received in service.received}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clauses", "requests"), [("", 4), ("MAX_BATCH_RETRIES = 1", 2), ("MAX_BATCH_RETRIES = 0", 1)]
)
def test_query_ends_after_the_maximum_of_retries(
    sql: Sql, service: RemoteService, function: ServiceFunction, clauses: str, requests: int
) -> None:
    service.respond = lambda _: Reply(429)
    function(clauses)
    error = sql.error("SELECT f('x')")
    assert (error.errno, error.sqlstate) == (100351, "22023")
    assert len(service.received) == requests


@pytest.mark.slow
def test_more_retries_make_it_patient(sql: Sql, service: RemoteService, function: ServiceFunction) -> None:
    failures = iter([Reply(429)] * 5)
    service.respond = lambda received: next(failures, None) or echo(received)
    function("MAX_BATCH_RETRIES = 100 BATCH_TIMEOUT_SECS = 3600")
    assert sql.value("SELECT f('x')") == "x"


@pytest.mark.parametrize("status", [400, 401, 403, 408, 413, 422, 501, 505, 201, 302])
def test_other_status_ends_the_query_at_once(
    sql: Sql, service: RemoteService, function: ServiceFunction, status: int
) -> None:
    service.respond = lambda _: Reply(status)
    function("MAX_BATCH_RETRIES = 100 ON_BATCH_FAILURE = RETURN_NULL")
    assert sql.error("SELECT f('x')").errno == 100351
    assert len(service.received) == 1


def test_failed_batch_is_null_if_the_function_says_so(
    sql: Sql, service: RemoteService, function: ServiceFunction
) -> None:
    def respond(received: Received) -> Reply:
        return Reply(503) if received.rows[0][1] == "x" else echo(received)

    service.respond = respond
    function("MAX_BATCH_ROWS = 1 MAX_BATCH_RETRIES = 0 ON_BATCH_FAILURE = RETURN_NULL")
    assert sql.column("SELECT f(a) FROM (VALUES ('x'), ('y')) AS t(a)") == [None, "y"]


@pytest.mark.slow
def test_batch_timeout_bounds_all_tries_and_polls(
    sql: Sql, service: RemoteService, function: ServiceFunction
) -> None:
    replies = iter([Reply(429), Reply(202)])
    service.respond = lambda _: next(replies, Reply(202))
    function("MAX_BATCH_RETRIES = 100 BATCH_TIMEOUT_SECS = 1")
    assert sql.error("SELECT f('x')").errno in {100350, 100351}  # the last poll may be cut short
    assert {received.method for received in service.received} == {"POST", "GET"}


@pytest.mark.slow
def test_batch_timeout_ends_a_call_that_hangs(
    sql: Sql, service: RemoteService, function: ServiceFunction
) -> None:
    is_over = threading.Event()

    def respond(_: Received) -> Reply:
        is_over.wait(60)
        return DROP

    service.respond = respond
    function("BATCH_TIMEOUT_SECS = 1")
    assert sql.error("SELECT f('x')").errno == 100350
    is_over.set()


def test_deferred_batch_is_polled(sql: Sql, service: RemoteService, function: ServiceFunction) -> None:
    replies = iter([Reply(202), Reply(202), answer(["done"])])
    service.respond = lambda _: next(replies)
    function()
    assert sql.value("SELECT f('x')") == "done"
    assert [received.method for received in service.received] == ["POST", "GET", "GET"]


def test_function_is_described_as_snowflake_does(sql: Sql, function: ServiceFunction) -> None:
    function()
    described: dict[str, Any] = dict(sql.rows("DESC FUNCTION f(VARCHAR)"))
    assert described == {
        "signature": "(A VARCHAR)",
        "returns": "VARCHAR",
        "language": None,
        "null handling": "CALLED ON NULL INPUT",
        "volatility": "VOLATILE",
        "body": "/classify",
        "headers": "null",
        "context_headers": "null",
        "max_batch_rows": "not set",
        "service": "MODELS",
        "service_endpoint": "api",
        "max_batch_retries": "3",
        "on_batch_failure": "ABORT",
        "batch_timeout_secs": "not set",
    }


def test_properties_are_altered(sql: Sql, function: ServiceFunction) -> None:
    function("MAX_BATCH_ROWS = 8")
    sql.rows("ALTER FUNCTION f(VARCHAR) SET MAX_BATCH_RETRIES = 7 BATCH_TIMEOUT_SECS = 60")
    sql.rows("ALTER FUNCTION f(VARCHAR) SET ON_BATCH_FAILURE = RETURN_NULL")
    sql.rows("ALTER FUNCTION IF EXISTS g(VARCHAR) SET MAX_BATCH_ROWS = 1")
    described = dict(sql.rows("DESC FUNCTION f(VARCHAR)"))
    altered = ("max_batch_rows", "max_batch_retries", "on_batch_failure", "batch_timeout_secs")
    assert [described[name] for name in altered] == ["8", "7", "RETURN_NULL", "60"]


@pytest.mark.parametrize(
    ("clauses", "errno"),
    [
        ("SERVICE = missing ENDPOINT = api", 2003),
        ("SERVICE = models ENDPOINT = other", 2003),
        ("SERVICE = models", 2003),
        ("SERVICE = models ENDPOINT = api MAX_BATCH_ROWS = 0", 1008),
        ("SERVICE = models ENDPOINT = api MAX_BATCH_RETRIES = many", 1008),
        ("SERVICE = models ENDPOINT = api BATCH_TIMEOUT_SECS = 604801", 1008),
        ("SERVICE = models ENDPOINT = api ON_BATCH_FAILURE = IGNORE", 1008),
        ("SERVICE = models ENDPOINT = api COMPRESSION = GZIP", 2),
        ("SERVICE = models ENDPOINT = api HEADERS = ('a' = 'b')", 2),
    ],
)
def test_wrong_clauses_are_refused(sql: Sql, function: ServiceFunction, clauses: str, errno: int) -> None:
    statement = f"CREATE FUNCTION g(a VARCHAR) RETURNS VARCHAR {clauses} AS '/classify'"
    assert sql.error(statement).errno == errno
    assert sql.rows("SHOW USER FUNCTIONS LIKE 'G' IN SCHEMA") == []


def test_functions_without_a_service_are_not_service_functions(sql: Sql, function: ServiceFunction) -> None:
    assert sql.error("CREATE FUNCTION g(a VARCHAR) RETURNS VARCHAR LANGUAGE PYTHON AS '/classify'").errno == 2
