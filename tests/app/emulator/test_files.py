"""FILE values: their functions, and calls of a function in SQL that takes one.

The fields of a FILE are those of Snowflake's documentation; that TO_FILE(stage, path) sets no STAGE_FILE_URL
follows from its examples.
"""

import json
from pathlib import Path

import pytest

from app.emulator import LocalServer
from tests.app.emulator.conftest import Function
from tests.app.emulator.remote_service import RemoteService
from tests.app.emulator.sql import Sql

LOCATION = "FL_GET_STAGE(image) || '/' || FL_GET_RELATIVE_PATH(image)"
BODY = f"f(COALESCE(FL_GET_STAGE_FILE_URL(image), {LOCATION}, FL_GET_SCOPED_FILE_URL(image)))"
CREATE = f"CREATE OR REPLACE FUNCTION f(image FILE) RETURNS VARIANT LANGUAGE SQL AS $${BODY}$$"
STAGE = "@LOCAL.PUBLIC.FILES"
FILES = "SELECT TO_FILE('@LOCAL.PUBLIC.FILES', relative_path) AS f FROM DIRECTORY(@LOCAL.PUBLIC.FILES)"


@pytest.fixture
def stage(server: LocalServer, sql: Sql, tmp_path: Path) -> None:
    """A stage with two files, and the view FILES of them."""
    (tmp_path / "sub dir").mkdir()
    (tmp_path / "sub dir" / "a.png").write_bytes(b"bytes of a")
    (tmp_path / "notes.txt").write_bytes(b"notes")
    server.mount(tmp_path, "FILES")
    sql.rows(f"CREATE VIEW files AS {FILES}")


@pytest.fixture
def f(sql: Sql, function: Function) -> None:
    """Functions of a text, which they return, and of a FILE."""
    function("f(x VARCHAR)")
    sql.rows(CREATE)


@pytest.mark.usefixtures("stage")
def test_file_of_a_stage_and_a_path_has_the_documented_fields(sql: Sql) -> None:
    file = json.loads(sql.value(f"SELECT TO_FILE('{STAGE}', 'sub dir/a.png')"))
    assert file | {"ETAG": "", "LAST_MODIFIED": ""} == {
        "CONTENT_TYPE": "image/png",
        "ETAG": "",
        "LAST_MODIFIED": "",
        "RELATIVE_PATH": "sub dir/a.png",
        "SIZE": 10,
        "STAGE": STAGE,
    }
    assert list(file) == sorted(file)


@pytest.mark.usefixtures("stage")
def test_file_of_a_url_keeps_it(sql: Sql) -> None:
    url, file = sql.row(
        "SELECT file_url, TO_FILE(file_url) FROM DIRECTORY(@LOCAL.PUBLIC.FILES) WHERE size = 10"
    )
    assert json.loads(file)["STAGE_FILE_URL"] == url
    assert json.loads(file)["RELATIVE_PATH"] == "sub dir/a.png"
    scoped = sql.row(
        "SELECT FL_GET_STAGE(x), FL_GET_SCOPED_FILE_URL(x), FL_GET_SIZE(x) FROM "
        "(SELECT TO_FILE(BUILD_SCOPED_FILE_URL(@LOCAL.PUBLIC.FILES, 'sub dir/a.png')) AS x)"
    )
    assert scoped[::2] == (None, 10)
    assert scoped[1].startswith("https://")


@pytest.mark.usefixtures("stage")
def test_fields_have_their_types(sql: Sql) -> None:
    rows = sql.rows(
        "SELECT FL_GET_STAGE(f), FL_GET_RELATIVE_PATH(f), FL_GET_SIZE(f) + 1, FL_IS_IMAGE(f), "
        "FL_GET_STAGE_FILE_URL(f) FROM files ORDER BY 2"
    )
    assert rows == [(STAGE, "notes.txt", 6, False, None), (STAGE, "sub dir/a.png", 11, True, None)]
    assert sql.row("SELECT FL_GET_SIZE(NULL), FL_IS_IMAGE(NULL), TO_FILE(NULL)") == (None, False, None)


@pytest.mark.usefixtures("stage")
def test_missing_file_is_an_error_or_null(sql: Sql) -> None:
    for arguments in (f"'{STAGE}', 'b.png'", f"'{STAGE}/', 'a.png'", f"'{STAGE}', '../a.png'", f"'{STAGE}'"):
        assert sql.error(f"SELECT TO_FILE({arguments})").errno == 91016
        assert sql.value(f"SELECT TRY_TO_FILE({arguments})") is None
    assert sql.error("SELECT TO_FILE('@nowhere', 'a.png')").errno == 2003
    assert sql.error("SELECT TO_FILE('https://example.com/a.png')").errno == 1008


@pytest.mark.usefixtures("stage", "f")
def test_function_in_sql_takes_a_file(sql: Sql, service: RemoteService) -> None:
    path = f"{STAGE}/sub dir/a.png"
    assert sql.value(f"SELECT f(TO_FILE('{STAGE}', 'sub dir/a.png'))") == json.dumps(path)
    url = sql.value("SELECT file_url FROM DIRECTORY(@LOCAL.PUBLIC.FILES) WHERE size = 10")
    view = "SELECT f(TO_FILE(file_url)) AS answer, size FROM DIRECTORY(@LOCAL.PUBLIC.FILES)"
    sql.rows(f"CREATE VIEW answers AS {view}")
    assert sql.value("SELECT answer::VARCHAR FROM answers WHERE size = 10") == url
    assert sql.column("SELECT f(f)::VARCHAR FROM files WHERE FL_IS_IMAGE(f)") == [path]
    service.received.clear()
    assert sql.value("SELECT f('text')") == '"text"'
    assert len(service.received) == 1


@pytest.mark.usefixtures("stage", "f")
def test_function_in_sql_is_described_granted_and_dropped(sql: Sql) -> None:
    described = dict(sql.rows("DESCRIBE FUNCTION f(FILE)"))
    assert described["signature"] == "(IMAGE FILE)"
    assert described["language"] == "SQL"
    assert described["body"] == BODY
    functions = sql.records("SHOW FUNCTIONS LIKE 'F' IN SCHEMA")
    assert sorted(row["language"] for row in functions) == ["EXTERNAL", "SQL"]
    assert len(sql.rows("SHOW EXTERNAL FUNCTIONS LIKE 'F' IN SCHEMA")) == 1
    sql.rows("GRANT USAGE ON FUNCTION f(FILE) TO ROLE analyst")
    sql.rows("DROP FUNCTION f(FILE)")
    assert sql.error(f"SELECT f(TO_FILE('{STAGE}', 'sub dir/a.png'))").errno == 1044


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE FUNCTION g(x INT) RETURNS INT AS 'x + 1'",
        "CREATE FUNCTION g(x FILE) RETURNS VARIANT AS 'nope(x)'",
        "CREATE FUNCTION g(x FILE) RETURNS VARIANT LANGUAGE PYTHON HANDLER = 'h' AS 'x'",
        "CREATE EXTERNAL FUNCTION g(x FILE) RETURNS VARIANT API_INTEGRATION = gateway AS 'http://localhost/'",
        "CREATE TABLE g (x FILE)",
        f"SELECT TO_FILE('{STAGE}', 'notes.txt') AS x ORDER BY x",
        f"SELECT TO_FILE('{STAGE}', 'notes.txt')::VARCHAR",
        f"SELECT TO_FILE('{STAGE}', 'notes.txt') || ''",
        f"SELECT COUNT(*) GROUP BY TO_FILE('{STAGE}', 'notes.txt')",
        "SELECT TO_FILE(OBJECT_CONSTRUCT('STAGE', 'files'))",
        f"SELECT FL_GET_LAST_MODIFIED(TO_FILE('{STAGE}', 'notes.txt'))",
    ],
)
@pytest.mark.usefixtures("stage", "f")
def test_what_is_not_supported_is_refused(sql: Sql, statement: str) -> None:
    error = sql.error(statement)
    assert error.errno == 2
    assert "Not supported by the emulator" in str(error)
