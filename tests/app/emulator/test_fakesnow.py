"""What the emulator uses of fakesnow and sqlglot beyond their documented APIs, so that a failure names it."""

import inspect

import fakesnow.server
import pytest
from fakesnow.conn import FakeSnowflakeConnection
from fakesnow.cursor import FakeSnowflakeCursor
from fakesnow.instance import FakeSnow
from sqlglot.dialects.snowflake import Snowflake

from app.emulator.emulation import NOT_IMPLEMENTED
from app.emulator.protocol import FAKESNOW_ROUTES


@pytest.fixture
def connection() -> FakeSnowflakeConnection:
    fakesnow = FakeSnow()
    return FakeSnowflakeConnection(fakesnow.duck_conn, fakesnow.results_cache, "LOCAL", "PUBLIC")


def test_current_schema_is_in_the_attributes_that_are_set(connection: FakeSnowflakeConnection) -> None:
    assert (connection.database, connection.database_set) == ("LOCAL", True)
    assert (connection.schema, connection.schema_set) == ("PUBLIC", True)
    connection._schema = "OTHER"  # noqa: SLF001 - as app.emulator.session sets it
    assert connection.schema == "OTHER"


def test_executed_statement_files_its_result_under_the_query_id(connection: FakeSnowflakeConnection) -> None:
    cursor = connection.cursor().execute("SELECT 1")
    assert cursor.sfqid in connection.results_cache


def test_server_describes_through_the_method_that_the_emulator_overrides() -> None:
    assert "_describe_only" in FakeSnowflakeCursor.__dict__
    assert "._describe_only" in inspect.getsource(fakesnow.server.query_request)


def test_cursor_transforms_each_statement_through_the_method_that_the_emulator_overrides() -> None:
    assert "self._transform(" in inspect.getsource(FakeSnowflakeCursor.execute)
    for note in ("table_comment", "text_lengths"):
        assert f'transformed.args.get("{note}")' in inspect.getsource(FakeSnowflakeCursor._execute)  # noqa: SLF001


def test_server_has_the_routes_that_the_emulator_reuses() -> None:
    assert set(FAKESNOW_ROUTES) <= {route.path for route in fakesnow.server.routes}


def test_unsupported_feature_has_the_number_that_the_emulator_translates() -> None:
    assert f"errno={NOT_IMPLEMENTED}" in inspect.getsource(FakeSnowflakeCursor.execute)


def test_sqlglot_lists_the_built_in_functions() -> None:
    assert {"UPPER", "PARSE_JSON"} <= Snowflake.Parser.FUNCTIONS.keys()
