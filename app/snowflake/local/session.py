"""One client's session: who it is, what is current, and its cursors."""

import asyncio
from typing import TYPE_CHECKING, Any

from fakesnow.conn import FakeSnowflakeConnection

from app.snowflake.identifier import quote_identifier, quote_string
from app.snowflake.local.catalog import Name, Stage
from app.snowflake.local.cursor import LocalCursor
from app.snowflake.local.refusals import invalid, no_current_schema, not_found
from app.snowflake.local.urls import ACCOUNT
from app.snowflake.stage_location import parse_location

if TYPE_CHECKING:
    from app.snowflake.local.emulation import LocalSnowflake


class LocalConnection(FakeSnowflakeConnection):
    """fakesnow's, with stages and functions of its own."""

    def __init__(
        self,
        local: "LocalSnowflake",
        duck_conn: Any,
        results_cache: dict[str, tuple[Any, ...]],
        database: str,
        schema: str,
        **options: Any,
    ) -> None:
        """A database that is not there leaves the session without one, as in Snowflake."""
        super().__init__(duck_conn, results_cache, **options)
        self.local = local
        self.user = "LOCAL"
        self.role = "PUBLIC"
        self.warehouse = "LOCAL"
        self.repeats_puts = False  # before each file of a PUT, as the connector of 4.x does
        # One statement after the other: DuckDB's connection holds one result at a time.
        self.turn = asyncio.Lock()
        if self.has_schema(database):
            self.use(database, schema if self.has_schema(database, schema) else None)

    def has_schema(self, database: str, schema: str | None = None) -> bool:
        """Without a schema, whether there is the database."""
        found = self._duck_conn.execute(
            "SELECT 1 FROM information_schema.schemata "
            "WHERE catalog_name = ? AND coalesce(schema_name = ?, true)",
            [database, schema],
        )
        return found.fetchall() != []  # all, or the connection waits for the rest

    def require_schema(self, database: str, schema: str) -> None:
        """Raises ProgrammingError where there is none to create something in."""
        if not self.has_schema(database, schema):
            raise not_found("Schema", quote_identifier(database, schema))

    def use(self, database: str, schema: str | None) -> None:
        """Make them current; both must be there."""
        self._duck_conn.execute(f"SET schema = {quote_string(quote_identifier(database, schema or 'main'))}")
        self.database, self.database_set = database, True
        self._schema, self.schema_set = schema, schema is not None

    def cursor(self, cursor_class: Any = None) -> LocalCursor:  # noqa: ARG002 - fakesnow's
        return LocalCursor(self, self._duck_conn)

    def qualify(self, names: tuple[str, ...]) -> Name:
        """With the current database and schema in front, where a name lacks them."""
        current = (self.database, self.schema)
        missing = 3 - len(names)
        if missing < 0:
            raise invalid(f"Invalid object name {quote_identifier(*filter(None, names))}.")
        if any(part is None for part in current[:missing]):
            raise no_current_schema()
        database, schema, name = (*map(str, current[:missing]), *names)
        return database, schema, name

    def find_stage(self, location: str) -> tuple[Stage, str]:
        """The stage and the path of a location. Raises ProgrammingError."""
        try:
            names, path = parse_location(location)
        except ValueError as error:
            raise invalid(str(error)) from None
        name = self.qualify(names)
        stage = self.local.catalog.stages.get(name)
        if stage is None:
            raise not_found("Stage", quote_identifier(*name))
        return stage, path

    def context(self) -> dict[str, str]:
        """What CONTEXT_HEADERS and the functions of the same names say."""
        return {
            "CURRENT_ACCOUNT": ACCOUNT.upper(),
            "CURRENT_ACCOUNT_NAME": ACCOUNT.upper(),
            "CURRENT_ORGANIZATION_NAME": ACCOUNT.upper(),
            "CURRENT_CLIENT": "ext-classify",
            "CURRENT_DATABASE": self.database or "",
            "CURRENT_REGION": "LOCAL",
            "CURRENT_ROLE": self.role,
            "CURRENT_SCHEMA": self.schema or "",
            "CURRENT_USER": self.user,
            "CURRENT_WAREHOUSE": self.warehouse,
        }
