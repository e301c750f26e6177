"""ext-classify classify --stage, with the real service, the real connector and local SQL."""

# ruff: noqa: S608 - the SQL contains only constants

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli import answers_table
from app.cli.answers_table import AnswersTable, StagedFile
from app.cli.main import main
from app.emulator import LocalServer
from app.provisioning.user_session import connect
from tests.app.emulator.remote_service import Received, RemoteService, Reply, answer
from tests.app.emulator.sql import Sql
from tests.conftest import SAMPLES
from tests.running import CLI, TIMEOUT_SECONDS, usage_error, wait_until

pytestmark = pytest.mark.slow

FILES = 24
STAGE = "local.public.photos"
TABLE = "local.public.answers"
CREATE = (
    f"CREATE TABLE {TABLE} (relative_path VARCHAR NOT NULL, etag VARCHAR, model_version VARCHAR NOT NULL, "
    "answer VARIANT, classified_at TIMESTAMP_LTZ)"
)


@pytest.fixture
def sql(server: LocalServer, tmp_path: Path) -> Iterator[Sql]:
    """A session, with a stage of images and one broken file, and without the table."""
    samples = sorted(SAMPLES.glob("*.png"))
    for number in range(FILES - 1):
        shutil.copy(samples[number % len(samples)], tmp_path / f"{number:03}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with Sql(server) as sql:
        sql.rows(f"CREATE OR REPLACE STAGE {STAGE} DIRECTORY = (ENABLE = TRUE)")
        sql.rows(f"PUT 'file://{tmp_path}/*.png' @{STAGE} AUTO_COMPRESS=FALSE")
        sql.rows(f"ALTER STAGE {STAGE} REFRESH")
        sql.rows(f"DROP TABLE IF EXISTS {TABLE}")
        yield sql


@pytest.fixture
def command(server: LocalServer, url: str, sql: Sql) -> list[str]:
    local = ["--local", "--port", str(server.port), "--url", url]
    return ["classify", *local, "--stage", STAGE, "--out", TABLE, "--batch-rows", "8"]


def counts(sql: Sql) -> tuple[int, int]:
    """Number of rows, and of distinct files in them."""
    rows, files = sql.row(f"SELECT COUNT(*), COUNT(DISTINCT relative_path) FROM {TABLE}")
    return rows, files


def test_shards_together_classify_every_file_once(command: list[str], sql: Sql) -> None:
    for index in range(3):
        before = counts(sql)[0] if index else 0
        assert main([*command, "--shard", f"{index}/3"]) == 0
        assert before < counts(sql)[0]
    assert counts(sql) == (FILES, FILES)
    labels = dict(sql.rows(f"SELECT relative_path, answer:label::string FROM {TABLE}"))
    assert labels["000.png"] == "Crazing"
    assert sql.value(f"SELECT answer:error:code::string FROM {TABLE} WHERE relative_path = 'broken.png'") == (
        "unsupported_format"
    )


def test_second_run_classifies_only_missing_files(
    command: list[str], sql: Sql, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    assert f"Shard 0 of 1: {FILES} files classified" in capsys.readouterr().out
    sql.rows(f"DELETE FROM {TABLE} WHERE relative_path IN ('001.png', '002.png')")
    assert main(command) == 0
    assert "Shard 0 of 1: 2 files classified" in capsys.readouterr().out
    assert counts(sql) == (FILES, FILES)


def test_changed_file_is_classified_again(command: list[str], sql: Sql, tmp_path: Path) -> None:
    assert main(command) == 0
    shutil.copy(SAMPLES / "scratches.png", tmp_path / "000.png")
    sql.rows(f"PUT 'file://{tmp_path}/000.png' @{STAGE} AUTO_COMPRESS=FALSE OVERWRITE=TRUE")
    sql.rows(f"ALTER STAGE {STAGE} REFRESH")
    assert main(command) == 0
    labels = sql.column(
        f"SELECT answer:label::string FROM {TABLE} WHERE relative_path = '000.png' ORDER BY classified_at"
    )
    assert labels == ["Crazing", "Scratches"]


def test_run_after_a_kill_classifies_the_rest(command: list[str], sql: Sql) -> None:
    slow = [*command, "--batch-rows", "1"]
    program = (
        "import sys; from app.cli import answers_table; answers_table.WRITE_SECONDS = 0;"
        "from app.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    with subprocess.Popen([sys.executable, "-c", program, *slow]) as running:
        wait_until(lambda: _has_rows(sql))
        running.send_signal(signal.SIGKILL)
    assert 0 < counts(sql)[0] <= FILES
    assert main(command) == 0
    assert counts(sql) == (FILES, FILES)


def _has_rows(sql: Sql) -> bool:
    return _has_table(sql) and counts(sql)[0] > 0


def _has_table(sql: Sql) -> bool:
    return any("ANSWERS" in row for row in sql.rows("SHOW TABLES IN SCHEMA local.public"))


def test_shards_run_concurrently(command: list[str], sql: Sql) -> None:
    first = [*CLI, *command, "--shard", "0/2"]
    second = [*CLI, *command, "--shard", "1/2"]
    sql.rows(CREATE)
    with subprocess.Popen(first) as one, subprocess.Popen(second) as other:
        assert (one.wait(TIMEOUT_SECONDS), other.wait(TIMEOUT_SECONDS)) == (0, 0)
    assert counts(sql) == (FILES, FILES)


def test_repeated_insert_adds_no_rows(command: list[str], sql: Sql, server: LocalServer) -> None:
    """A client repeats a statement if the response is lost."""
    outcome = {"label": "Pitted", "model": {"version": "v"}, "error": None}
    answers = [(StagedFile("a", etag, "u"), outcome) for etag in (None, "e")]
    with connect(**server.connect_arguments) as user_session:
        table = AnswersTable(user_session, STAGE, TABLE)
        table.create()
        for _ in range(2):
            table.store(answers)
    assert counts(sql) == (2, 1)


def test_stopped_run_exits_with_the_signal_number(command: list[str], sql: Sql) -> None:
    stopped = threading.Event()

    def respond(received: Received) -> Reply:
        if received.method == "GET":
            return Reply(body=b'{"model": {"name": "n", "version": "v"}}')
        stopped.wait()
        return Reply(503)

    with RemoteService() as service:
        service.respond = respond
        at = command.index("--url")
        command[at + 1] = service.origin
        with subprocess.Popen([*CLI, *command]) as running:
            wait_until(lambda: any(received.method == "POST" for received in service.received))
            running.send_signal(signal.SIGTERM)
            assert running.wait(TIMEOUT_SECONDS) == 128 + signal.SIGTERM
        stopped.set()


def test_files_are_listed_in_pages(command: list[str], sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_table, "PAGE_ROWS", 7)
    assert main(command) == 0
    assert counts(sql) == (FILES, FILES)


def test_run_stops_if_no_file_can_be_read(
    command: list[str], sql: Sql, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run stores no outcomes, so that a later run classifies all files."""
    monkeypatch.setattr(answers_table, "GIVE_UP_FILES", 16)

    def respond(received: Received) -> Reply:
        if received.method == "GET":
            return Reply(body=b'{"model": {"name": "n", "version": "v"}}')
        error = {"code": "stage_not_authorized", "message": "Let the service read it.", "retryable": False}
        return answer([{"label": None, "model": {"version": "v"}, "error": error} for _ in received.rows])

    with RemoteService() as service:
        service.respond = respond
        at = command.index("--url")
        assert main([*command[:at], "--url", service.origin, *command[at + 2 :]]) == 1
    assert "stage_not_authorized" in capsys.readouterr().err
    assert counts(sql) == (0, 0)


def test_retryable_error_is_not_stored(
    command: list[str], sql: Sql, server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def respond(received: Received) -> Reply:
        if received.method == "GET":
            return Reply(body=b'{"model": {"name": "n", "version": "v"}}')
        failed = {"code": "fetch_timeout", "message": "late", "retryable": True}
        kept = {"label": "Pitted", "model": {"version": "v"}, "error": None}
        return answer([kept | ({"error": failed} if row % 2 else {}) for row, _ in received.rows])

    with RemoteService() as service:
        service.respond = respond
        at = command.index("--url")
        assert main([*command[:at], "--url", service.origin, *command[at + 2 :]]) == 3
    printed = capsys.readouterr().err
    assert f"{FILES // 2} files" in printed
    assert "fetch_timeout" in printed
    assert counts(sql) == (FILES // 2, FILES // 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "a.b.c"], "--stage"),
        (["--stage", "a.b.c", "--out", "t", str(SAMPLES)], "--stage"),
        ([], "PATHs"),
        (["--out", "t", str(SAMPLES)], ".csv, .json, .jsonl, .parquet"),
        (["--stage", "a.b.c", "--out", "t", "--evidence"], "--stage"),
    ],
)
def test_invalid_combination_of_flags_is_reported(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in usage_error(["classify", *arguments], capsys)


@pytest.mark.parametrize("shard", ["2/2", "1", "-1/2", "a/b", "1/0"])
def test_shard_must_be_below_the_number_of_shards(shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["classify", "--stage", "a.b.c", "--out", "t", f"--shard={shard}"])
    assert "I/N" in capsys.readouterr().err


def test_shard_defaults_to_the_index_of_the_job(
    command: list[str], sql: Sql, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SNOWFLAKE_JOB_INDEX", "1")
    monkeypatch.setenv("SNOWFLAKE_JOBS_COUNT", "2")
    assert main(command) == 0
    assert "Shard 1 of 2: " in capsys.readouterr().out
    monkeypatch.setenv("SNOWFLAKE_JOB_INDEX", "2")
    assert main(command) == 1
    assert "SNOWFLAKE_JOB_INDEX/SNOWFLAKE_JOBS_COUNT" in capsys.readouterr().err
