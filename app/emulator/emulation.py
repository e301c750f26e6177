"""Snowflake over fakesnow and DuckDB: the cursor that executes statements, and the state of all sessions."""

import json
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import date, datetime
from decimal import Decimal
from functools import partial, wraps
from string import Template
from typing import Any, TypeAlias

import pyarrow as pa
from fakesnow import macros
from fakesnow.conn import FakeSnowflakeConnection
from fakesnow.cursor import FakeSnowflakeCursor
from fakesnow.dialect import parse_one
from fakesnow.instance import FakeSnow
from fakesnow.transforms import show
from snowflake.connector.errors import Error
from sqlglot import exp

from app.emulator.catalog import DATABASE, SCHEMA, Catalog, Stage
from app.emulator.errors import (
    already_exists,
    ambiguous,
    division_by_zero,
    invalid_identifier,
    malformed_json,
    no_warehouse,
    not_found,
    not_grouped,
    not_recognized,
    null_in_column,
    out_of_range,
    own_error,
    several_rows,
    syntax_error,
    too_long,
    unequal_branches,
    unknown_function,
    unparsed_time,
    unreadable,
    unset_bind,
    unsupported,
    wrong_count,
)
from app.emulator.expressions import stored_name
from app.emulator.grammar import (
    column_texts,
    inline_binds,
    inline_identifiers,
    inline_immediate,
    inline_variables,
    like_pattern,
    quote_stage_arguments,
)
from app.emulator.query import Answer, Queries, Query, status
from app.emulator.remote import RemoteService
from app.emulator.rewriting import (
    NEEDS_WAREHOUSE,
    find_overloads,
    quote_reserved,
    refuse_unsupported,
    rewrite,
)
from app.emulator.semantics import ISO_TIME, NUMBER, OTHER_TIMES
from app.emulator.semistructured import comparison_key, compute
from app.emulator.session import Session
from app.emulator.statements import answer_statement, is_own
from app.emulator.storage import Storage
from app.emulator.supported import refuse_unknown
from app.emulator.views import (
    expand_pivots,
    expand_views,
    keep_columns,
    note_creation,
    note_drop,
    take_creation,
    unchanged,
)
from app.emulator.wire import coerce, read_arguments
from app.names import quote_string

# DuckDB warns about the way in which fakesnow fetches Arrow results.
warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)

_ANSWER = "_LOCAL_ANSWER"
_SOURCE = "_LOCAL_SOURCE"
# Of the rows that FLATTEN of semistructured.py computes.
macros.FS_FLATTEN = Template("""
CREATE OR REPLACE MACRO ${catalog}._fs_flatten(input) AS TABLE
SELECT
    NULL::BIGINT AS SEQ, _local_row->>'k' AS KEY, _local_row->>'p' AS PATH,
    CAST(_local_row->>'i' AS BIGINT) AS INDEX, _local_row->'v' AS VALUE, _local_row->'t' AS THIS
FROM (SELECT UNNEST(CAST(input AS JSON[])) AS _local_row)
""")
# Snowpark's temporary objects: SCOPED TEMPORARY ones end with the session too.
_SCOPED = re.compile(r"^(\s*CREATE\s+(?:OR\s+REPLACE\s+)?)SCOPED\s+(?=TEMP)", re.IGNORECASE)

# sqlglot knows only BEGIN TRANSACTION.
_START = re.compile(r"^\s*START\s+(?=TRANSACTION\b)", re.IGNORECASE)
# Binds in places where DuckDB takes none.
_BOUND_NAME = re.compile(r"IDENTIFIER\s*\(\s*\?|=>\s*\?", re.IGNORECASE)


def _unreadable_time(kind: str, text: str) -> Error:
    """Snowflake reads more forms of dates and times than DuckDB."""
    if re.fullmatch(ISO_TIME, text) or not re.search("[0-9]", text):
        return not_recognized(kind.capitalize(), text)
    return unsupported(OTHER_TIMES)


def _function_lacks(name: str) -> Error:
    """The name is admitted, so DuckDB lacks what Snowflake's function does with these arguments."""
    return unsupported(f"{name.upper()} with these arguments")


def _unreadable_number(text: str) -> Error:
    """A text that is a number is too large for the type."""
    return out_of_range(text) if re.fullmatch(NUMBER, text) else not_recognized("Numeric", text)


def _unreadable_boolean(text: str) -> Error:
    if text.strip().lower() in {"on", "off"}:
        return unsupported(f"{text!r} as a BOOLEAN")
    return not_recognized("Boolean", text)


# Errors of DuckDB and sqlglot: Snowflake's own for what Snowflake refuses too, else a gap of the emulator.
_ERRORS: tuple[tuple[re.Pattern[str], Callable[..., Error]], ...] = tuple(
    (re.compile(pattern, re.DOTALL), make)
    for pattern, make in (
        (r"ProgrammingError: (\d{6}) \((\w{5})\): (.*)", own_error),
        (r"Catalog Error: (?:\w+ )?Function with name (\S+) does not exist", _function_lacks),
        (r"Catalog Error: Type with name (\w+) does not exist", lambda kind: unsupported(f"the type {kind}")),
        (r'Catalog Error: \w+ with name "?(.*?)"? does not exist', partial(not_found, "Object")),
        (r'Catalog Error: \w+ with name "?(.*?)"? already exists', already_exists),
        (r"Division by zero", division_by_zero),
        (r'Referenced (?:(?:update )?column|table) "?(.*?)"? (?:was )?not found', invalid_identifier),
        (r'Table ".*?" does not have a column (?:named|with name) "(.*?)"', invalid_identifier),
        (r"expected (\d+) columns but (\d+) values", wrong_count),
        (r"has (\d+) columns but (\d+) values", wrong_count),
        (r'Ambiguous reference to column name "(.*?)"', ambiguous),
        (r"More than one row returned by a subquery", several_rows),
        (r"Set operations can only apply to expressions with the same number", unequal_branches),
        (
            r"violation: duplicate key",
            lambda: unsupported("a second row of the same PRIMARY KEY or UNIQUE value"),
        ),
        (r"CHECK constraint failed", too_long),
        (r'column "?(.*?)"? must appear in the GROUP BY', not_grouped),
        (r"NOT NULL constraint failed", null_in_column),
        (r"Malformed JSON([^\n]*)", lambda text: malformed_json(text.strip())),
        (r"Could not convert string ['\"](.*?)['\"] to (?:U?INT|DECIMAL|DOUBLE)", _unreadable_number),
        (r"Could not convert string ['\"](.*?)['\"] to BOOL", _unreadable_boolean),
        (r'Casting value "(.*?)" to type DECIMAL', out_of_range),
        (r"Could not cast value (\S+) to DECIMAL", out_of_range),
        (r'Conversion Error: .*?(date|timestamp|time) field.*?"(.*?)"', _unreadable_time),
        (r'Could not parse string "(.*?)" according', unparsed_time),
        (rf"Invalid Input Error: {OTHER_TIMES}", lambda: unsupported(OTHER_TIMES)),
        (r"Overflow in|out of range for the destination type", lambda: unsupported("numbers of this size")),
        (r"Out of Range Error: (cannot take [\w ]*)", unsupported),
        (r"Values were not provided for", unset_bind),
        (r"Unknown TimeZone '(.*?)'", lambda zone: unsupported(f"the time zone {zone}")),
        (r"SELECT clause without selection list", lambda: syntax_error("a SELECT must have columns")),
        (r"Line (\d+), Col: (\d+)", unreadable),
        (r"[A-Z][A-Za-z]+(?: [A-Za-z]+)* Error: ", lambda: unsupported("this statement")),
    )
)
# fakesnow's error number for a feature that it does not implement.
NOT_IMPLEMENTED = 9999


class LocalCursor(FakeSnowflakeCursor):
    """fakesnow's cursor, with directory tables, signed URLs and external functions.

    It refuses a statement that fakesnow would execute only in part.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session, session.duck_conn)
        self._query_id: str | None = None
        self._session = session

    def execute(self, command: str, params: Any = None, *arguments: Any, **options: Any) -> "LocalCursor":
        """Raises only the connector's Error: after any other exception the client repeats the statement."""
        query = Query(self._session.context())
        self._query_id = query.id
        self._session.queries.start(query)
        try:
            command = inline_immediate(command, self._session.assigned)
            command = inline_variables(command, self._session.assigned)
            binds = options.get("binding_params")
            if isinstance(binds, tuple) and _BOUND_NAME.search(command):
                command = inline_binds(command, list(map(_constant, options.pop("binding_params"))))
            command = inline_identifiers(command)
            answer = answer_statement(command, self._session)
            if answer is not None:
                self._show(answer)
            else:
                self._run(command, query, params, *arguments, **options)
            self._file_result(query)
        except Exception as error:  # noqa: BLE001 - DuckDB, fakesnow and sqlglot raise many
            raise query.error or _translate(error) from None
        finally:
            self._session.queries.finish(query)
            self._session.last_query_id = query.id
        return self

    def _describe_only(self, command: str) -> list[Any]:
        """Raises ProgrammingError for a statement that fakesnow would execute instead of describe."""
        described = super()._describe_only(command)
        if described is None:
            raise unsupported("description of this statement")
        return described

    def _describe_last_sql(self) -> list[Any]:
        try:
            return super()._describe_last_sql()
        except Exception as error:  # noqa: BLE001 - as in execute
            raise _translate(error) from None

    def _transform(self, expression: Any, params: Any) -> Any:
        """Without fakesnow's notes on temporary tables, as those of MERGE: no transaction may hold both."""
        transformed = super()._transform(expression, params)
        if isinstance(transformed, exp.Create) and transformed.find(exp.TemporaryProperty):
            transformed.args.pop("table_comment", None)
            transformed.args.pop("text_lengths", None)
        return transformed

    def _run(self, command: str, query: Query, params: Any, *arguments: Any, **options: Any) -> None:
        """Let fakesnow execute a statement. Raises ProgrammingError if it is not supported."""
        command, session = _SCOPED.sub(r"\1", command), self._session
        command = _START.sub("BEGIN ", command)
        parsed = quote_stage_arguments(command)
        expression = parse_one(parsed)
        if isinstance(expression, exp.Set):
            return self._set_variables(expression, query)
        before = _text(expression)
        refuse_unsupported(expression)
        if isinstance(expression, exp.Show):
            return self._show_objects(expression)
        quote_reserved(expression)
        refuse_unknown(expression, parsed, lambda node: bool(find_overloads(node, session)))
        is_suspended = session.warehouse in session.catalog.suspended_warehouses
        if is_suspended and isinstance(expression, NEEDS_WAREHOUSE):
            raise no_warehouse()
        if (text := unchanged(expression, session)) is not None:
            return self._show(status(text))
        expand_pivots(expression, session)
        creation = take_creation(expression, session)
        permanent = _text(expression)
        expand_views(expression, session)
        tables, may_store = rewrite(expression, session, query, column_texts(command))
        for name, table in tables.items():
            session.duck_conn.register(name, table)
        after = _text(expression)
        if isinstance(expression, exp.Merge) and after != permanent:
            self._read_source(expression)
            after = _text(expression)
        is_kept = creation is not None and creation.kind == "VIEW" and not may_store
        if is_kept:
            keep_columns(expression)
            after = _text(expression)
        is_same = after == before and not isinstance(expression, NEEDS_WAREHOUSE)
        super().execute(command if is_same else after, params, *arguments, **options)
        if creation is not None:
            note_creation(creation, session, is_kept=is_kept)
        _apply_to_session(expression, session)
        _consume_streams(expression, session, query)
        return None

    def _set_variables(self, expression: Any, query: Query) -> None:
        """Keep the values of SET as constants."""
        assigned: dict[str, Any] = {}
        for item in expression.expressions:
            names, values = item.this.this, item.this.expression
            pairs = (
                zip(names.expressions, values.expressions, strict=True)
                if values.expressions
                else [(names, values)]
            )
            assigned |= {stored_name(name.this): value for name, value in pairs}
        values = [exp.alias_(value, f"v{number}") for number, value in enumerate(assigned.values())]
        self._run(exp.select(*values).sql(dialect="snowflake"), query, None)
        self._session.assigned |= dict(zip(assigned, map(_constant, self.fetchall()[0]), strict=True))
        self._show(status())

    def _read_source(self, merge: Any) -> None:
        """Put the rows of a MERGE's source in its place, as fakesnow might read the source several times."""
        source = merge.args["using"]
        super().execute(exp.select("*").from_(source.copy()).sql(dialect="snowflake"))
        self._session.duck_conn.register(_SOURCE, self._arrow_table)
        alias = exp.TableAlias(this=exp.to_identifier(source.alias_or_name))
        # A query, as fakesnow does not find the columns of ON by a table's alias.
        source.replace(exp.Subquery(this=exp.select("*").from_(_SOURCE), alias=alias))

    def _show(self, answer: Answer) -> None:
        columns = {name: [row[index] for row in answer.rows] for index, name in enumerate(answer.columns)}
        schema = pa.schema([(name, answer.types.get(name, pa.string())) for name in answer.columns])
        self._session.duck_conn.register(_ANSWER, pa.table(columns, schema=schema))
        super().execute(f"SELECT * FROM temp.main.{_ANSWER}")  # noqa: S608 - a constant

    def _show_objects(self, show: Any) -> None:
        """Apply the filters of a SHOW, most of which fakesnow ignores, and omit fakesnow's own objects."""
        filters = {name: show.args.pop(name, None) for name in ("like", "starts_with", "from_", "limit")}
        self._require_scope(show)
        super().execute(show.sql(dialect="snowflake"))
        found: Any = self._arrow_table
        pattern = like_pattern(filters["like"].name if filters["like"] else "%")
        start, after = ((filters[name] or exp.Literal.string("")).name for name in ("starts_with", "from_"))
        shown, key = [], "column_name" if show.name == "COLUMNS" else "name"
        for index, row in enumerate(found.to_pylist()):
            name = row.get(key, row.get("pk_table_name") or row.get("table_name", ""))
            is_own = name.startswith("_FS_") or row.get("pk_table_name") == ""
            if not is_own and pattern.fullmatch(name) and name.startswith(start) and name > after:
                shown.append(index)
        limit = int(filters["limit"].expression.name) if filters["limit"] else len(shown)
        self._session.duck_conn.register(_ANSWER, found.take(pa.array(shown[:limit], pa.int64())))
        super().execute(f"SELECT * FROM temp.main.{_ANSWER}")  # noqa: S608 - a constant

    def _require_scope(self, show: Any) -> None:
        """Raises ProgrammingError if the schema or table of IN does not exist."""
        scope, kind = show.args.get("scope"), show.args.get("scope_kind")
        names = tuple(map(stored_name, scope.parts)) if scope else ()
        if names and kind == "SCHEMA":
            self._session.require_schema(*self._session.qualify((*names, ""))[:2])
        elif names and kind == "TABLE" and not self._session.columns(*self._session.qualify(names)):
            raise not_found("Table", ".".join(names))

    @property
    def sfqid(self) -> str | None:
        """The query id that the client, the request headers and the service's log share."""
        return self._query_id

    def _file_result(self, query: Query) -> None:
        """File the result under our query id: fakesnow's id comes after execution, too late for headers."""
        queries, fakesnows_id = self._session.queries, super().sfqid
        if fakesnows_id in queries.results:
            queries.results[query.id] = queries.results[fakesnows_id]
            if fakesnows_id not in queries.finished:  # else RESULT_SCAN returned an older result
                del queries.results[fakesnows_id]


def _constant(value: Any) -> str:
    match value:
        case date():
            kind = "TIMESTAMP_NTZ" if isinstance(value, datetime) else "DATE"
            return f"{quote_string(str(value))}::{kind}"
        case None | bool() | int() | float() | Decimal():
            return str(exp.convert(value).sql(dialect="snowflake"))
        case str():
            return quote_string(value)
    raise unsupported(
        "a session variable other than of a number, a text, a BOOLEAN, a DATE or a TIMESTAMP_NTZ"
    )


def _apply_to_session(expression: Any, session: Session) -> None:
    """Apply what a new or dropped database or schema changes in the catalog and the session."""
    kind = str(expression.args.get("kind") or "").upper()
    is_drop = isinstance(expression, exp.Drop)
    if kind == "DATABASE" and isinstance(expression, exp.Create):
        [database] = _names(expression)
        with session.duck_conn.cursor() as duck_conn:  # the session's connection holds the result
            duck_conn.execute(f'CREATE SCHEMA IF NOT EXISTS "{database}".{SCHEMA}')
        session.use(database, SCHEMA)
    elif is_drop and kind in {"TABLE", "VIEW"}:
        note_drop(expression, session)
    elif kind == "SCHEMA" and (is_drop or expression.args.get("replace")):
        database, schema = (str(session.database), *_names(expression))[-2:]
        session.catalog.drop_schema_objects(database, schema)
        if is_drop and not session.has_schema(database, str(session.schema)):
            session.use(str(session.database), None)


def _consume_streams(expression: Any, session: Session, query: Query) -> None:
    """Move the offsets of the streams that a statement reads to change a table, when it commits."""
    if isinstance(expression, exp.Rollback):
        session.consumed = {}
    elif str(expression.args.get("kind")).upper() != "VIEW":
        session.consumed |= {} if isinstance(expression, exp.Query | exp.Describe) else query.streams
    if isinstance(expression, exp.Transaction | exp.Commit | exp.Rollback):
        session.in_transaction = isinstance(expression, exp.Transaction)
    is_ddl = isinstance(expression, exp.Create | exp.Drop | exp.Alter | exp.Commit)
    if is_ddl or (not session.in_transaction and session.commits_itself):
        session.commit_streams()


def _names(expression: Any) -> list[str]:
    """The name of the created or dropped object."""
    return [stored_name(part) for part in expression.find(exp.Table).parts]


def _text(expression: Any) -> str:
    if isinstance(expression, exp.Describe) and isinstance(expression.this, exp.Query):
        return f"DESCRIBE {_text(expression.this)}"  # sqlglot writes DESCRIBE TABLE
    return str(expression.sql(dialect="snowflake"))


def parse_statement(sql: str) -> Any:
    """The statement as fakesnow's server needs it, before its cursor executes it. Raises ProgrammingError."""
    try:
        return exp.Command(this="SHOW", expression=exp.Literal.string(sql)) if is_own(sql) else parse_one(sql)
    except Error as error:
        raise _translate(error) from None


def _translate(error: Exception) -> Error:
    text = str(error.msg if isinstance(error, Error) else error)
    for pattern, make in _ERRORS:
        if found := pattern.search(text):
            return make(*found.groups())
    if isinstance(error, Error) and error.errno != NOT_IMPLEMENTED:
        return error
    return unsupported("this statement")


class LocalConnection(Session):
    """A session that executes statements."""

    def cursor(self, cursor_class: Any = None) -> LocalCursor:  # noqa: ARG002 - fakesnow's signature
        return LocalCursor(self)


def _as_snowflake_shows(view: str) -> str:
    """A view of fakesnow's with the number of rows of tables, and without DuckDB's text of views."""
    named = "(d.database_name, d.schema_name, d.{0}_name) = (table_catalog, table_schema, {0}s.table_name)"
    rows = f"(SELECT estimated_size FROM duckdb_tables() d WHERE {named.format('table')})"  # noqa: S608 - constants
    text = f"(SELECT comment FROM duckdb_views() d WHERE {named.format('view')})"  # noqa: S608 - constants
    view = view.replace("then 'information_schema'", "then 'INFORMATION_SCHEMA'")
    view = view.replace("view if not exists", "or replace view").replace("0 as rows", f"{rows} as rows")
    return view.replace("view_definition as text", f"{text} as text")


# Takes the query and the values of each column, and returns one value for each row.
_OnColumns: TypeAlias = Callable[..., Sequence[str | None]]


class LocalSnowflake:
    """The emulator. `storage` signs the URLs that SQL returns, `uploads` those of clients' PUT and GET."""

    def __init__(self, storage_origin: str, uploads_origin: str, remote: RemoteService) -> None:
        fakesnow = FakeSnow()
        self.catalog = Catalog()
        self.queries = Queries(fakesnow.results_cache)
        self.storage = Storage(self.catalog, storage_origin)
        self.uploads = Storage(self.catalog, uploads_origin)
        self.remote = remote
        self._duck_conn = fakesnow.duck_conn
        for view in (
            show.SQL_CREATE_VIEW_SHOW_OBJECTS,
            show.SQL_CREATE_VIEW_SHOW_SCHEMAS,
            show.SQL_CREATE_VIEW_SHOW_TABLES,
            show.SQL_CREATE_VIEW_SHOW_VIEWS,
        ):
            self._duck_conn.execute(_as_snowflake_shows(view))
        # Snowflake has neither DuckDB's file readers nor its extensions.
        self._duck_conn.execute("SET enable_external_access = false")
        # An error, as in Snowflake, for a division by zero or the root of a negative number.
        self._duck_conn.execute("SET GLOBAL ieee_floating_point_ops = false")
        self._register_functions()
        # A connection of fakesnow creates its database if it is missing; LocalConnection does not.
        FakeSnowflakeConnection(self._duck_conn.cursor(), self.queries.results, DATABASE, SCHEMA)

    def connect(self, database: str | None, schema: str | None, *, autocommit: bool) -> LocalConnection:
        """A new session, in the user's default namespace unless given."""
        return LocalConnection(
            self._duck_conn.cursor(),
            self.catalog,
            self.queries,
            database or DATABASE,
            schema or SCHEMA,
            autocommit=autocommit,
        )

    def close(self) -> None:
        self.remote.close()
        self._duck_conn.close()
        self.catalog.close()

    def _register_functions(self) -> None:
        """Create the functions that rewritten statements call, with the query id as their first argument.

        Within a query they are constant, so that DuckDB evaluates equal expressions once.
        """
        for name in ("_local_call", "_local_call_each"):
            self._register(name, self._call, ["BIGINT", "VARCHAR"], "JSON", pa.json_(pa.string()))
        to_file = _by_row(self._to_file), ["VARCHAR", "VARCHAR", "BOOLEAN"]
        self._register("_local_to_file", *to_file, "JSON", pa.json_(pa.string()))
        self._register("_local_sign", _by_row(self._sign), ["VARCHAR", "VARCHAR", "BIGINT"])
        self._register("_local_file_url", _by_row(self._file_url), ["VARCHAR", "VARCHAR"])
        self._register("_local_scoped_url", _by_row(self._scoped_url), ["VARCHAR", "VARCHAR"])
        self._register("_local_key", _by_row(_comparison_key), ["BIGINT", "BOOLEAN", "VARCHAR"])
        self._create_function("_local_json", _compute, ["VARCHAR", "VARCHAR[]"], "JSON")

    def _register(
        self,
        name: str,
        function: _OnColumns,
        parameters: list[Any],
        returns: Any = "VARCHAR",
        extension: Any = None,
    ) -> None:
        @wraps(function)  # DuckDB inspects the signature
        def on_columns(query_ids: Any, *columns: Any) -> Any:
            query = self.queries.running.get(query_ids[0].as_py())
            if query is None:
                raise unknown_function(name.upper())
            try:
                values = function(query, *(column.to_pylist() for column in columns))
            except Error as error:
                query.fail(error)
                raise
            except Exception:  # other threads must not wait for its answers
                query.is_over.set()
                raise
            answers = pa.array(values, pa.string())
            return answers if extension is None else pa.ExtensionArray.from_storage(extension, answers)

        self._create_function(name, on_columns, ["VARCHAR", *parameters], returns)

    def _create_function(self, name: str, function: Any, parameters: list[Any], returns: Any) -> None:
        create: Any = self._duck_conn.create_function  # its stubs do not accept type names
        has_effects = name == "_local_call_each"
        create(
            name,
            function,
            parameters,
            returns,
            type="arrow",
            side_effects=has_effects,
            null_handling="special",
        )

    def _call(self, query: Query, indices: list[int], arguments: list[str]) -> list[str | None]:
        """Call the query's function of this index on each row of arguments, a JSON array.

        DuckDB may evaluate a call several times for the same rows, for example in a filter and in the result:
        later evaluations take the answers of the first.
        """
        function, keys = query.functions[indices[0]], [(indices[0], row) for row in arguments]
        with query.lock:
            new = [index for index, key in enumerate(keys) if key not in query.answers]
            query.answers |= {keys[index]: Future() for index in new}
        rows = [read_arguments(arguments[index]) for index in new]
        sent = [place for place, row in enumerate(rows) if not (function.is_strict and None in row)]
        url, sent_rows = self.catalog.url(function), [coerce(function, rows[place]) for place in sent]
        values = dict(zip(sent, self.remote.call(function, url, sent_rows, query), strict=True))
        for place, index in enumerate(new):
            if not query.answers[keys[index]].done():  # a row may occur twice
                query.answers[keys[index]].set_result(values.get(place))
        return [query.answer(key) for key in keys]

    def _sign(self, _: Query, stage: str, path: str, seconds: int) -> str:
        return self.storage.sign(self._stage(stage), path, seconds)

    def _file_url(self, _: Query, stage: str, path: str) -> str:
        return self._stage(stage).file_url(path)

    def _scoped_url(self, query: Query, stage: str, path: str) -> str:
        return self._stage(stage).scoped_url(query.id, path)

    def _to_file(self, query: Query, location: str, path: str, is_optional: bool) -> str | None:
        context = query.context
        try:
            namespace = context["CURRENT_DATABASE"], context["CURRENT_SCHEMA"]
            return json.dumps(self.catalog.file(location, path, namespace), separators=(",", ":"))
        except Error:
            if is_optional:
                return None
            raise

    def _stage(self, name: str) -> Stage:
        return self.catalog.stages[tuple(json.loads(name))]


def _comparison_key(query: Query, comparison: int, is_ordered: bool, value: str) -> str:
    kind, key = comparison_key(value, is_ordered=is_ordered)
    if query.kinds.setdefault(comparison, kind) != kind:
        raise unsupported("comparison of VARIANT values of different types; cast them")
    return key


def _compute(names: Any, arguments: Any) -> Any:
    """A semi-structured function on each row of arguments, which are NULL for an aggregate without rows."""
    rows = zip(names.to_pylist(), arguments.to_pylist(), strict=True)
    values = pa.array([compute(name, row or []) for name, row in rows], pa.string())
    return pa.ExtensionArray.from_storage(pa.json_(pa.string()), values)


def _by_row(function: Callable[..., str | None]) -> _OnColumns:
    """The function applied to each row; NULL for a row with a NULL."""

    @wraps(function)
    def on_columns(query: Query, *columns: list[Any]) -> list[str | None]:
        rows = zip(*columns, strict=True)
        return [None if None in row else function(query, *row) for row in rows]

    return on_columns
