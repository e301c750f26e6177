"""Views over stages and functions, temporary tables and views, and MERGE from them."""

from pathlib import Path

import pytest

from app.emulator import LocalServer
from tests.app.emulator.conftest import Function
from tests.app.emulator.remote_service import RemoteService, answer
from tests.app.emulator.sql import Sql


@pytest.fixture(autouse=True)
def f(sql: Sql, function: Function, service: RemoteService) -> None:
    """F returns an object with its argument; WORDS holds two words."""
    service.respond = lambda received: answer([{"label": row[1]} for row in received.rows])
    function("f(a VARCHAR)")
    sql.rows("CREATE TABLE words (word VARCHAR)")
    sql.rows("INSERT INTO words VALUES ('rose'), ('oak')")


@pytest.fixture
def images(server: LocalServer, tmp_path: Path) -> Path:
    server.mount(tmp_path, "PICTURES")
    return tmp_path


def labels(sql: Sql, source: str = "v") -> list[str]:
    return sorted(sql.column(f"SELECT answer:label::VARCHAR FROM {source}"))  # noqa: S608 - a constant


def test_view_calls_the_function_each_time_it_is_read(sql: Sql, service: RemoteService) -> None:
    sql.rows("CREATE VIEW v AS SELECT word, f(word) AS answer FROM words")
    assert service.received == []
    assert labels(sql) == ["oak", "rose"]
    sql.rows("INSERT INTO words VALUES ('elm')")
    assert labels(sql) == ["elm", "oak", "rose"]
    assert len(service.received) == 2


def test_view_of_a_directory_table_is_current(sql: Sql, images: Path) -> None:
    sql.rows("CREATE VIEW v AS SELECT relative_path AS path, size FROM DIRECTORY(@local.public.pictures)")
    assert sql.rows("SELECT * FROM v") == []
    (images / "a.png").write_bytes(b"abc")
    sql.rows("ALTER STAGE local.public.pictures REFRESH")
    assert sql.rows("SELECT * FROM v") == [("a.png", 3)]


def test_view_of_the_current_user_is_of_the_reader(sql: Sql, server: LocalServer) -> None:
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    sql.rows("CREATE VIEW v AS SELECT CURRENT_USER() AS name")
    with Sql(server, user="other", schema=schema) as other:
        assert other.value("SELECT name FROM v") == "OTHER"


def test_views_may_read_views(sql: Sql) -> None:
    sql.rows("CREATE VIEW inner_view AS SELECT f(word) AS answer FROM words")
    sql.rows("CREATE VIEW v AS SELECT answer FROM inner_view AS i WHERE answer:label = 'oak'")
    assert labels(sql) == ["oak"]
    assert labels(sql, "(WITH v AS (SELECT f('elm') AS answer) SELECT * FROM v)") == ["elm"]
    sql.rows("CREATE TABLE t AS SELECT * FROM v")
    sql.rows("INSERT INTO t SELECT * FROM inner_view")
    assert labels(sql, "t") == ["oak", "oak", "rose"]


def test_view_is_shown_and_described(sql: Sql, images: Path) -> None:
    sql.rows(
        "CREATE VIEW v AS SELECT relative_path, size, last_modified, f(file_url) AS answer "
        "FROM DIRECTORY(@local.public.pictures)"
    )
    assert sql.names("SHOW VIEWS IN SCHEMA") == ["V"]
    types = [row["type"].partition("(")[0] for row in sql.records("DESCRIBE VIEW v")]
    assert types == ["VARCHAR", "NUMBER", "TIMESTAMP_TZ", "VARIANT"]


def test_view_is_replaced_and_dropped(sql: Sql) -> None:
    sql.rows("CREATE VIEW v AS SELECT f(word) AS answer FROM words")
    sql.rows('CREATE OR REPLACE VIEW v AS SELECT PARSE_JSON(\'{"label": "new"}\') AS answer')
    assert labels(sql) == ["new"]
    sql.rows("CREATE OR REPLACE VIEW v AS SELECT f('again') AS answer")
    assert labels(sql) == ["again"]
    sql.rows("DROP VIEW v")
    assert sql.error("SELECT * FROM v").errno == 2003


def test_view_outside_its_schema_is_refused(sql: Sql) -> None:
    """Its unqualified names would be looked up elsewhere."""
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    sql.rows("CREATE VIEW v AS SELECT f(word) AS answer FROM words")
    sql.rows("USE SCHEMA local.public")
    assert sql.error(f"SELECT * FROM {schema}.v").errno == 2  # noqa: S608 - a constant


@pytest.mark.parametrize("kind", ["TABLE", "VIEW"])
@pytest.mark.parametrize("word", ["TEMPORARY", "TEMP", "SCOPED TEMPORARY"])
def test_temporary_object_ends_with_its_session(sql: Sql, server: LocalServer, kind: str, word: str) -> None:
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    with Sql(server, schema=schema) as other:
        other.rows(f"CREATE OR REPLACE {word} {kind} LOCAL.{schema}.t AS SELECT f('x') AS answer")
        assert labels(other, f"local.{schema}.t") == labels(other, "t") == ["x"]
    assert sql.error("SELECT * FROM t").errno == 2003


def test_temporary_object_does_not_replace_a_permanent_one(sql: Sql) -> None:
    assert sql.error("CREATE OR REPLACE TEMPORARY TABLE words AS SELECT 1 AS a").errno == 2
    assert len(sql.rows("SELECT * FROM words")) == 2


MERGE = """
MERGE INTO t AS d USING {source} AS s ON s.word = d.word
WHEN MATCHED THEN UPDATE SET answer = s.answer
WHEN NOT MATCHED THEN INSERT ("WORD", "ANSWER") VALUES ("WORD", "ANSWER")
"""


@pytest.mark.parametrize("source", ["v", "(SELECT word, f(word) AS answer FROM words)"])
def test_merge_in_a_transaction_calls_the_function_once_a_row(
    sql: Sql, service: RemoteService, source: str
) -> None:
    sql.rows("CREATE TABLE t (word VARCHAR, answer VARIANT)")
    sql.rows("INSERT INTO t SELECT 'oak', PARSE_JSON('{\"label\": \"old\"}')")
    sql.rows("CREATE TEMPORARY VIEW v AS SELECT word, f(word) AS answer FROM words")
    sql.rows("BEGIN")
    assert sql.row(MERGE.format(source=source)) == (1, 1)
    sql.rows("COMMIT")
    assert labels(sql, "t") == ["oak", "rose"]
    assert sum(len(received.rows) for received in service.received) == 2


def test_merge_may_read_a_query_without_a_name(sql: Sql) -> None:
    """As Snowpark writes it."""
    sql.rows("CREATE TABLE t (word VARCHAR, answer VARIANT)")
    merged = sql.row(
        'MERGE INTO t USING (SELECT word AS "w", f(word) AS "a" FROM words) ON t.word = "w" '
        'WHEN NOT MATCHED THEN INSERT (word, answer) VALUES ("w", "a")'
    )
    assert merged == (2,)
    assert labels(sql, "t") == ["oak", "rose"]


@pytest.mark.parametrize("source", ["v", "(SELECT word, f(word) AS answer FROM words)"])
def test_delete_may_use_a_view(sql: Sql, source: str) -> None:
    sql.rows("CREATE VIEW v AS SELECT word, f(word) AS answer FROM words")
    sql.rows("CREATE TABLE t AS SELECT word FROM words")
    sql.rows(f"DELETE FROM t USING {source} AS s WHERE t.word = s.word AND s.answer:label = 'oak'")  # noqa: S608 - constants
    assert sql.column("SELECT word FROM t") == ["rose"]


def test_positions_are_the_columns_of_values(sql: Sql) -> None:
    """As Snowpark's create_dataframe writes local data."""
    query = "SELECT {} FROM (SELECT $1 AS a, $2 AS b FROM VALUES ('x' :: STRING, 1 :: INT), ('y', 2))"
    assert sql.rows(query.format("b, f(a):label::VARCHAR")) == [(1, "x"), (2, "y")]
    assert sql.error("SELECT $3 FROM VALUES ('x', 1)").errno == 1008
