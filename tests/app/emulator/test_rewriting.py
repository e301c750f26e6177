"""Where a statement may use external functions, signed URLs and directory tables."""

import json
import re
from datetime import datetime
from pathlib import Path

import pytest
from snowflake.connector.errors import Error

from app.emulator import ACCOUNT_HOST, LocalServer
from app.images.source import StageFile, parse_file_url
from tests.app.emulator.conftest import Function
from tests.app.emulator.remote_service import RemoteService, answer
from tests.app.emulator.sql import Sql


@pytest.fixture(autouse=True)
def f(sql: Sql, function: Function, service: RemoteService) -> None:
    """F returns an object with its argument and its length; WORDS holds three words."""
    service.respond = lambda received: answer(
        [{"label": row[1], "length": len(row[1] or "")} for row in received.rows]
    )
    function("f(a VARCHAR)")
    sql.rows("CREATE TABLE words (word VARCHAR, kind VARCHAR)")
    sql.rows("INSERT INTO words VALUES ('rose', 'x'), ('tulip', 'x'), ('oak', 'y')")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT f(word):label::VARCHAR FROM words", ["oak", "rose", "tulip"]),
        ("SELECT word FROM words WHERE f(word):length::INT > 3", ["rose", "tulip"]),
        ("SELECT word FROM words WHERE f(word):label = 'oak'", ["oak"]),
        ("SELECT word FROM words WHERE f(word):label IN ('oak', 'elm')", ["oak"]),
        ("SELECT word FROM words WHERE f(word):label LIKE 't%'", ["tulip"]),
        ("SELECT word FROM words WHERE f(word):length > 4.5", ["tulip"]),
        ("WITH a AS (SELECT f('a') AS v) SELECT v:label::VARCHAR FROM a", ["a"]),
        ("SELECT v:length::INT FROM (SELECT f(word) AS v FROM words) AS t", [3, 4, 5]),
        ("SELECT word FROM words WHERE word IN (SELECT f('oak'):label::VARCHAR)", ["oak"]),
        ("SELECT f(f(word):label):label::VARCHAR FROM words", ["oak", "rose", "tulip"]),
        ("SELECT f('a'):label::VARCHAR UNION ALL SELECT f('b'):label::VARCHAR", ["a", "b"]),
        ("SELECT f('a'):label::VARCHAR UNION SELECT f('a'):label::VARCHAR", ["a"]),
        ("SELECT IFF(word = 'oak', f(word):label::VARCHAR, '-') FROM words", ["-", "-", "oak"]),
        ("SELECT w.word FROM words JOIN words AS w ON f('oak'):label::VARCHAR = w.word", ["oak"] * 3),
        ("SELECT f(word):label::VARCHAR || '!' FROM words ORDER BY 1", ["oak!", "rose!", "tulip!"]),
        ("SELECT f(word):label || '!' FROM words", ["oak!", "rose!", "tulip!"]),
        ("SELECT MAX(f(word):length::INT) FROM words", [5]),
        ("SELECT LENGTH(f(word):label) FROM words", [3, 4, 5]),
        ("select F(word):label::varchar from words", ["oak", "rose", "tulip"]),
        (
            "SELECT f(word):label::VARCHAR AS l FROM words QUALIFY ROW_NUMBER() OVER (ORDER BY l) < 3",
            ["oak", "rose"],
        ),
        (
            "SELECT word FROM words QUALIFY RANK() OVER (PARTITION BY kind ORDER BY f(word):length::INT) = 1",
            ["oak", "rose"],
        ),
    ],
)
def test_function_is_allowed_wherever_a_value_is(sql: Sql, statement: str, expected: list[object]) -> None:
    assert sorted(sql.column(statement)) == expected


def test_rows_are_ordered_by_a_call(sql: Sql) -> None:
    statement = "SELECT word FROM words ORDER BY f(word):length::INT DESC"
    assert sql.column(statement) == ["tulip", "rose", "oak"]


def test_group_by_a_selected_call(sql: Sql) -> None:
    statement = "SELECT f(kind):label::VARCHAR, COUNT(*) FROM words GROUP BY f(kind):label::VARCHAR"
    assert sorted(sql.rows(statement)) == [("x", 2), ("y", 1)]


def test_group_by_the_alias_of_a_call(sql: Sql) -> None:
    statement = "SELECT f(kind):label::VARCHAR AS label, COUNT(*) FROM words GROUP BY label ORDER BY label"
    assert sql.rows(statement) == [("x", 2), ("y", 1)]


def test_table_is_created_from_answers(sql: Sql) -> None:
    sql.rows("CREATE TABLE answers AS SELECT word, f(word) AS answer FROM words")
    assert sql.value("SELECT answer:length::INT FROM answers WHERE word = 'tulip'") == 5


def test_answers_are_inserted_and_updated(sql: Sql, service: RemoteService) -> None:
    sql.rows("CREATE TABLE answers (word VARCHAR, answer VARIANT)")
    assert sql.value("INSERT INTO answers SELECT word, f(word) FROM words") == 3
    assert sql.value("SELECT SUM(answer:length::INT) FROM answers") == 12
    sql.rows("UPDATE answers SET answer = f(word || word)")
    assert sql.value("SELECT SUM(answer:length::INT) FROM answers") == 24
    assert len(service.received) == 2


@pytest.mark.parametrize(
    "name", ["{schema}.f", "LOCAL.{schema}.F", '"LOCAL"."{schema}"."F"', "local.{schema}.f"]
)
def test_name_may_be_qualified(sql: Sql, name: str) -> None:
    qualified = name.format(schema=sql.value("SELECT CURRENT_SCHEMA()"))
    assert json.loads(sql.value(f"SELECT {qualified}('a')"))["label"] == "a"


def test_name_is_looked_up_in_the_current_schema(sql: Sql) -> None:
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    sql.rows(f"CREATE SCHEMA {schema}_other")
    assert sql.error("SELECT f('a')").errno == 2
    assert json.loads(sql.value(f"SELECT {schema}.f('a')"))["label"] == "a"
    sql.rows(f"USE SCHEMA {schema}")
    assert json.loads(sql.value("SELECT f('a')"))["label"] == "a"


@pytest.mark.parametrize("name", ["nope", "nowhere.f", "LOCAL.nowhere.f", "nowhere.public.f", "public.upper"])
def test_unknown_function_is_an_error(sql: Sql, service: RemoteService, name: str) -> None:
    error = sql.error(f"SELECT {name}('a')")
    assert error.errno == (2140 if "." in name else 2)
    assert name.upper() in str(error)
    assert service.received == []


def test_name_of_too_many_parts_is_an_error(sql: Sql) -> None:
    assert sql.error("SELECT a.b.c.f('a')").errno == 1008


def test_quoted_name_is_case_sensitive(sql: Sql, function: Function) -> None:
    function('"f"(a VARCHAR, b VARCHAR)')
    assert json.loads(sql.value("SELECT \"f\"('a', 'b')"))["label"] == "a"
    assert sql.error("SELECT \"f\"('a')").errno == 1044
    assert sql.error("SELECT f('a', 'b')").errno == 1044


def test_name_of_a_system_function_is_refused(sql: Sql, function: Function) -> None:
    with pytest.raises(Error) as failure:
        function("upper(a VARCHAR)")
    assert failure.value.errno == 2


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("SELECT COUNT(*), max(length(word)) FROM words", ["COUNT(*)", "MAX(LENGTH(WORD))"]),
        (
            "SELECT DISTINCT PARSE_JSON('{}'):a.b, IFF(TRUE, 1, 2)",
            ["PARSE_JSON('{}'):A.B", "IFF(TRUE, 1, 2)"],
        ),
        ("SELECT * FROM (SELECT COUNT(*) FROM words)", ["COUNT(*)"]),
        ("SELECT $1, $2 || 'x' FROM VALUES (1, 'a')", ["$1", "$2 || 'X'"]),
    ],
)
def test_names_of_columns_are_snowflakes(sql: Sql, statement: str, names: list[str]) -> None:
    sql.rows(statement)
    assert sql.columns == names


def test_unnamed_columns_are_named_by_their_text(sql: Sql) -> None:
    sql.rows("SELECT f('a'), word, f(word):label::string, f(word) AS answer, CURRENT_ROLE() FROM words")
    assert sql.columns == ["F('A')", "WORD", "F(WORD):LABEL::STRING", "ANSWER", "CURRENT_ROLE()"]


def test_description_does_not_call_the_service(sql: Sql, service: RemoteService) -> None:
    with sql.connection.cursor() as cursor:
        names = [column.name for column in cursor.describe("SELECT word, f(word) FROM words")]
    assert names == ["WORD", "F(WORD)"]
    assert service.received == []


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE t (a VARIANT DEFAULT f('a'))",
        "ALTER TABLE words ADD COLUMN answer VARIANT DEFAULT f('a')",
    ],
)
def test_call_in_a_default_is_refused(sql: Sql, statement: str) -> None:
    assert sql.error(statement).errno == 2
    assert sql.error("SELECT * FROM t").errno == 2003
    assert sql.rows("SELECT * FROM words LIMIT 0") == []


def test_comparison_of_variants_of_different_types_is_refused(sql: Sql) -> None:
    assert sql.error("SELECT word FROM words WHERE f(word):label = f(word):length").errno == 2


def test_variants_are_compared_by_value(sql: Sql) -> None:
    row = sql.row(
        "SELECT v:n > 9, v:n = 10, v:s = '1', v:b = TRUE, v:s || 'x', v:m <> -1 FROM "
        '(SELECT PARSE_JSON(\'{"n": 10.0, "s": "1", "b": true, "m": -1}\') AS v) AS t'
    )
    assert row == (True, True, True, True, "1x", False)


def test_function_cast_to_text_returns_the_text(sql: Sql, service: RemoteService) -> None:
    service.respond = lambda _: answer(["text"])
    assert sql.value("SELECT f('a')::VARCHAR") == "text"


def test_disabled_integration_blocks_calls(sql: Sql, service: RemoteService) -> None:
    sql.rows("ALTER API INTEGRATION gateway SET ENABLED = FALSE")
    try:
        assert sql.error("SELECT f('a')").errno == 1008
    finally:
        sql.rows("ALTER API INTEGRATION gateway SET ENABLED = TRUE")
    assert service.received == []


def test_removed_prefix_blocks_calls(sql: Sql, service: RemoteService) -> None:
    sql.rows("ALTER API INTEGRATION gateway SET API_ALLOWED_PREFIXES = ('https://other.example/')")
    try:
        assert sql.error("SELECT f('a')").errno == 1008
    finally:
        sql.rows(f"ALTER API INTEGRATION gateway SET API_ALLOWED_PREFIXES = ('{service.origin}')")
    assert service.received == []


# Directory tables and the three kinds of URL.


@pytest.fixture
def images(sql: Sql, server: LocalServer, tmp_path: Path) -> str:
    """A stage with two images; returns the name of its schema."""
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    for name in ("b.png", "a dir/é.1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"bytes of " + name.encode())
    stage = server.mount(tmp_path, "PICTURES")
    del server.local.catalog.stages[stage.name]
    server.local.catalog.stages["LOCAL", schema, "PICTURES"] = stage
    stage.name = ("LOCAL", schema, "PICTURES")
    return str(schema)


def test_directory_table_has_snowflakes_columns(sql: Sql, images: str) -> None:
    rows = sql.rows("SELECT * FROM DIRECTORY(@pictures)")
    assert sql.columns == ["RELATIVE_PATH", "SIZE", "LAST_MODIFIED", "MD5", "ETAG", "FILE_URL"]
    assert [(row[0], row[1]) for row in rows] == [("a dir/é.1.png", 23), ("b.png", 14)]
    assert all(isinstance(row[2], datetime) for row in rows)


def test_directory_table_may_have_an_alias_and_appear_twice(sql: Sql, images: str) -> None:
    rows = sql.rows(
        "SELECT one.relative_path, two.size FROM DIRECTORY(@pictures) AS one "
        "JOIN DIRECTORY(@pictures) two ON one.relative_path = two.relative_path ORDER BY 2"
    )
    assert rows == [("b.png", 14), ("a dir/é.1.png", 23)]


def test_function_is_called_for_each_file(sql: Sql, images: str) -> None:
    rows = sql.rows("SELECT relative_path, f(file_url):label::VARCHAR, file_url FROM DIRECTORY(@pictures)")
    assert len(rows) == 2
    assert all(label == file_url for _, label, file_url in rows)


def test_file_url_is_encoded_down_to_dots_and_slashes(sql: Sql, images: str) -> None:
    expected = f"https://{ACCOUNT_HOST}/api/files/LOCAL/{images}/PICTURES/a%20dir%2f%c3%a9%2e1%2epng"
    assert sql.value("SELECT BUILD_STAGE_FILE_URL(@pictures, 'a dir/é.1.png')") == expected
    assert expected in sql.column("SELECT file_url FROM DIRECTORY(@pictures)")


@pytest.mark.parametrize(
    "path", ["a.png", "a/b c/ü.png", "100%.png", "a%2fb.png", "q'\"?#&+.png", "猫/😀.png"]
)
def test_file_url_can_be_parsed(sql: Sql, images: str, path: str) -> None:
    url = sql.value("SELECT BUILD_STAGE_FILE_URL(@pictures, %s)", (path,))
    assert parse_file_url(url) == StageFile(("LOCAL", images, "PICTURES"), path, ACCOUNT_HOST)


def test_file_url_of_a_quoted_stage_can_be_parsed(sql: Sql) -> None:
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    sql.rows('CREATE STAGE "My, (st)age" DIRECTORY = (ENABLE = TRUE)')
    url = sql.value("SELECT BUILD_STAGE_FILE_URL(@\"My, (st)age\", 'a.png')")
    assert parse_file_url(url) == StageFile(("LOCAL", schema, "My, (st)age"), "a.png", ACCOUNT_HOST)


def test_scoped_url_contains_the_query_id(sql: Sql, images: str) -> None:
    urls = sql.column("SELECT BUILD_SCOPED_FILE_URL(@pictures, relative_path) FROM DIRECTORY(@pictures)")
    assert all(f"/api/files/{sql.query_id}/" in url for url in urls)
    assert len(set(urls)) == 2


@pytest.mark.parametrize(
    ("seconds", "expected"), [("", "3600"), (", 60", "60"), (", 604800", "604800"), (", 30 + 30", "60")]
)
def test_signed_url_expires_after_the_given_seconds(
    sql: Sql, images: str, seconds: str, expected: str
) -> None:
    url = sql.value(f"SELECT GET_PRESIGNED_URL(@pictures, 'b.png'{seconds})")
    assert re.search(r"X-Amz-Expires=(\d+)", url)[1] == expected  # type: ignore[index]


@pytest.mark.parametrize("seconds", ["0", "-1", "604801"])
def test_signed_url_with_an_invalid_expiration_is_refused(sql: Sql, images: str, seconds: str) -> None:
    error = sql.error(f"SELECT GET_PRESIGNED_URL(@pictures, 'b.png', {seconds})")
    assert error.errno == 1008
    assert f"Received: {seconds}." in str(error)


@pytest.mark.parametrize("name", ["GET_PRESIGNED_URL", "BUILD_STAGE_FILE_URL", "BUILD_SCOPED_FILE_URL"])
def test_url_of_null_is_null(sql: Sql, images: str, name: str) -> None:
    assert sql.value(f"SELECT {name}(@pictures, NULL)") is None


@pytest.mark.parametrize(
    "expression",
    [
        "GET_PRESIGNED_URL(@pictures)",
        "GET_PRESIGNED_URL(@pictures, 'a', 60, 1)",
        "BUILD_STAGE_FILE_URL(@pictures, 'a', 60)",
        "GET_PRESIGNED_URL('pictures', 'a')",
        "GET_PRESIGNED_URL(@pictures/folder, 'a')",
        "BUILD_STAGE_FILE_URL(@pictures/folder, 'a')",
    ],
)
def test_url_of_wrong_arguments_is_refused(sql: Sql, images: str, expression: str) -> None:
    assert sql.error(f"SELECT {expression}").errno == 1008


@pytest.mark.parametrize("source", ["@nowhere", "@LOCAL.nowhere.pictures"])
def test_unknown_stage_is_refused(sql: Sql, images: str, source: str) -> None:
    assert sql.error(f"SELECT GET_PRESIGNED_URL({source}, 'a')").errno == 2003


def test_directory_of_a_path_is_refused(sql: Sql, images: str) -> None:
    assert sql.error("SELECT * FROM DIRECTORY(@pictures/folder)").errno in {1003, 1008}


def test_table_may_be_created_from_a_directory_table(sql: Sql, images: str) -> None:
    sql.rows("CREATE TABLE files AS SELECT relative_path, file_url FROM DIRECTORY(@pictures)")
    assert sql.value("SELECT COUNT(*) FROM files") == 2


def test_stage_after_multibyte_characters_is_quoted(sql: Sql, images: str) -> None:
    text, url = sql.row("SELECT 'é猫😀', /* ü */ GET_PRESIGNED_URL(@pictures, '😀.png', 60)")
    assert text == "é猫😀"
    assert "/PICTURES/%F0%9F%98%80.png?" in url


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT _local_call('id', 0, '[1]')",
        "SELECT _LOCAL_CALL('id', 0, '[1]')",
        "SELECT _local_sign('id', '[\"LOCAL\",\"PUBLIC\",\"S\"]', 'x', 5)",
        "SELECT _local_file_url('id', 'x', 'x')",
        "SELECT \"_local_scoped_url\"('id', 'x', 'x')",
    ],
)
def test_internal_functions_are_refused(sql: Sql, statement: str) -> None:
    assert sql.error(statement).errno == 2140


@pytest.mark.parametrize("table", ["_local_answer", "_LOCAL_DIRECTORY_0", '"_LOCAL_DIRECTORY_0"'])
def test_internal_tables_are_refused(sql: Sql, images: str, table: str) -> None:
    sql.rows("SELECT * FROM DIRECTORY(@pictures)")
    sql.rows("SHOW STAGES")
    assert sql.error("SELECT * FROM " + table).errno == 2003  # noqa: S608
    assert not [name for _, name, *_ in sql.rows("SHOW TABLES") if "LOCAL" in name]
