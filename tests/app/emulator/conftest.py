"""Fixtures: an emulator and a service per module, a session in a new schema per test."""

import itertools
from collections.abc import Iterator

import pytest

from app.emulator import LocalServer
from tests.app.emulator.remote_service import RemoteService, echo
from tests.app.emulator.sql import Sql

RETRY_SECONDS = 60.0
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer(retry_seconds=RETRY_SECONDS) as server:
        yield server


@pytest.fixture(scope="module")
def running_service() -> Iterator[RemoteService]:
    with RemoteService() as service:
        yield service


@pytest.fixture
def service(running_service: RemoteService) -> RemoteService:
    """The service, set to echo and without recorded requests."""
    running_service.respond = echo
    running_service.received.clear()
    return running_service


@pytest.fixture
def sql(server: LocalServer) -> Iterator[Sql]:
    """A session in a schema of its own."""
    with Sql(server) as sql:
        sql.rows(f"CREATE SCHEMA LOCAL.TEST_{next(_numbers)}")
        yield sql


@pytest.fixture
def numbers(sql: Sql) -> int:
    """The number of rows of the table NUMBERS, more than one batch of DuckDB."""
    sql.rows("CREATE TABLE numbers AS SELECT seq4() AS number FROM TABLE(GENERATOR(ROWCOUNT => 5000))")
    return 5000


@pytest.fixture
def function(sql: Sql, service: RemoteService) -> "Function":
    sql.rows(
        "CREATE API INTEGRATION IF NOT EXISTS gateway API_PROVIDER = aws_api_gateway "
        f"API_AWS_ROLE_ARN = 'arn' API_ALLOWED_PREFIXES = ('{service.origin}') ENABLED = TRUE"
    )
    return Function(sql, service)


class Function:
    """Creates external functions that call the service."""

    def __init__(self, sql: Sql, service: RemoteService) -> None:
        self._sql = sql
        self.service = service

    def __call__(self, signature: str, returns: str = "VARIANT", clauses: str = "") -> None:
        self._sql.rows(
            f"CREATE OR REPLACE EXTERNAL FUNCTION {signature} RETURNS {returns} {clauses} "
            f"API_INTEGRATION = gateway AS '{self.service.url}'"
        )
