"""A table of outcomes, one a file of a stage, content of the file and version of the network.

Whoever was interrupted goes on from what is there. MERGE lets one of several writers in after the other, so
that no file is there twice, whoever writes it and however often.
"""

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.snowflake.console import Console, StatementFailed
from app.snowflake.identifier import parse_identifier, quote_identifier

# Of one statement; a VARIANT holds 16 MB, and an outcome without evidence half a kilobyte.
MAX_ROWS = 5000
_LOCK_TRIES = 8
_LONGEST_PAUSE_SECONDS = 20.0
# "Number of waiters for this lock exceeds the 20 statements limit", and a wait of more than the lock's time.
_LOCKED = ("000625", "number of waiters", "lock")


class StagedFile(NamedTuple):
    """`etag` changes with the file's content; `file_url` names it to the service."""

    relative_path: str
    etag: str | None
    file_url: str


@dataclass(frozen=True)
class Shard:
    """The files whose names' hash leaves `index` when divided by `count`."""

    index: int
    count: int


class AnswersTable:
    """Raises ValueError for names that are none, StatementFailed for what Snowflake refuses."""

    def __init__(self, console: Console, stage: str, table: str) -> None:
        self._console = console
        self._stage = quote_identifier(*parse_identifier(stage.removeprefix("@")))
        self._table = quote_identifier(*parse_identifier(table))

    def create(self) -> None:
        """Unless it is there."""
        self._console.rows(
            f"CREATE TABLE IF NOT EXISTS {self._table} (relative_path VARCHAR NOT NULL, etag VARCHAR, "
            "model_version VARCHAR NOT NULL, answer VARIANT, classified_at TIMESTAMP_LTZ)"
        )

    def missing(self, shard: Shard, model_version: str) -> list[StagedFile]:
        """The shard's files, of the stage's directory table, that have no outcome of this network yet."""
        rows = self._console.rows(
            "SELECT d.relative_path, d.etag, d.file_url "  # noqa: S608 - quoted
            f"FROM DIRECTORY(@{self._stage}) AS d LEFT JOIN {self._table} AS a "
            "ON a.relative_path = d.relative_path AND a.etag IS NOT DISTINCT FROM d.etag "
            "AND a.model_version = ? "
            "WHERE a.relative_path IS NULL AND MOD(ABS(HASH(d.relative_path)), ?) = ? ORDER BY 1",
            [model_version, shard.count, shard.index],
        )
        return [StagedFile(row["relative_path"], row["etag"], row["file_url"]) for row in rows]

    def store(self, answers: Sequence[tuple[StagedFile, dict[str, Any]]]) -> None:
        """Those that are not there yet; at most MAX_ROWS."""
        new = [
            {"p": file.relative_path, "e": file.etag, "v": outcome["model"]["version"], "a": outcome}
            for file, outcome in answers
        ]
        statement = (
            f"MERGE INTO {self._table} AS old USING ("  # noqa: S608 - quoted
            "SELECT f.value:p::VARCHAR AS relative_path, f.value:e::VARCHAR AS etag, "
            "f.value:v::VARCHAR AS model_version, f.value:a AS answer "
            "FROM (SELECT PARSE_JSON(?) AS list) AS s, LATERAL FLATTEN(input => s.list) AS f) AS new "
            "ON old.relative_path = new.relative_path AND old.etag IS NOT DISTINCT FROM new.etag "
            "AND old.model_version = new.model_version "
            "WHEN NOT MATCHED THEN INSERT (relative_path, etag, model_version, answer, classified_at) "
            "VALUES (new.relative_path, new.etag, new.model_version, new.answer, CURRENT_TIMESTAMP())"
        )
        self._write(statement, json.dumps(new, ensure_ascii=False))

    def _write(self, statement: str, rows_json: str) -> None:
        """Again, when too many others wait for their turn."""
        for attempt in range(_LOCK_TRIES):
            try:
                self._console.rows(statement, [rows_json])
                return
            except StatementFailed as error:
                is_last = attempt == _LOCK_TRIES - 1
                if is_last or not any(mark in str(error).lower() for mark in _LOCKED):
                    raise
            pause = min(2.0**attempt, _LONGEST_PAUSE_SECONDS)
            time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - no secret
