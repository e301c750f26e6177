"""A person's own session with Snowflake, for commands that set things up."""

import importlib
import json
import re
from collections.abc import Sequence
from typing import IO, Any, Self

from app.client import ClientError
from app.settings import Settings
from app.snowflake.credentials import connect_arguments
from app.snowflake.identifier import quote_string
from app.snowflake.spcs import is_inside_spcs

# Type codes of VARIANT, OBJECT and ARRAY, whose values come as JSON text.
# Source: Snowflake Connector for Python API, "Data types and type codes".
_SEMI_STRUCTURED = frozenset({5, 9, 10})
# Of a URL, or of a path alone, as HTTP clients name it.
_QUERY = re.compile(r"((?:https?:/)?/[^\s?'\"]*)\?[^\s'\")>]*")
_SERVICES_ADVICE = "The settings that begin with SNOWFLAKE_ say who logs in, and where."
_ADVICE = "Name one of your connections.toml with --connection, or set up the default one."


class StatementFailed(ClientError):
    """Snowflake did not carry out a statement; the message is Snowflake's."""


class Console:
    """Statements one after the other; a context manager that logs out."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._error = importlib.import_module("snowflake.connector.errors").Error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def rows(self, statement: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """All rows, by their columns' names in lower case; `?` is a parameter. Raises StatementFailed."""
        columns, rows, _ = self.table(statement, parameters)
        return [dict(zip(map(str.lower, columns), row, strict=True)) for row in rows]

    def table(
        self, statement: str, parameters: Sequence[object] = ()
    ) -> tuple[list[str], list[list[Any]], str]:
        """Column names, rows with JSON unpacked, and the query's id. Raises StatementFailed."""
        with self._connection.cursor() as cursor:
            try:
                rows = cursor.execute(statement, tuple(parameters) or None).fetchall()
            except self._error as error:
                raise StatementFailed(describe_error(error)) from None
            columns = [column[0] for column in cursor.description]
            semi_structured = [column[1] in _SEMI_STRUCTURED for column in cursor.description]
            query_id: str = cursor.sfqid
        return columns, [_unpack(row, semi_structured) for row in rows], query_id

    def put(self, content: IO[bytes], name: str, location: str, *, overwrite: bool) -> str:
        """Upload one file as it is; `location` is a stage and a folder in it. Returns PUT's status.

        From a stream, so that no character of its name is taken for a pattern. Raises StatementFailed.
        """
        statement = (
            f"PUT {quote_string(f'file://{name}')} {quote_string(location)} "
            f"AUTO_COMPRESS=FALSE OVERWRITE={'TRUE' if overwrite else 'FALSE'}"
        )
        with self._connection.cursor() as cursor:
            try:
                [row] = cursor.execute(statement, file_stream=content).fetchall()
            except self._error as error:
                raise StatementFailed(describe_error(error)) from None
        return str(row[6])


def open_console(connection_name: str | None) -> Console:
    """By a connection of the user's connections.toml, the default one if unnamed. Raises ClientError."""
    named = {} if connection_name is None else {"connection_name": connection_name}
    return connect(**named)


def connect_as_service(settings: Settings) -> Console:
    """As the service itself logs in; a statement may take its time. Raises ClientError."""
    arguments = connect_arguments(settings, _connector_version())
    waits = {"network_timeout", "socket_timeout", "query_timeout", "request_timeout"}
    named = {name: value for name, value in arguments.items() if name not in waits}
    advice = "Is this container's service allowed to?" if is_inside_spcs() else _SERVICES_ADVICE
    return connect(advice=advice, **named)


def connect(*, advice: str = _ADVICE, **arguments: Any) -> Console:
    """By the connector's own arguments. Raises ClientError, with the advice."""
    connector = importlib.import_module("snowflake.connector")
    if _connector_version() >= 5:
        arguments["enable_server_session_keep_alive_auto_detection"] = False
    try:
        return Console(connector.connect(**({"paramstyle": "qmark"} | arguments)))
    except (connector.errors.Error, OSError, ValueError) as error:
        raise ClientError(f"There is no connection to Snowflake: {describe_error(error)}. {advice}") from None


def _connector_version() -> int:
    version: str = importlib.import_module("snowflake.connector").__version__
    return int(version.partition(".")[0])


def _unpack(row: Sequence[Any], semi_structured: Sequence[bool]) -> list[Any]:
    return [
        json.loads(value) if is_json and isinstance(value, str) else value
        for value, is_json in zip(row, semi_structured, strict=True)
    ]


def describe_error(error: Exception) -> str:
    """On one line, and without the queries of URLs: whoever holds a signed one needs no login."""
    return _QUERY.sub(r"\1", " ".join(str(error).split())).rstrip(".")
