"""Executes a statement: in the emulator itself, in DuckDB through fakesnow, or not at all if unsupported."""

import re
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import sqlglot
from fakesnow.cursor import FakeSnowflakeCursor
from fakesnow.dialect import parse_one
from snowflake.connector.errors import Error, ProgrammingError
from sqlglot import exp

from app.emulator.answer import Answer
from app.emulator.catalog import SCHEMA
from app.emulator.grammar import column_texts, quote_stage_arguments
from app.emulator.query import Query
from app.emulator.refusals import no_warehouse, unknown_function, unsupported
from app.emulator.rewriting import rewrite
from app.emulator.statements import answer_statement

if TYPE_CHECKING:
    from app.emulator.session import LocalConnection

_NEEDS_WAREHOUSE = (
    exp.Query,
    exp.Values,
    exp.Insert,
    exp.Update,
    exp.Delete,
    exp.Merge,
    exp.TruncateTable,
)
_OTHERS = (exp.Describe, exp.Set, exp.Transaction, exp.Commit, exp.Rollback)
# Only these kinds of object reach fakesnow: for some others it leaves macros behind.
_KINDS = frozenset({"TABLE", "VIEW", "DATABASE", "SCHEMA", "SEQUENCE"})
# Only these properties reach fakesnow: it creates a dynamic or external table as a plain one.
_PROPERTIES = (
    exp.ClusterProperty,
    exp.CopyGrantsProperty,
    exp.SchemaCommentProperty,
    exp.SecureProperty,
    exp.TemporaryProperty,
    exp.TransientProperty,
)
_SHOWN = frozenset({"TABLES", "VIEWS", "OBJECTS", "COLUMNS", "DATABASES", "SCHEMAS", "SEQUENCES"})
_ANSWER = "_LOCAL_ANSWER"
_NO_FUNCTION = re.compile(r"Catalog Error: (?:\w+ )?Function with name (\S+) does not exist")
# fakesnow's error number for a feature that it does not implement.
_NOT_IMPLEMENTED = 9999


class LocalCursor(FakeSnowflakeCursor):
    """fakesnow's cursor, with directory tables, signed URLs and external functions.

    It refuses a statement that fakesnow would execute only in part.
    """

    def __init__(self, session: "LocalConnection", duck_conn: duckdb.DuckDBPyConnection) -> None:
        super().__init__(session, duck_conn)
        self._query_id: str | None = None
        self._session = session

    def execute(self, command: str, params: Any = None, *arguments: Any, **options: Any) -> "LocalCursor":
        """Raises only the connector's Error: after any other exception the client repeats the statement."""
        query = Query(self._session.context())
        self._query_id = query.id
        self._session.local.start(query)
        try:
            answer = answer_statement(command, self._session)
            if answer is not None:
                self._show(answer)
            else:
                expression, sql = self._prepare(command, query)
                super().execute(sql, params, *arguments, **options)
                self._apply_to_session(expression)
            self._file_result(query)
        except Exception as error:  # noqa: BLE001 - DuckDB, fakesnow and sqlglot raise many
            raise query.error or _translate(error) from None
        finally:
            self._session.local.finish(query)
        return self

    def _describe_only(self, command: str) -> list[Any]:
        """Raises ProgrammingError for a statement that fakesnow would execute instead of describe."""
        described = super()._describe_only(command)
        if described is None:
            raise unsupported("description of this statement")
        return described

    def _prepare(self, command: str, query: Query) -> tuple[Any, str]:
        """The parsed statement, and SQL that fakesnow can run. Raises ProgrammingError if unsupported."""
        expression = parse_one(quote_stage_arguments(command))
        before = _text(expression)
        _refuse_unsupported(expression)
        if isinstance(expression, _NEEDS_WAREHOUSE) and self._warehouse_is_suspended():
            raise no_warehouse()
        for name, table in rewrite(expression, self._session, query, column_texts(command)).items():
            self._duck_conn.register(name, table)
        after = _text(expression)
        return expression, command if after == before else after

    def _warehouse_is_suspended(self) -> bool:
        return self._session.warehouse in self._session.local.catalog.suspended_warehouses

    def _show(self, answer: Answer) -> None:
        columns = {name: [row[place] for row in answer.rows] for place, name in enumerate(answer.columns)}
        schema = pa.schema([(name, answer.types.get(name, pa.string())) for name in answer.columns])
        self._duck_conn.register(_ANSWER, pa.table(columns, schema=schema))
        self._execute(sqlglot.parse_one(f"SELECT * FROM {_ANSWER}", read="duckdb"))  # noqa: S608

    @property
    def sfqid(self) -> str | None:
        """The query id that the client, the request headers and the service's log share."""
        return self._query_id

    def _file_result(self, query: Query) -> None:
        """File the result under our query id: fakesnow's id comes after execution, too late for headers."""
        results, fakesnows_id = self._conn.results_cache, super().sfqid
        if fakesnows_id in results:
            results[query.id] = results[fakesnows_id]
            if fakesnows_id not in self._session.local.queries:  # else RESULT_SCAN returned an older result
                del results[fakesnows_id]

    def _apply_to_session(self, expression: Any) -> None:
        """Apply what a new or dropped database or schema changes in the catalog and the session."""
        kind, name, session = _kind(expression), expression.find(exp.Table), self._session
        if kind == "DATABASE" and isinstance(expression, exp.Create):
            [database] = _stored(name)
            with self._duck_conn.cursor() as duck_conn:  # the session's connection holds the result
                duck_conn.execute(f'CREATE SCHEMA IF NOT EXISTS "{database}".{SCHEMA}')
            session.use(database, SCHEMA)
        elif kind == "SCHEMA" and (isinstance(expression, exp.Drop) or expression.args.get("replace")):
            database, schema = (str(session.database), *_stored(name))[-2:]
            session.local.catalog.drop_schema_objects(database, schema)
            if isinstance(expression, exp.Drop) and not session.has_schema(database, str(session.schema)):
                session.use(str(session.database), None)


def _refuse_unsupported(expression: Any) -> None:
    """Raises ProgrammingError for a statement that fakesnow might execute wrongly without an error."""
    if not _is_supported(expression):
        words = expression.sql(dialect="snowflake").split()
        raise unsupported(" ".join(words[:3]).upper())
    for function in expression.find_all(exp.Anonymous):
        if function.name.upper() == "RESULT_SCAN" and not _is_whole_result(expression):
            raise unsupported("RESULT_SCAN other than SELECT * FROM TABLE(RESULT_SCAN('<query id>'))")


def _is_supported(expression: Any) -> bool:
    if isinstance(expression, exp.Show):
        return str(expression.this).upper() in _SHOWN
    if not isinstance(expression, exp.Create | exp.Drop | exp.Alter):
        return isinstance(expression, _NEEDS_WAREHOUSE + _OTHERS)
    properties = expression.args.get("properties")
    return (
        _kind(expression) in _KINDS
        and not (expression.args.get("clone") and _kind(expression) != "TABLE")
        and all(
            type(each) is exp.Property or isinstance(each, _PROPERTIES)
            for each in (properties.expressions if properties else ())
        )
    )


def _is_whole_result(expression: Any) -> bool:
    """Whether a query with RESULT_SCAN selects the whole result, which fakesnow returns in any case."""
    clauses = {name for name, value in expression.args.items() if value}
    return isinstance(expression, exp.Select) and clauses <= {"expressions", "from_"} and expression.is_star


def _text(expression: Any) -> str:
    if isinstance(expression, exp.Describe) and isinstance(expression.this, exp.Query):
        return f"DESCRIBE {_text(expression.this)}"  # sqlglot writes DESCRIBE TABLE
    return str(expression.sql(dialect="snowflake"))


def _kind(expression: Any) -> str:
    return str(expression.args.get("kind") or "").upper()


def _stored(name: Any) -> list[str]:
    return [str(part.this) if part.quoted else str(part.this).upper() for part in name.parts]


def _translate(error: Exception) -> Error:
    if isinstance(error, Error):
        text = str(error.msg)
        if missing := _NO_FUNCTION.search(text):
            return unknown_function(missing[1].upper())
        return unsupported(text.partition(" not impl")[0]) if error.errno == _NOT_IMPLEMENTED else error
    if isinstance(error, duckdb.Error):
        return ProgrammingError(msg=str(error).split("\n")[0], errno=100000, sqlstate="22000")
    return unsupported(f"{type(error).__name__} {error}")
