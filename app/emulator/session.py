"""A client's session: its user, role, warehouse and current schema, and how they complete names."""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import duckdb
from fakesnow.conn import FakeSnowflakeConnection
from fakesnow.variables import Variables

from app.emulator.catalog import ACCOUNT, Catalog, Name, Stage, StagedFile
from app.emulator.errors import invalid, no_current_schema, no_such_statement, not_found
from app.emulator.grammar import Tokens
from app.emulator.query import Queries
from app.names import parse_location, quote_identifier, quote_string


class _NoVariables(Variables):
    """fakesnow's variables, which it also finds in texts, stay unused."""

    def inline_variables(self, sql: str) -> str:
        return sql


class Session(FakeSnowflakeConnection):
    """fakesnow's connection, which holds the current database and schema."""

    def __init__(
        self, duck_conn: Any, catalog: Catalog, queries: Queries, database: str, schema: str, **options: Any
    ) -> None:
        """If the database does not exist, the session has no current database, as in Snowflake."""
        super().__init__(duck_conn, queries.results, **options)
        self.duck_conn = duck_conn
        self.catalog = catalog
        self.queries = queries
        self.user = "LOCAL"
        self.role = "PUBLIC"
        self.warehouse = "LOCAL"
        self.repeats_puts = False  # connector 4.x sends the PUT again for each file
        self.reads_arrow = True
        self.last_query_id = ""
        self.in_transaction = False
        self.consumed: dict[Name, tuple[StagedFile, ...]] = {}
        """The offsets that streams take when the transaction commits."""
        self.assigned: dict[str, str] = {}
        """The constant that each session variable holds."""
        self.variables = _NoVariables()
        self.temporary: dict[Name, str] = {}
        """Kind of each temporary table and view."""
        # Serializes the statements: a DuckDB connection holds one result at a time.
        self.turn = asyncio.Lock()
        if self.has_schema(database):
            self.use(database, schema if self.has_schema(database, schema) else None)

    def close(self, retry: bool = True) -> None:
        """Drop the temporary tables and views, and close the connection."""
        with suppress(duckdb.Error):  # no transaction is open
            self.duck_conn.execute("ROLLBACK")
        for name, kind in reversed(self.temporary.items()):
            self.duck_conn.execute(f"DROP {kind} IF EXISTS {quote_identifier(*name)}")
            self.catalog.views.pop(name, None)
        super().close(retry)

    def has_schema(self, database: str, schema: str | None = None) -> bool:
        """Whether the schema exists; without `schema`, whether the database does."""
        found = self.duck_conn.execute(
            "SELECT 1 FROM information_schema.schemata "
            "WHERE catalog_name = ? AND coalesce(schema_name = ?, true)",
            [database, schema],
        )
        return bool(found.fetchall())  # unread rows would block the connection

    def columns(self, database: str, schema: str, table: str) -> list[tuple[str, str, str]]:
        """For each column of the table, found in any case: the table's stored name, its own, and its type."""
        found = self.duck_conn.execute(
            "SELECT table_name, column_name, data_type FROM duckdb_columns() "
            "WHERE database_name = ? AND schema_name = ? AND lower(table_name) = lower(?) "
            "ORDER BY column_index",
            [database, schema, table],
        )
        return list(found.fetchall())

    def result(self, query_id: str) -> Any:
        """The Arrow table that a query returned. Raises ProgrammingError if it is not known."""
        if query_id not in self.queries.results:
            raise no_such_statement(query_id)
        return self.queries.results[query_id][0]

    @property
    def commits_itself(self) -> bool:
        return bool(self._autocommit)

    def commit_streams(self) -> None:
        for name, offset in self.consumed.items():
            if name in self.catalog.streams:
                self.catalog.streams[name].offset = offset
        self.consumed = {}

    def require_schema(self, database: str, schema: str) -> None:
        """Raises ProgrammingError if the schema does not exist."""
        if not self.has_schema(database, schema):
            raise not_found("Schema", quote_identifier(database, schema))

    def use(self, database: str, schema: str | None) -> None:
        """Make the database and schema current; both must exist."""
        self.duck_conn.execute(f"SET schema = {quote_string(quote_identifier(database, schema or 'main'))}")
        self.database, self.database_set = database, True
        self._schema, self.schema_set = schema, schema is not None

    def qualify(self, names: tuple[str, ...]) -> Name:
        """The full name, completed by the current database and schema. Raises ProgrammingError."""
        current = (self.database, self.schema)
        missing = 3 - len(names)
        if missing < 0:
            raise invalid(f"Invalid object name {quote_identifier(*filter(None, names))}.")
        if any(part is None for part in current[:missing]):
            raise no_current_schema()
        database, schema, name = (*map(str, current[:missing]), *names)
        return database, schema, name

    def find_stage(self, location: str) -> tuple[Stage, str]:
        """The stage and the path of a location. Raises ProgrammingError if there is no such stage."""
        try:
            names, path = parse_location(location)
        except ValueError as error:
            raise invalid(str(error)) from None
        return self.catalog.stage(self.qualify(names)), path

    def take_filter(self, tokens: Tokens, *, is_account_level: bool = False) -> Callable[[Name], bool]:
        """Read the filters of a SHOW statement up to its end: LIKE '<pattern>' and IN <scope>."""
        pattern: re.Pattern[str] = tokens.take_pattern()
        scope = () if is_account_level else self._take_scope(tokens)
        tokens.require_end()
        return lambda name: bool(pattern.fullmatch(name[-1])) and name[: len(scope)] == scope

    def _take_scope(self, tokens: Tokens) -> tuple[str, ...]:
        """The database, or database and schema, to list; () for the whole account.

        By default, the current database if there is one.
        """
        current = (self.database,) if self.database else ()
        if not tokens.take("IN"):
            return current
        if tokens.take("ACCOUNT"):
            return ()
        if tokens.take("DATABASE"):
            return current if tokens.at_end else self.require_database(*tokens.take_name(max_parts=1))
        tokens.take("SCHEMA")
        if tokens.at_end:
            return (*current, *filter(None, [self.schema]))
        scope = self.qualify((*tokens.take_name(), ""))[:2]
        self.require_schema(*scope)
        return scope

    def require_database(self, name: str) -> tuple[str]:
        """Raises ProgrammingError if the database does not exist."""
        if not self.has_schema(name):
            raise not_found("Database", quote_identifier(name))
        return (name,)

    def context(self) -> dict[str, str]:
        """The values of CONTEXT_HEADERS and of the context functions with the same names."""
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
