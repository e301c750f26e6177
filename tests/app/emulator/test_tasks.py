"""Streams on directory tables, and tasks: the statements of 32_new_images.sql."""

from pathlib import Path

import pytest

from app.emulator import LocalServer, Stage
from app.provisioning.ddl import load
from tests.app.emulator.conftest import Function
from tests.app.emulator.sql import Sql
from tests.app.provisioning.test_ddl import PLAIN


@pytest.fixture
def images(sql: Sql, server: LocalServer, tmp_path: Path) -> Stage:
    """The stage IMAGES of the session's schema, with the file old.png."""
    sql.rows("CREATE STAGE images DIRECTORY = (ENABLE = TRUE)")
    stage = server.local.catalog.stages["LOCAL", str(sql.value("SELECT CURRENT_SCHEMA()")), "IMAGES"]
    add(stage, "old.png")
    sql.rows("ALTER STAGE images REFRESH")
    return stage


def add(stage: Stage, path: str, content: bytes = b"") -> None:
    stage.resolve(path).write_bytes(content)


def has_data(sql: Sql) -> bool:
    return bool(sql.value("SELECT SYSTEM$STREAM_HAS_DATA('changed')"))


CHANGES = "SELECT relative_path, metadata$action, metadata$isupdate FROM changed ORDER BY ALL"


def test_stream_holds_the_changes_of_the_directory_table(sql: Sql, images: Stage) -> None:
    sql.rows("CREATE STREAM changed ON STAGE images")
    add(images, "new.png")
    assert not has_data(sql)
    sql.rows("ALTER STAGE images REFRESH")
    assert sql.rows(CHANGES) == [("new.png", "INSERT", False)]
    add(images, "old.png", b"changed")
    sql.rows("ALTER STAGE images REFRESH")
    assert sql.rows(CHANGES) == [
        ("new.png", "INSERT", False),
        ("old.png", "DELETE", True),
        ("old.png", "INSERT", True),
    ]
    sql.rows("REMOVE @images/old.png")
    sql.rows("ALTER STAGE images REFRESH")
    assert sql.rows(CHANGES) == [("new.png", "INSERT", False), ("old.png", "DELETE", False)]
    assert sql.value("SELECT COUNT(*) FROM changed AS c WHERE c.file_url LIKE '%new%2epng'") == 1


def test_statement_that_changes_a_table_consumes_the_stream_when_it_commits(sql: Sql, images: Stage) -> None:
    sql.rows("CREATE TABLE seen (path VARCHAR)")
    sql.rows("CREATE STREAM changed ON STAGE images")
    insert = "INSERT INTO seen SELECT relative_path FROM changed"
    add(images, "new.png")
    sql.rows("ALTER STAGE images REFRESH")
    sql.rows("CREATE VIEW v AS SELECT relative_path FROM changed")
    assert sql.column("SELECT * FROM v") == ["new.png"]
    assert sql.error("INSERT INTO seen SELECT relative_path::NUMBER FROM changed").errno == 100038
    sql.rows("BEGIN")
    sql.rows(insert)
    assert has_data(sql)
    sql.rows("ROLLBACK")
    assert has_data(sql)
    sql.rows("BEGIN")
    sql.rows(insert)
    sql.rows("COMMIT")
    assert not has_data(sql)
    add(images, "newer.png")
    sql.rows("ALTER STAGE images REFRESH")
    sql.rows(insert)
    assert sql.column("SELECT path FROM seen ORDER BY path") == ["new.png", "newer.png"]
    assert not has_data(sql)


def test_new_images_are_classified_once(sql: Sql, function: Function, images: Stage) -> None:
    function("classify(url VARCHAR)")
    schema = str(sql.value("SELECT CURRENT_SCHEMA()"))
    names = PLAIN | {"database": "LOCAL", "schema": schema, "stage": "images", "function": "classify"}
    [table] = [s for s in load("31_queries.sql", names) if s.startswith("CREATE TABLE")]
    for statement in [table, *load("32_new_images.sql", names)]:
        sql.rows(statement)
    assert [row["state"] for row in sql.records("SHOW TASKS")] == ["started", "started"]
    for path in ("a.png", "b.png"):
        add(images, path)
    sql.rows("EXECUTE TASK refresh_images")
    assert sql.column("SELECT relative_path FROM image_answers ORDER BY 1") == ["a.png", "b.png"]
    sql.rows("EXECUTE TASK refresh_images")
    assert sum(len(received.rows) for received in function.service.received) == 2


def test_failed_task_leaves_the_stream_as_it_is(sql: Sql, images: Stage) -> None:
    sql.rows("CREATE TABLE seen (path VARCHAR(3))")
    sql.rows("CREATE STREAM changed ON STAGE images")
    sql.rows("CREATE TASK t SCHEDULE = '1 MINUTE' AS INSERT INTO seen SELECT relative_path FROM changed")
    add(images, "new.png")
    sql.rows("ALTER STAGE images REFRESH")
    assert sql.error("EXECUTE TASK t").errno == 100078
    assert has_data(sql)


def test_task_runs_in_its_schema_and_its_children_after_it(sql: Sql) -> None:
    sql.rows("CREATE TABLE ran (name VARCHAR)")
    schema = str(sql.value("SELECT CURRENT_SCHEMA()"))
    sql.rows("CREATE TASK a SCHEDULE = '1 MINUTE' AS INSERT INTO ran VALUES ('a')")
    sql.rows("CREATE TASK b AFTER a AS INSERT INTO ran VALUES ('b')")
    sql.rows("CREATE TASK c AFTER a, b WHEN FALSE AS INSERT INTO ran VALUES ('c')")
    sql.rows("CREATE TASK d AFTER a AS INSERT INTO ran VALUES ('d')")
    for task in "bca":
        sql.rows(f"ALTER TASK {task} RESUME")
    assert sql.error("ALTER TASK b SUSPEND").errno == 1008
    assert sql.error("EXECUTE TASK b").errno == 1008
    sql.rows("USE SCHEMA LOCAL.PUBLIC")
    sql.rows(f"EXECUTE TASK {schema}.a")
    assert sql.value("SELECT CURRENT_SCHEMA()") == "PUBLIC"
    sql.rows(f"USE SCHEMA {schema}")
    assert sql.column("SELECT name FROM ran ORDER BY 1") == ["a", "b"]


def test_streams_and_tasks_are_shown_and_dropped(sql: Sql, images: Stage) -> None:
    sql.rows("CREATE STREAM s ON STAGE images COMMENT = 'c'")
    sql.rows("CREATE TASK t WAREHOUSE = w SCHEDULE = '5 MINUTE' WHEN SYSTEM$STREAM_HAS_DATA('s') AS SELECT 1")
    assert sql.names("SHOW STREAMS IN SCHEMA") == ["S"]
    [task] = sql.records("DESCRIBE TASK t")
    assert (task["state"], task["schedule"], task["condition"], task["definition"]) == (
        "suspended",
        "5 MINUTE",
        "SYSTEM$STREAM_HAS_DATA('s')",
        "SELECT 1",
    )
    assert [stream["comment"] for stream in sql.records("DESC STREAM s")] == ["c"]
    assert sql.value("CREATE STREAM IF NOT EXISTS s ON STAGE images").endswith(
        "already exists, statement succeeded."
    )
    assert sql.error("CREATE TASK t AS SELECT 2").errno == 2002
    sql.rows("DROP TASK t")
    sql.rows("DROP STREAM s")
    assert sql.error("DESCRIBE TASK t").errno == 2003
    assert sql.error("SELECT SYSTEM$STREAM_HAS_DATA('s')").errno == 2003
    assert sql.value("DROP STREAM IF EXISTS s").endswith("(S already dropped).")
    assert sql.error("CREATE STREAM s ON TABLE x").errno == 2
    assert sql.error("ALTER TASK t SET WAREHOUSE = w").errno == 2
