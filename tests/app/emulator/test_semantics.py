"""Statements with the answer expected of Snowflake, as reviewed by hand, not tried on an account.

semantics.txt holds pairs of lines: a statement, and the rows or the error number, which is Snowflake's own or
2, the emulator's refusal. A VARIANT is compact JSON here, with its keys as they came: Snowflake indents it
and documents no order of keys.
"""

from collections.abc import Iterator
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
    assert sql.error(merge + "s.w / 4").errno == 2
    assert sql.error("INSERT INTO n (v) VALUES (PARSE_JSON('1'))").errno == 2014
