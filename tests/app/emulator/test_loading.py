"""write_pandas of the real connector."""

import datetime as dt
from decimal import Decimal

import pandas as pd
import pytest
from snowflake.connector.errors import Error
from snowflake.connector.pandas_tools import write_pandas

from tests.app.emulator.sql import Sql

# The connector calls what pandas deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:is_datetime64tz_dtype", "ignore:Dataframe contains a datetime with timezone"
)
LABELS = pd.DataFrame(
    {
        "path": ["a.jpg", "b'.jpg", None],
        "weight": [0.5, None, 2.5],
        "n": [1, 2, 3],
        "ok": [True, False, None],
        "day": [dt.date(2024, 1, 1)] * 3,
        "at": pd.to_datetime(["2024-01-01 10:00:00"] * 3),
        "tags": [["a"], [], None],
    }
)
DAY, TIME = dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, 10, 0)  # noqa: DTZ001 - TIMESTAMP_NTZ
ROWS = [
    ("a.jpg", 0.5, 1, True, DAY, TIME, '["a"]'),
    ("b'.jpg", None, 2, False, DAY, TIME, "[]"),
    (None, 2.5, 3, None, DAY, TIME, None),
]


@pytest.mark.parametrize("is_quoted", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_data_frame_creates_a_table(sql: Sql, is_quoted: bool, chunk_size: int | None) -> None:
    options = {"quote_identifiers": is_quoted, "chunk_size": chunk_size, "auto_create_table": True}
    for overwrite in (False, True):
        loaded, files, count, _ = write_pandas(
            sql.connection, LABELS, "labels", overwrite=overwrite, **options
        )
        assert (loaded, files, count) == (True, 1 if chunk_size is None else 2, 3)
        table = '"labels"' if is_quoted else "labels"
        assert sorted(sql.rows(f"SELECT * FROM {table}"), key=lambda row: row[2]) == ROWS  # noqa: S608 - constants
    kinds = [row["type"] for row in sql.records(f"DESCRIBE TABLE {table}")]
    assert kinds[1:] == ["FLOAT", "NUMBER(38,0)", "BOOLEAN", "DATE", "TIMESTAMP_NTZ(9)", "VARIANT"]


def test_values_take_the_types_of_the_table(sql: Sql) -> None:
    sql.rows("CREATE TABLE t (S VARCHAR(5), Q NUMBER(3,1), N INT, V VARIANT, REST INT DEFAULT 7)")
    frame = pd.DataFrame({"S": ["a", "b"], "Q": [0.25, 1], "N": [2.5, None], "V": [{"a": 1}, {"a": 2.50}]})
    for overwrite in (False, True):
        write_pandas(sql.connection, frame, "T", overwrite=overwrite)
        assert sql.rows("SELECT s, q, n, v:a::FLOAT, rest FROM t ORDER BY s") == [
            ("a", Decimal("0.3"), 3, 1.0, 7),
            ("b", Decimal("1.0"), None, 2.5, 7),
        ]
    write_pandas(sql.connection, pd.DataFrame({"V": ["rose"]}), "T")
    assert sql.value("SELECT v FROM t WHERE v = 'rose'") == '"rose"'


@pytest.mark.parametrize(
    ("table", "column", "value", "number"),
    [
        ("NOTHING", "S", "a", 2003),
        ("T", "NOTHING", "a", 904),
        ("T", "S", "too long", 100078),
        ("T", "N", "a", 100038),
        ("T", "S", 0.1, 2),
        ("T", "AT", pd.Timestamp("2024-01-01", tz="UTC"), 2),
    ],
)
def test_what_does_not_fit_is_an_sql_error(
    sql: Sql, table: str, column: str, value: object, number: int
) -> None:
    sql.rows("CREATE TABLE t (S VARCHAR(5), N INT, AT TIMESTAMP_NTZ)")
    with pytest.raises(Error) as failure:
        write_pandas(sql.connection, pd.DataFrame({column: [value]}), table)
    assert failure.value.errno == number
    assert sql.rows("SELECT * FROM t") == []


@pytest.mark.parametrize(
    "statement",
    [
        "COPY INTO @images/labels FROM t",
        "COPY INTO t FROM @images",
        "COPY INTO t FROM (SELECT $1:\"S\" FROM '@images') FILE_FORMAT = (TYPE = PARQUET)",
        "COPY INTO t FROM (SELECT $1:\"S\" FROM '@images') FILE_FORMAT = (TYPE = CSV) PURGE = TRUE",
        "COPY INTO t FROM (SELECT LOWER($1) FROM '@images') FILE_FORMAT = (TYPE = PARQUET) PURGE = TRUE",
        "CREATE TEMPORARY FILE FORMAT f TYPE = CSV",
    ],
)
def test_other_forms_of_copy_are_refused(sql: Sql, statement: str) -> None:
    sql.rows("CREATE TABLE t (S VARCHAR)")
    sql.rows("CREATE STAGE images")
    assert sql.error(statement).errno == 2


def test_stage_without_files_loads_nothing(sql: Sql) -> None:
    sql.rows("CREATE TABLE t (S VARCHAR)")
    sql.rows("CREATE STAGE images")
    copy = 'COPY INTO t FROM (SELECT $1:"S" FROM @images) FILE_FORMAT = (TYPE = PARQUET) PURGE = TRUE'
    assert sql.value(copy) == "Copy executed with 0 files processed."
    assert sql.rows("SELECT * FROM t") == []


def test_name_in_identifier_is_a_name(sql: Sql) -> None:
    sql.rows("SET name = 'labels'")
    sql.rows('CREATE TABLE IDENTIFIER($name) (at INT, "end" INT)')
    sql.rows("INSERT INTO IDENTIFIER('Labels') SELECT 1, 2")
    assert sql.rows("SELECT IDENTIFIER('at'), \"end\" FROM IDENTIFIER('\"LABELS\"') WHERE at = 1") == [(1, 2)]
    assert sql.error("SELECT * FROM IDENTIFIER('labels x')").errno == 1003
    sql.rows("DROP TABLE IDENTIFIER($name)")
