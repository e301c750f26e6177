"""A user's own Snowflake session, for the commands that set up an account."""

import json
import re
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any, Self

from app.client import ClientError
from app.names import quote_string
from app.settings import Settings, is_inside_spcs
from app.snowflake.credentials import connect_arguments

if TYPE_CHECKING:
    from snowflake.connector import SnowflakeConnection

# Type codes of VARIANT, OBJECT and ARRAY, whose values come as JSON text.
# Source: Snowflake Connector for Python API, "Data types and type codes".
_SEMI_STRUCTURED = frozenset({5, 9, 10})
# The query of a URL, or of a path without a host, as HTTP clients write it in errors.
_QUERY = re.compile(r"((?:https?:/)?/[^\s?'\"]*)\?[^\s'\")>]*")
_SETTINGS_ADVICE = "Check the settings that begin with SNOWFLAKE_: account, user and credentials."
_CONNECTION_ADVICE = (
    "Name a connection of your connections.toml with --connection, or set up the default one."
)


class StatementFailed(ClientError):
    """A statement failed; the message is Snowflake's."""


class Console:
    """Executes statements in turn; a context manager that logs out."""

    def __init__(self, connection: "SnowflakeConnection") -> None:
        from snowflake.connector.errors import Error  # noqa: PLC0415 - slow to import

        self._connection = connection
        self._error = Error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def rows(self, statement: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """All rows as dicts with lower-case column names; `?` marks a parameter. Raises StatementFailed."""
        columns, rows, _ = self.table(statement, parameters)
        return [dict(zip(map(str.lower, columns), row, strict=True)) for row in rows]

    def table(
        self, statement: str, parameters: Sequence[object] = ()
    ) -> tuple[list[str], list[list[Any]], str]:
        """Column names, rows with parsed JSON, and the query id. Raises StatementFailed."""
        with self._connection.cursor() as cursor:
            try:
                cursor.execute(statement, tuple(parameters) or None)
                rows = cursor.fetchall()
            except self._error as error:
                raise StatementFailed(describe_error(error)) from None
            columns = [column[0] for column in cursor.description]
            semi_structured = [column[1] in _SEMI_STRUCTURED for column in cursor.description]
            query_id = cursor.sfqid or ""
        return columns, [_unpack(row, semi_structured) for row in rows], query_id

    def put(self, content: IO[bytes], name: str, location: str, *, overwrite: bool) -> str:
        """Upload one file uncompressed to `location`, a stage and a folder in it. Returns PUT's status.

        The file is sent as a stream, so that PUT does not read wildcards in its name. Raises StatementFailed.
        """
        statement = (
            f"PUT {quote_string(f'file://{name}')} {quote_string(location)} "
            f"AUTO_COMPRESS=FALSE OVERWRITE={'TRUE' if overwrite else 'FALSE'}"
        )
        with self._connection.cursor() as cursor:
            try:
                cursor.execute(statement, file_stream=content)
                [row] = cursor.fetchall()
            except self._error as error:
                raise StatementFailed(describe_error(error)) from None
        return str(row[6])


def open_console(connection_name: str | None) -> Console:
    """Connect with a connection of the user's connections.toml, or its default. Raises ClientError."""
    named = {} if connection_name is None else {"connection_name": connection_name}
    return connect(**named)


def connect_as_service(settings: Settings) -> Console:
    """Connect with the service's own settings, without statement timeouts. Raises ClientError."""
    arguments = connect_arguments(settings, _connector_version())
    timeouts = {"network_timeout", "socket_timeout", "query_timeout", "request_timeout"}
    named = {name: value for name, value in arguments.items() if name not in timeouts}
    advice = "Is this container's service allowed to log in?" if is_inside_spcs() else _SETTINGS_ADVICE
    return connect(advice=advice, **named)


def connect(*, advice: str = _CONNECTION_ADVICE, **arguments: Any) -> Console:
    """Connect with the connector's arguments. Raises ClientError, with the advice."""
    from snowflake import connector  # noqa: PLC0415 - slow to import

    if _connector_version() >= 5:
        arguments["enable_server_session_keep_alive_auto_detection"] = False
    try:
        return Console(connector.connect(**({"paramstyle": "qmark"} | arguments)))
    except (connector.errors.Error, OSError, ValueError) as error:
        raise ClientError(f"There is no connection to Snowflake: {describe_error(error)}. {advice}") from None


def _connector_version() -> int:
    from snowflake.connector import __version__  # noqa: PLC0415 - slow to import

    return int(__version__.partition(".")[0])


def _unpack(row: Sequence[Any], semi_structured: Sequence[bool]) -> list[Any]:
    return [
        json.loads(value) if is_json and isinstance(value, str) else value
        for value, is_json in zip(row, semi_structured, strict=True)
    ]


def describe_error(error: Exception) -> str:
    """The error on one line, with URL queries removed: a signed URL is a credential."""
    return _QUERY.sub(r"\1", " ".join(str(error).split())).rstrip(".")
