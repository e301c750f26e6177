"""A user's own Snowflake session: it executes statements and looks up what an account contains.

Sources: Snowflake documentation, SHOW STAGES, SHOW USER FUNCTIONS, DESC FUNCTION, DESC INTEGRATION.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Self

from app.client import ClientError
from app.names import quote_identifier, quote_string, require_account
from app.settings import Settings, is_inside_spcs
from app.snowflake.session import NETWORK_POLICY_RULE, connect_arguments

if TYPE_CHECKING:
    from snowflake.connector import SnowflakeConnection
    from snowflake.connector.cursor import SnowflakeCursor

# Type codes of VARIANT, OBJECT and ARRAY, whose values come as JSON text.
# Source: Snowflake Connector for Python API, "Data types and type codes".
_SEMI_STRUCTURED = frozenset({5, 9, 10})
# The query of a URL, or of a path without a host, as HTTP clients write it in errors.
_QUERY = re.compile(r"((?:https?:/)?/[^\s?'\"]*)\?[^\s'\")>]*")
_SETTINGS_ADVICE = (
    "Check the settings that begin with EXT_CLASSIFY_SNOWFLAKE_: account, user and credentials."
)
_CONNECTION_ADVICE = (
    "Name a connection of your connections.toml with --connection, or set up the default one: [default], "
    "default_connection_name in config.toml, or SNOWFLAKE_DEFAULT_CONNECTION_NAME."
)


class StatementFailed(ClientError):
    """A statement failed; the message is Snowflake's."""


class UserSession:
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
        with self._cursor() as cursor:
            cursor.execute(statement, tuple(parameters) or None)
            rows = cursor.fetchall()
            columns = [column[0] for column in cursor.description]
            semi_structured = [column[1] in _SEMI_STRUCTURED for column in cursor.description]
            return columns, [_unpack(row, semi_structured) for row in rows], cursor.sfqid or ""

    def put(self, content: IO[bytes], name: str, location: str, *, overwrite: bool) -> str:
        """Upload one file uncompressed to `location`, a stage and a folder in it. Returns PUT's status.

        The file is sent as a stream, so that PUT does not read wildcards in its name. Raises StatementFailed.
        """
        statement = (
            f"PUT {quote_string(f'file://{name}')} {quote_string(location)} "
            f"AUTO_COMPRESS=FALSE OVERWRITE={'TRUE' if overwrite else 'FALSE'}"
        )
        with self._cursor() as cursor:
            cursor.execute(statement, file_stream=content)
            [row] = cursor.fetchall()
            return str(row[6])

    @contextmanager
    def _cursor(self) -> Iterator["SnowflakeCursor"]:
        """Raises StatementFailed for the connector's errors."""
        with self._connection.cursor() as cursor:
            try:
                yield cursor
            except self._error as error:
                raise StatementFailed(describe_error(error)) from None


def open_user_session(connection_name: str | None) -> UserSession:
    """Connect with a connection of the user's connections.toml, or its default. Raises ClientError."""
    name = _default_connection_name() if connection_name is None else connection_name
    known = _defined_connections()
    if name not in known:
        raise ClientError(
            "A connection must be defined in connections.toml, or in config.toml as [connections.NAME]. "
            f"Received: {name!r}; defined: {', '.join(known) or 'none'}. {_CONNECTION_ADVICE}"
        )
    overrides = _overrides(name)
    _check_account({**known[name], **overrides})
    return connect(connection_name=name, **overrides)


def _check_account(values: Mapping[str, Any]) -> None:
    if "host" in values:
        return
    try:
        require_account(str(values.get("account", "")))
    except ValueError as error:
        raise ClientError(f"{error}.") from None


def has_default_connection() -> bool:
    """Whether the user has set up a default connection, usable or not."""
    try:
        return _default_connection_name() in _defined_connections()
    except ClientError:
        return True


def _default_connection_name() -> str:
    """connect() looks for the default connection only if it gets no argument at all.

    Source: Snowflake Connector for Python, "Setting a default connection". Raises ClientError.
    """
    return str(_configuration("default_connection_name"))


def _defined_connections() -> dict[str, Mapping[str, Any]]:
    found: Mapping[str, Any] = _configuration("connections")
    return {name: values for name, values in found.items() if isinstance(values, Mapping)}


def _configuration(option: str) -> Any:
    """An option of the user's connections.toml, config.toml or environment. Raises ClientError."""
    from snowflake.connector.config_manager import CONFIG_MANAGER  # noqa: PLC0415 - slow to import
    from snowflake.connector.errors import Error  # noqa: PLC0415 - slow to import

    try:
        return CONFIG_MANAGER[option]
    except (Error, OSError, ValueError) as error:
        raise _no_connection(error, _CONNECTION_ADVICE) from None


def _overrides(name: str) -> dict[str, str]:
    """Parameters in the environment, such as SNOWFLAKE_CONNECTIONS_MILL_PASSWORD, as in Snowflake CLI."""
    prefix = f"SNOWFLAKE_CONNECTIONS_{name.upper()}_"
    return {
        variable.removeprefix(prefix).lower(): value
        for variable, value in os.environ.items()
        if variable.startswith(prefix)
    }


def connect_as_service(settings: Settings) -> UserSession:
    """Connect with the service's own settings, without statement timeouts. Raises ClientError."""
    arguments = connect_arguments(settings, _connector_version())
    timeouts = {"network_timeout", "socket_timeout", "query_timeout", "request_timeout"}
    named = {name: value for name, value in arguments.items() if name not in timeouts}
    advice = "Is this container's service allowed to log in?" if is_inside_spcs() else _SETTINGS_ADVICE
    if named.get("authenticator") == "PROGRAMMATIC_ACCESS_TOKEN":
        advice += f" {NETWORK_POLICY_RULE}"
    return connect(advice=advice, **named)


def connect(*, advice: str = _CONNECTION_ADVICE, **arguments: Any) -> UserSession:
    """Connect with the connector's arguments. Raises ClientError, with the advice."""
    from snowflake import connector  # noqa: PLC0415 - slow to import

    if _connector_version() >= 5:
        arguments["enable_server_session_keep_alive_auto_detection"] = False
    try:
        return UserSession(connector.connect(**({"paramstyle": "qmark"} | arguments)))
    except (connector.errors.Error, OSError, ValueError) as error:
        raise _no_connection(error, advice) from None


def _no_connection(error: Exception, advice: str) -> ClientError:
    return ClientError(f"There is no connection to Snowflake: {describe_error(error)}. {advice}")


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


def describe_stage(user_session: UserSession, parts: Sequence[str]) -> dict[str, Any]:
    """The stage's row of SHOW STAGES. Raises ClientError if there is no such stage."""
    *parents, name = parts
    for row in _show(user_session, "STAGES", name, f"SCHEMA {quote_identifier(*parents)}".strip()):
        if row["name"] == name:
            return row
    raise ClientError(f"There is no stage {quote_identifier(*parts)}, or none that this role may use.")


def is_client_side_encrypted(stage: dict[str, Any]) -> bool:
    """Whether the stage is client-side encrypted (no SNOWFLAKE_SSE), so that URLs return ciphertext."""
    return str(stage["type"]) == "INTERNAL"


def is_external_stage(stage: dict[str, Any]) -> bool:
    return str(stage["type"]).startswith("EXTERNAL")


def has_integration(user_session: UserSession, name: str) -> bool:
    return any(row["name"] == name for row in _show(user_session, "INTEGRATIONS", name))


def describe_integration(user_session: UserSession, name: str) -> dict[str, str]:
    """The integration's properties. Raises StatementFailed if there is none."""
    return _properties(user_session.rows(f"DESC INTEGRATION {quote_identifier(name)}"))


def allowed_prefixes(properties: dict[str, str]) -> list[str]:
    """The allowed URL prefixes; commas separate them, and may also occur inside them."""
    shown = properties.get("API_ALLOWED_PREFIXES", "").strip(" []")
    return [prefix.strip() for prefix in re.split(r",\s*(?=https?://)", shown) if prefix.strip()]


def describe_function(user_session: UserSession, parts: Sequence[str], types: str) -> dict[str, str]:
    """The function's properties and its `comment`; {} if there is no such function."""
    *parents, name = parts
    for row in _show(user_session, "USER FUNCTIONS", name, f"SCHEMA {quote_identifier(*parents)}"):
        if row["name"] == name and _types(row) == types:
            described = user_session.rows(f"DESC FUNCTION {quote_identifier(*parts)}({types})")
            return _properties(described) | {"comment": str(row.get("description") or "")}
    return {}


def functions_through(user_session: UserSession, integration: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Names and types of the external functions that use an integration, as far as this role can see them.

    If DESC FUNCTION hides the integration, every function whose URL the integration allows counts as its
    function.
    """
    prefixes = tuple(allowed_prefixes(describe_integration(user_session, integration)))
    for row in _show(user_session, "USER FUNCTIONS", "%", "ACCOUNT"):
        if row["is_external_function"] != "Y":
            continue
        name, types = (str(row["catalog_name"]), str(row["schema_name"]), str(row["name"])), _types(row)
        try:
            shown = _properties(user_session.rows(f"DESC FUNCTION {quote_identifier(*name)}({types})"))
        except StatementFailed:  # owned by another role
            continue
        used = shown.get("api_integration")
        if used == integration or (used is None and shown.get("body", "").startswith(prefixes)):
            yield name, types


def _show(user_session: UserSession, things: str, name: str, scope: str = "") -> list[dict[str, Any]]:
    """Rows whose name matches LIKE, which ignores case and reads _ as any character."""
    pattern = quote_string(name.replace("\\", "_"))
    return user_session.rows(f"SHOW {things} LIKE {pattern}" + (f" IN {scope}" if scope else ""))


def _types(row: dict[str, Any]) -> str:
    """`MY FN(VARCHAR, OBJECT) RETURN VARIANT` → `VARCHAR, OBJECT`; a name may hold parentheses too."""
    signature = str(row["arguments"]).rpartition(" RETURN")[0]
    return signature.rpartition("(")[2].removesuffix(")")


def _properties(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {str(row["property"]): str(row.get("property_value", row.get("value", ""))) for row in rows}
