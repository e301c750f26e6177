"""Runs statements on the emulator through Snowflake's connector."""

from collections.abc import Sequence
from typing import Any, Self

import pytest
import snowflake.connector
from snowflake.connector.errors import Error

from app.emulator import LocalServer

# The connector retries an HTTP 500 for this long, then fails with 290500.
NETWORK_TIMEOUT_SECONDS = 120


class Sql:
    """One session. The context manager logs out."""

    def __init__(self, server: LocalServer, **arguments: Any) -> None:
        self.connection = snowflake.connector.connect(
            **(server.connect_arguments | {"network_timeout": NETWORK_TIMEOUT_SECONDS} | arguments)
        )
        self.query_id = ""
        self.columns: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def rows(
        self, sql: str, parameters: Sequence[Any] | None = None, **options: Any
    ) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            rows: list[tuple[Any, ...]] = cursor.execute(sql, parameters, **options).fetchall()
            self.query_id = str(cursor.sfqid)
            self.columns = [column[0] for column in cursor.description]
            return rows

    def row(self, sql: str, parameters: Sequence[Any] | None = None) -> tuple[Any, ...]:
        [row] = self.rows(sql, parameters)
        return row

    def value(self, sql: str, parameters: Sequence[Any] | None = None) -> Any:
        [value] = self.row(sql, parameters)
        return value

    def column(self, sql: str) -> list[Any]:
        """The values of the first column."""
        return [row[0] for row in self.rows(sql)]

    def records(self, sql: str) -> list[dict[str, Any]]:
        """Each row by its columns' names."""
        rows = self.rows(sql)
        return [dict(zip(self.columns, row, strict=True)) for row in rows]

    def names(self, sql: str) -> list[Any]:
        """The names that a SHOW statement lists."""
        return [row["name"] for row in self.records(sql)]

    def error(self, sql: str, parameters: Sequence[Any] | None = None) -> Error:
        with pytest.raises(Error) as failure:
            self.rows(sql, parameters)
        return failure.value
