"""The table of `classify --stage`: which files of a shard it lacks, and how it stores their outcomes."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from app.client import ClientError
from app.errors import ClassifierDied, ClassifyTimeout, PredictionFailed
from app.names import directory_of, parse_identifier, quote_identifier
from app.outcome import Outcome
from app.provisioning.user_session import StatementFailed, UserSession
from model.errors import CorruptImage, ImageTooLarge, UnsupportedFormat

# Rows per INSERT; a VARIANT holds 16 MB, and an outcome without evidence takes half a kilobyte.
MAX_ROWS = 5000
# Rows per SELECT: a shard may have millions of files.
PAGE_ROWS = 50_000


class StagedFile(NamedTuple):
    """`etag` changes with the file's content; `file_url` is its source in a row."""

    relative_path: str
    etag: str | None
    file_url: str


@dataclass(frozen=True)
class Shard:
    """The files for which hash(path) modulo `count` is `index`."""

    index: int
    count: int


class AnswersTable:
    """Raises ValueError for invalid names, StatementFailed for statements that fail in Snowflake."""

    def __init__(self, user_session: UserSession, stage: str, table: str) -> None:
        self._user_session = user_session
        self._stage = quote_identifier(*parse_identifier(stage.removeprefix("@")))
        self._table = quote_identifier(*parse_identifier(table))

    def create(self) -> None:
        """Create the table unless it exists; a role without CREATE TABLE may use an existing one."""
        try:
            self._user_session.rows(
                f"CREATE TABLE IF NOT EXISTS {self._table} (relative_path VARCHAR NOT NULL, etag VARCHAR, "
                "model_version VARCHAR NOT NULL, answer VARIANT, classified_at TIMESTAMP_LTZ)"
            )
        except StatementFailed:
            if not self._exists():
                raise

    def missing(self, shard: Shard, model_version: str) -> Iterator[StagedFile]:
        """Files of the shard, from the stage's directory table, without an outcome of this model version."""
        after = ""
        while page := self._missing_after(after, shard, model_version):
            yield from page
            after = page[-1].relative_path

    def store(self, answers: Sequence[tuple[StagedFile, Outcome]]) -> None:
        """Insert up to MAX_ROWS outcomes; those already stored are skipped."""
        new = [
            {"p": file.relative_path, "e": file.etag, "v": outcome["model"]["version"], "a": outcome}
            for file, outcome in answers
        ]
        statement = (
            f"INSERT INTO {self._table} (relative_path, etag, model_version, answer, classified_at) "  # noqa: S608
            "SELECT new.relative_path, new.etag, new.model_version, new.answer, CURRENT_TIMESTAMP() FROM ("
            "SELECT f.value:p::VARCHAR AS relative_path, f.value:e::VARCHAR AS etag, "
            "f.value:v::VARCHAR AS model_version, f.value:a AS answer "
            "FROM (SELECT PARSE_JSON(?) AS list) AS s, LATERAL FLATTEN(input => s.list) AS f) AS new "
            f"WHERE NOT EXISTS (SELECT 1 FROM {self._table} AS old "
            "WHERE old.relative_path = new.relative_path AND old.etag IS NOT DISTINCT FROM new.etag "
            "AND old.model_version = new.model_version)"
        )
        self._user_session.rows(statement, [json.dumps(new, ensure_ascii=False)])

    def _missing_after(self, path: str, shard: Shard, model_version: str) -> list[StagedFile]:
        rows = self._user_session.rows(
            "SELECT d.relative_path, d.etag, d.file_url "  # noqa: S608 - quoted
            f"FROM {directory_of(self._stage)} AS d LEFT JOIN {self._table} AS a "
            "ON a.relative_path = d.relative_path AND a.etag IS NOT DISTINCT FROM d.etag "
            "AND a.model_version = ? "
            "WHERE a.relative_path IS NULL AND MOD(ABS(HASH(d.relative_path)), ?) = ? "
            f"AND d.relative_path > ? ORDER BY d.relative_path LIMIT {PAGE_ROWS}",
            [model_version, shard.count, shard.index, path],
        )
        return [StagedFile(row["relative_path"], row["etag"], row["file_url"]) for row in rows]

    def _exists(self) -> bool:
        columns = "relative_path, etag, model_version, answer, classified_at"
        try:
            self._user_session.rows(f"SELECT {columns} FROM {self._table} LIMIT 0")  # noqa: S608 - quoted
        except StatementFailed:
            return False
        return True


# Longer intervals need fewer statements; shorter ones lose fewer outcomes if the process is killed.
WRITE_SECONDS = 15.0
REPORT_SECONDS = 10.0
# With this many failures and no success, the cause affects all files.
GIVE_UP_FILES = 500

# Errors of the image itself, which recur on every retry. All other errors come from the connection, the stage
# or the settings, and can be fixed.
_IMAGE_ERRORS = (UnsupportedFormat, CorruptImage, ImageTooLarge)
_FINAL_ERRORS = {e.code for e in (*_IMAGE_ERRORS, PredictionFailed, ClassifierDied, ClassifyTimeout)}

Answers = list[tuple[StagedFile, Outcome]]


@dataclass
class Progress:
    """Number of files with a stored outcome, and of files to retry."""

    stored: int = 0
    failed: int = 0
    failure: str = ""
    """Code and message of the latest error."""
    _began: float = field(default_factory=time.monotonic)
    _reported_at: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"{self.stored} files classified, {self.failed} to retry"

    def report_if_due(self) -> None:
        """Print the progress every REPORT_SECONDS, for a job's log."""
        now = time.monotonic()
        if now - self._reported_at >= REPORT_SECONDS:
            self._reported_at = now
            print(f"{self}; {self.stored / (now - self._began):.0f} images/s", file=sys.stderr, flush=True)


def store_outcomes(table: AnswersTable, answers: Iterable[tuple[StagedFile, Outcome]]) -> Progress:
    """Store the outcomes as they arrive, except for errors that a retry can fix.

    Raises ClientError if the service or Snowflake does not answer, or if the first GIVE_UP_FILES files all
    fail. Stored outcomes remain.
    """
    progress = Progress()
    unwritten, written_at = Answers(), time.monotonic()
    for file, outcome in answers:
        error = outcome["error"]
        if error is None or error["code"] in _FINAL_ERRORS:
            unwritten.append((file, outcome))
        else:
            progress.failed += 1
            progress.failure = f"{error['code']}: {error['message']}"
        if len(unwritten) >= MAX_ROWS or time.monotonic() - written_at >= WRITE_SECONDS:
            _store(table, unwritten, progress)
            unwritten, written_at = Answers(), time.monotonic()
        if progress.failed >= GIVE_UP_FILES and not progress.stored and not unwritten:
            raise ClientError(f"All of the first {progress.failed} files failed: {progress.failure}")
        progress.report_if_due()
    _store(table, unwritten, progress)
    return progress


def _store(table: AnswersTable, unwritten: Answers, progress: Progress) -> None:
    if unwritten:
        table.store(unwritten)
    progress.stored += len(unwritten)
