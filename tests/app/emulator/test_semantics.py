"""Statements with the answer expected of Snowflake, as reviewed by hand, not tried on an account.

semantics.txt holds pairs of lines: a statement, and the rows or the error number, which is Snowflake's own or
2, the emulator's refusal. A VARIANT is compact JSON here, with its keys as they came: Snowflake indents it
and documents no order of keys.
"""

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from snowflake.connector.errors import Error

from app.emulator import LocalServer
from tests.app.emulator.sql import Sql

_LINES = Path(__file__).with_name("semantics.txt").read_text("utf-8").splitlines()
COLUMNS = "x INT, y NUMBER(10,2), z FLOAT, s VARCHAR, v VARIANT, d DATE, ts TIMESTAMP, b BOOLEAN"
VARIANT = '{"label": "rose", "n": 10, "tags": ["p", "q"]}'
FIRST_ROW = f"1, 2.50, 1.5, 'a', PARSE_JSON('{VARIANT}'), '2024-03-05', '2024-03-05 10:20:30', TRUE"


@pytest.fixture(scope="module")
def session(server: LocalServer) -> Iterator[Sql]:
    """A session with the table T, which no test changes."""
    with Sql(server) as sql:
        sql.rows("CREATE SCHEMA semantics")
        sql.rows(f"CREATE TABLE t ({COLUMNS})")
        sql.rows(f"INSERT INTO t SELECT {FIRST_ROW}")
        sql.rows("INSERT INTO t (x, s) VALUES (NULL, 'b'), (3, NULL)")
        yield sql


@pytest.mark.parametrize(("statement", "expected"), list(zip(_LINES[::2], _LINES[1::2], strict=True)))
def test_emulator_answers_as_snowflake_or_refuses(session: Sql, statement: str, expected: str) -> None:
    try:
        answer = repr(session.rows(statement))
    except Error as error:
        answer = f"error {error.errno}"
        assert error.errno != 2 or "Not supported by the emulator" in str(error)
    assert answer == expected.strip()


def test_statements_that_change_a_table_are_adapted_too(sql: Sql) -> None:
    sql.rows("CREATE TABLE n (a INT, q NUMBER(10,3), v VARIANT)")
    sql.rows("INSERT INTO n (a) VALUES (3), (4)")
    sql.rows("UPDATE n SET q = a / 7, v = OBJECT_CONSTRUCT('a', a) WHERE a / 2 > 1.5")
    assert repr(sql.rows("SELECT a, q, v:a::INT FROM n ORDER BY a")) == (
        "[(3, None, None), (4, Decimal('0.571'), 4)]"
    )
    assert sql.error("DELETE FROM n WHERE a / 0 = 1").errno == 100051
    sql.rows("CREATE TABLE m AS SELECT a / 3 AS third, SUM(a) OVER () AS total FROM n")
    assert repr(sql.rows("SELECT * FROM m ORDER BY 1")) == (
        "[(Decimal('1.000000'), 7), (Decimal('1.333333'), 7)]"
    )
    source = "(SELECT 4 AS k, 6 / 4 AS w) AS s"
    merge = f"MERGE INTO n USING {source} ON n.a = s.k WHEN MATCHED THEN UPDATE SET q = "
    sql.rows(merge + "s.w")
    assert str(sql.value("SELECT q FROM n WHERE a = 4")) == "1.500"
    sql.rows(merge + "s.w / 4")
    assert str(sql.value("SELECT q FROM n WHERE a = 4")) == "0.375"
    assert sql.error(merge + "n.q + s.w").errno == 2
    sql.rows(
        "MERGE INTO n USING (SELECT 9 AS k, PARSE_JSON('{\"l\":2}') AS v) AS s ON n.a = s.k "
        "WHEN NOT MATCHED THEN INSERT (a, q, v) VALUES (k, s.v:l, OBJECT_CONSTRUCT('k', k + 1))"
    )
    assert repr(sql.rows("SELECT q, v:k::INT FROM n WHERE a = 9")) == "[(Decimal('2.000'), 10)]"
    assert sql.error("INSERT INTO n (v) VALUES (PARSE_JSON('1'))").errno == 2014


def test_assigned_variants_take_the_type_of_their_column(sql: Sql) -> None:
    sql.rows(
        "CREATE TABLE answers AS SELECT PARSE_JSON(column1) AS v "
        """FROM VALUES ('{"l":"rose","c":0.98}'), ('{"l":null}')"""
    )
    sql.rows("CREATE TABLE labels (l VARCHAR, c NUMBER(3,1), v VARIANT)")
    sql.rows("INSERT INTO labels (l, c, v) SELECT v:l, v:c, 1.50 FROM answers")
    assert sql.rows("SELECT * FROM labels ORDER BY l") == [
        ("rose", Decimal("1.0"), "1.5"),
        (None, None, "1.5"),
    ]
    sql.rows("UPDATE labels SET l = PARSE_JSON('[\"a\"]')[0], v = OBJECT_CONSTRUCT('k', c)")
    assert sql.rows("SELECT DISTINCT l, v:k::INT FROM labels ORDER BY ALL") == [("a", 1), ("a", None)]
    sql.rows(
        "MERGE INTO labels USING (SELECT v:l AS l, v FROM answers) AS s ON labels.l = s.l "
        "WHEN NOT MATCHED THEN INSERT (l, v) VALUES (s.l, s.v)"
    )
    assert sql.column("SELECT l FROM labels WHERE v:l IS NOT NULL ORDER BY l") == ["rose", None]
    for values in ("VALUES ('x')", "SELECT 'x'", "SELECT CURRENT_DATE()"):
        assert sql.error(f"INSERT INTO labels (v) {values}").errno == 2023


def test_session_variables_hold_the_values_of_set(sql: Sql) -> None:
    sql.rows("CREATE TABLE n (a INT)")
    sql.rows("SET (count, label) = ((SELECT COUNT(*) FROM n), 'it''s')")
    sql.rows("INSERT INTO n VALUES (1)")
    assert sql.row("SELECT $count, $LABEL, '$label', '$5', $$$x$$") == (0, "it's", "$label", "$5", "$x")
    assert sql.error("SELECT $counted").errno == 2211
    sql.rows("UNSET label")
    assert sql.error("SELECT $label").errno == 2211


def test_variables_hold_dates_and_statements(sql: Sql) -> None:
    sql.rows("SET (since, today) = (DATEADD(day, -7, '2024-03-08'::DATE), CURRENT_DATE())")
    sql.rows("SET at = '2024-03-08 10:00:00'::TIMESTAMP_NTZ")
    assert sql.row("SELECT DATEADD(day, 1, $since), $today = CURRENT_DATE(), HOUR($at)") == (
        dt.date(2024, 3, 2),
        True,
        10,
    )
    sql.rows("SET statement = 'SELECT $since'")
    assert sql.value("EXECUTE IMMEDIATE $statement") == dt.date(2024, 3, 1)
    sql.rows("START TRANSACTION")
    sql.rows("ROLLBACK")


def test_sequence_starts_where_it_says(sql: Sql) -> None:
    sql.rows("CREATE SEQUENCE s START WITH 5 INCREMENT BY 10")
    assert [sql.value("SELECT s.NEXTVAL") for _ in range(2)] == [5, 15]


@pytest.mark.parametrize("kind", ["BLOB", "BYTEA", "INT8", "JSON", "UUID", "HUGEINT"])
def test_type_of_other_databases_is_refused(sql: Sql, kind: str) -> None:
    assert sql.error(f"CREATE TABLE c (a {kind}, b VARCHAR)").errno == 2


def test_columns_hold_what_their_types_hold(sql: Sql) -> None:
    sql.rows("CREATE TABLE c (s VARCHAR(3), n NUMBER(3,1))")
    sql.rows("CREATE TABLE k (a INT PRIMARY KEY, at DATETIME)")
    assert sql.error("INSERT INTO k (a) VALUES (1), (1)").errno == 2
    assert sql.error("INSERT INTO c (s) VALUES ('rose')").errno == 100078
    assert sql.error("INSERT INTO c (n) VALUES (100)").errno == 100046
    assert sql.error("INSERT INTO c (n) VALUES ('x')").errno == 100038
    assert sql.error("INSERT INTO c (nope) VALUES ('x')").errno == 904
    assert sql.error("INSERT INTO c (s) VALUES ('x', 'y')").errno == 2020
    sql.rows("INSERT INTO c VALUES ('äöü', '9.96')")
    assert sql.rows("SELECT * FROM c") == [("äöü", Decimal("10.0"))]


def test_statement_that_changes_nothing_says_so(sql: Sql) -> None:
    sql.rows("CREATE TABLE c (a INT)")
    assert sql.value("CREATE TABLE IF NOT EXISTS c (b INT)") == "C already exists, statement succeeded."
    assert sql.value("DROP VIEW IF EXISTS v") == "Drop statement executed successfully (V already dropped)."
    assert sql.value("DROP TABLE IF EXISTS c") == "C successfully dropped."


def test_creation_of_what_exists_says_so(sql: Sql) -> None:
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    for statement, name in (("SCHEMA", schema), ("DATABASE", "LOCAL")):
        assert "already exists" in sql.value(f"CREATE {statement} IF NOT EXISTS {name}")
        assert "already dropped" in sql.value(f"DROP {statement} IF EXISTS nothing")
    assert sql.value("SELECT CURRENT_SCHEMA()") == schema


def test_show_applies_every_filter(sql: Sql) -> None:
    sql.rows("CREATE TABLE a_b (id INT AUTOINCREMENT PRIMARY KEY, label VARCHAR)")
    sql.rows("CREATE TABLE axb (a INT)")
    assert sql.names("SHOW TABLES LIKE 'A\\\\_%'") == ["A_B"]
    assert sql.names("SHOW TABLES STARTS WITH 'AX'") == ["AXB"]
    assert sql.names("SHOW TABLES STARTS WITH 'ax'") == []
    assert sql.names("SHOW TABLES LIMIT 1") == sql.names("SHOW TABLES LIMIT 1 FROM 'AAA'") == ["AXB"]
    assert sql.names("SHOW OBJECTS STARTS WITH 'A' LIMIT 2 FROM 'AXB'") == ["A_B"]
    assert [row["column_name"] for row in sql.records("SHOW COLUMNS LIKE 'L%' IN TABLE a_b")] == ["LABEL"]
    assert "INFORMATION_SCHEMA" in sql.names("SHOW SCHEMAS LIKE 'info%'")
    assert sql.names("SHOW SEQUENCES") == sql.rows("SHOW IMPORTED KEYS") == []
    assert sql.error("SHOW TABLES IN SCHEMA nothing").errno == 2003
    assert sql.error("SHOW COLUMNS IN TABLE nothing").errno == 2003


def test_show_lists_rows_and_the_text_of_views(sql: Sql) -> None:
    sql.rows("CREATE TABLE c AS SELECT seq4() AS a FROM TABLE(GENERATOR(ROWCOUNT => 3))")
    sql.rows("CREATE VIEW v (b) AS SELECT PARSE_JSON('{}'):a FROM c")
    assert [row["rows"] for row in sql.records("SHOW TABLES")] == [3]
    [text] = [row["text"] for row in sql.records("SHOW VIEWS")]
    assert "PARSE_JSON('{}')" in text
