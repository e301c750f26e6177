"""Refuses statements that fakesnow lacks, and rewrites what only Snowflake supports into SQL for DuckDB."""

import hashlib
import json
from functools import partial
from typing import Any

import pyarrow as pa
from fakesnow.dialect import parse_one
from sqlglot import exp
from sqlglot.dialects.snowflake import Snowflake

from app.emulator.assignments import convert_assigned
from app.emulator.catalog import ACCOUNT_HOST, ExternalFunction, Stage, StagedFile, Stream
from app.emulator.errors import invalid, invalid_arguments, not_found, unknown_function, unsupported
from app.emulator.expressions import stored_name, text_of, wrap
from app.emulator.grammar import STAGE_FUNCTIONS
from app.emulator.inference import TEXTS, Schema, Types
from app.emulator.loading import infer_schema
from app.emulator.query import Query
from app.emulator.semantics import COMPARISON_KEY, adapt
from app.emulator.semistructured import FUNCTIONS
from app.emulator.session import Session
from app.emulator.supported import check_names
from app.names import MAX_PARTS, parse_identifier, quote_identifier

DEFAULT_SIGNED_SECONDS = 3600
_INTERNAL = "_LOCAL_"
_SEMI_STRUCTURED = frozenset({"VARIANT", "OBJECT", "ARRAY"})
# The columns of a directory table with Snowflake's types.
DIRECTORY_TYPES = {
    "RELATIVE_PATH": "VARCHAR",
    "SIZE": "NUMBER",
    "LAST_MODIFIED": "TIMESTAMP_TZ",
    "MD5": "VARCHAR",
    "ETAG": "VARCHAR",
    "FILE_URL": "VARCHAR",
}
_STREAM_TYPES = DIRECTORY_TYPES | {
    "METADATA$ACTION": "VARCHAR",
    "METADATA$ISUPDATE": "BOOLEAN",
    "METADATA$ROW_ID": "VARCHAR",
}
_DIRECTORY_SCHEMA = pa.schema(
    [
        ("RELATIVE_PATH", pa.string()),
        ("SIZE", pa.int64()),
        ("LAST_MODIFIED", pa.timestamp("us", "UTC")),
        ("MD5", pa.string()),
        ("ETAG", pa.string()),
        ("FILE_URL", pa.string()),
    ]
)

# The types of functions that sqlglot does not know.
_RETURNS = dict.fromkeys(
    ("STRFTIME", "JSON_EXTRACT_STRING", COMPARISON_KEY, *STAGE_FUNCTIONS, "SYSTEM$ALLOWLIST"), "VARCHAR"
) | {"HASH": "BIGINT", "_LOCAL_JSON": "VARIANT", "TO_TIMESTAMP": "TIMESTAMP"}

_FIELDS_OF_FILES = ("CONTENT_TYPE", "ETAG", "RELATIVE_PATH", "SCOPED_FILE_URL", "STAGE", "STAGE_FILE_URL")
_RETURNS |= {f"FL_GET_{field}": "VARCHAR" for field in _FIELDS_OF_FILES}
_RETURNS |= {"FL_GET_SIZE": "BIGINT", "FL_IS_IMAGE": "BOOLEAN", "SYSTEM$STREAM_HAS_DATA": "BOOLEAN"}

NEEDS_WAREHOUSE = (
    exp.Query,
    exp.Values,
    exp.Insert,
    exp.Update,
    exp.Delete,
    exp.Merge,
    exp.TruncateTable,
)
_RESERVED_LIST = """
    ANALYZE ARRAY AT BOTH DEFAULT DESC DESCRIBE DO END FETCH FOREIGN FREEZE LAMBDA LEADING LIMIT OFFSET ONLY
    PRIMARY REFERENCES SHOW SIMILAR SUMMARIZE SYMMETRIC TRAILING VERBOSE WINDOW
"""
_RESERVED_WORDS = frozenset(_RESERVED_LIST.split())
# What else fakesnow executes as Snowflake does.
_OTHERS = (exp.Describe, exp.Set, exp.Transaction, exp.Commit, exp.Rollback)
# Only these kinds of object reach fakesnow: for some others it leaves macros behind.
_KINDS = frozenset({"TABLE", "VIEW", "DATABASE", "SCHEMA", "SEQUENCE"})
# Only these properties reach fakesnow: it creates a dynamic or external table as a plain one.
_PROPERTIES = (
    exp.ClusterProperty,
    exp.CopyGrantsProperty,
    exp.SchemaCommentProperty,
    exp.SecureProperty,
    exp.SequenceProperties,
    exp.TemporaryProperty,
    exp.TransientProperty,
)
_SHOWN = frozenset(
    {
        "TABLES",
        "VIEWS",
        "OBJECTS",
        "COLUMNS",
        "DATABASES",
        "SCHEMAS",
        "SEQUENCES",
        "PRIMARY KEYS",
        "UNIQUE KEYS",
        "IMPORTED KEYS",
    }
)


def refuse_unsupported(expression: Any) -> None:
    """Raises ProgrammingError for a statement that fakesnow might execute wrongly without an error."""
    _refuse_internal(expression)
    if not _is_supported(expression):
        words = expression.sql(dialect="snowflake").split()
        raise unsupported(" ".join(words[:5]).upper())


def _is_supported(expression: Any) -> bool:
    if isinstance(expression, exp.Show):
        return str(expression.this).upper() in _SHOWN
    if isinstance(expression, exp.Describe) and isinstance(expression.this, exp.Table):
        return str(expression.args.get("kind")).upper() in {"TABLE", "VIEW"}
    if not isinstance(expression, exp.Create | exp.Drop | exp.Alter):
        return isinstance(expression, NEEDS_WAREHOUSE + _OTHERS)
    kind, properties = str(expression.args.get("kind") or "").upper(), expression.args.get("properties")
    return (
        kind in _KINDS
        and not (expression.args.get("clone") and kind != "TABLE")
        and all(
            type(each) is exp.Property or isinstance(each, _PROPERTIES)
            for each in (properties.expressions if properties else ())
        )
    )


def quote_reserved(expression: Any) -> None:
    """Quote the names that are words of DuckDB's and not of Snowflake's."""
    for name in expression.find_all(exp.Identifier):
        if not name.quoted and name.name.upper() in _RESERVED_WORDS:
            name.set("this", name.name.upper())
            name.set("quoted", True)


def is_internal(name: str) -> bool:
    """Whether this is the name of a function or table that rewriting adds."""
    return name.upper().startswith(_INTERNAL)


def internal_types(name: str) -> dict[str, str]:
    """The columns of an internal table, with Snowflake's types."""
    return _STREAM_TYPES if name.startswith(f"{_INTERNAL}STREAM") else DIRECTORY_TYPES


def is_built_in(name: str) -> bool:
    """Whether a call of this name never reaches a function that a user created."""
    known = Snowflake.Parser.FUNCTIONS.keys() | STAGE_FUNCTIONS | FUNCTIONS.keys()
    return name in known or name.startswith(_INTERNAL)


def rewrite(expression: Any, session: Session, query: Query, names: list[str]) -> tuple[dict[str, Any], bool]:
    """Change the expression in place; return the tables that it reads, by name, and whether it may be stored.

    What calls a function or reads a stage belongs to this query and may not. `names` become the names of the
    columns without an alias.
    """
    columns = _selected(expression)
    names = names if len(names) == len(columns) else [each.sql(dialect="snowflake") for each in columns]
    is_named = [isinstance(column, exp.Alias | exp.Column | exp.Star) for column in columns]
    _try_timestamps(expression)
    for comment in expression.find_all(exp.SchemaCommentProperty):  # which fakesnow does not quote
        comment.set("this", exp.Literal.string(comment.this.name.replace("'", "''")))
    _name_positions(expression)
    _name_columns(expression)
    _limit_texts(expression)
    _add_intervals(expression)
    for order in expression.find_all(exp.Order):
        _order_by_all(order)
    if isinstance(expression, exp.Merge):
        _qualify_inserted(expression)
        _compute_in_source(expression)
    tables = _read_internal(expression, session, query)
    _adapt(expression, session, tables)
    before = expression.sql(dialect="snowflake")
    for node in list(expression.find_all(exp.Func)):
        if node.name == COMPARISON_KEY:
            node.set("expressions", [exp.Literal.string(query.id), *node.expressions])
        _replace_function(node, session, query)
    is_own = bool(tables) or expression.sql(dialect="snowflake") != before
    if is_own:
        _refuse_stored(expression)
    for column, name, has_name in zip(_selected(expression), names, is_named, strict=True):
        if not has_name:
            value = column.copy()
            if name.upper() in {"CURRENT_DATE", "CURRENT_TIMESTAMP"}:  # DuckDB would read it as its alias
                value = exp.cast(_call("NOW"), "DATE") if name.upper() == "CURRENT_DATE" else _call("NOW")
            column.replace(exp.alias_(value, name.upper(), quoted=True))
    return tables, not is_own


def _read_internal(expression: Any, session: Session, query: Query) -> dict[str, Any]:
    """Put internal tables in the place of directory tables and streams; return them by name."""
    tables: dict[str, Any] = {}
    for node in list(expression.find_all(exp.DirectoryStage)):
        name = f"{_INTERNAL}DIRECTORY_{len(tables)}"
        tables[name] = _directory_table(_whole_stage(node.this.name, session))
        node.replace(exp.to_identifier(name))
    for node in list(expression.find_all(exp.TableFromRows)):
        if node.this.name.upper() == "RESULT_SCAN":
            name = f"{_INTERNAL}RESULT_{len(tables)}"
            tables[name] = session.result(_scanned_query(node.this, session))
            node.replace(exp.Table(this=exp.to_identifier(name), alias=node.args.get("alias")))
        elif node.this.name.upper() == "INFER_SCHEMA":
            given = {each.this.name.upper(): each.expression.name for each in node.this.expressions}
            name = f"{_INTERNAL}SCHEMA_{len(tables)}"
            tables[name] = infer_schema(given.get("LOCATION", ""), session)
            node.replace(exp.Table(this=exp.to_identifier(name), alias=node.args.get("alias")))
    for table in list(expression.find_all(exp.Table)):
        if (stream := _stream_of(table, session)) is not None:
            name = f"{_INTERNAL}STREAM_{len(tables)}"
            tables[name] = _changes(stream)
            query.streams[stream.name] = tuple(stream.stage.directory)
            alias = table.args.get("alias") or exp.TableAlias(this=table.this.copy())
            table.replace(exp.Table(this=exp.to_identifier(name), alias=alias))
    return tables


def _scanned_query(call: Any, session: Session) -> str:
    [query_id] = call.expressions or [exp.Null()]
    if query_id.sql().upper() == "LAST_QUERY_ID()":
        return session.last_query_id
    if not query_id.is_string:
        raise unsupported("RESULT_SCAN of anything but a query id or LAST_QUERY_ID()")
    return str(query_id.name)


def _adapt(expression: Any, session: Session, tables: dict[str, Any]) -> None:
    schema = _known_columns(expression, session, tables)
    check_names(expression, schema)
    namespace = (session.database, session.schema)

    def get_types() -> Types:
        return Types(expression, schema, namespace, lambda node: _returned_type(node, session))

    if expression.find(exp.ToFile):
        _expand_file_functions(expression, session, get_types())
    if isinstance(expression, exp.Insert | exp.Update | exp.Merge):
        table: Any = expression.find(exp.Table)
        database, schema_name, name = session.qualify(tuple(map(stored_name, table.parts)))
        columns = schema.get(database, {}).get(schema_name, {}).get(name, {})
        convert_assigned(expression, columns, get_types())
    adapt(expression, get_types)


def _expand_file_functions(expression: Any, session: Session, types: Types) -> None:
    """Put the expression of a function in SQL in the place of its call with a FILE."""
    for node in list(expression.find_all(exp.Anonymous)):
        overloads = find_overloads(node, session)
        if not overloads or not any(types.kind(argument) == "FILE" for argument in node.expressions):
            continue
        fitting = [each for each in overloads if each.is_sql and len(each.arguments) == len(node.expressions)]
        if not fitting:
            known = ", ".join(function.signature for function in overloads)
            raise invalid_arguments(overloads[0].name[-1], "FILE", known)
        names = [name for name, _ in fitting[0].arguments]
        given = dict(zip(names, node.expressions, strict=True))
        [value] = _selected(parse_one(f"SELECT {fitting[0].body}"))
        body = exp.paren(value, copy=False)
        for column in list(body.find_all(exp.Column)):
            if (name := stored_name(column.this)) in given:
                column.replace(given[name].copy())
        _qualified_name(node)[1].replace(body)


def _try_timestamps(expression: Any) -> None:
    """TRY_TO_TIMESTAMP of anything but a constant, which sqlglot does not know, as TRY_CAST."""
    for node in list(expression.find_all(exp.Anonymous)):
        if node.name.upper() in {"TRY_TO_TIMESTAMP", "TRY_TO_TIMESTAMP_NTZ"} and len(node.expressions) == 1:
            kind, text = exp.DataType.build("TIMESTAMP"), node.expressions[0]
            node.replace(exp.TryCast(this=text, to=kind, requires_string=True))  # else written as CAST


def _name_positions(expression: Any) -> None:
    """Name the columns of VALUES, and read $1 as the first of them: DuckDB reads a parameter."""
    for values in list(expression.find_all(exp.Values)):
        alias = values.args.get("alias")
        if alias and not alias.args.get("columns") and values.expressions:
            count = len(values.expressions[0].expressions)
            alias.set("columns", [exp.to_identifier(f"COLUMN{number}") for number in range(1, count + 1)])
        query = values.parent.parent if isinstance(values.parent, exp.From) else None
        if isinstance(query, exp.Select) and not values.alias and values.expressions:
            count = len(values.expressions[0].expressions)
            names = [f"{_INTERNAL}COLUMN_{number}" for number in range(1, count + 1)]
            positions = [node for node in query.find_all(exp.Parameter) if str(node.name).isdecimal()]
            for node in positions:
                if not 1 <= int(node.name) <= count:
                    raise invalid(f"invalid column position ${node.name}")
                node.replace(exp.column(names[int(node.name) - 1]))
            if positions:
                columns = [exp.to_identifier(name) for name in names]
                table = exp.TableAlias(this=exp.to_identifier(f"{_INTERNAL}VALUES"), columns=columns)
                values.set("alias", table)


def _name_columns(expression: Any) -> None:
    """Name the columns without an alias of queries in FROM and WITH, which DuckDB names otherwise."""
    for select in expression.find_all(exp.Select):
        parent = select.parent
        if isinstance(parent, exp.CTE) or (
            isinstance(parent, exp.Subquery) and isinstance(parent.parent, exp.From)
        ):
            for column in select.selects:
                if not isinstance(column, exp.Alias | exp.Column | exp.Star):
                    name = column.sql(dialect="snowflake").upper()
                    wrap(column, partial(exp.alias_, alias=name, quoted=True, copy=False))


def _order_by_all(order: Any) -> None:
    """ORDER BY ALL as the positions of all columns."""
    select = order.parent
    if [each.sql().upper() for each in order.find_all(exp.Column)] != ["ALL"] or not isinstance(
        select, exp.Query
    ):
        return
    if select.is_star:
        raise unsupported("ORDER BY ALL of SELECT *")
    [ordered] = order.expressions
    numbers = [exp.Literal.number(place) for place in range(1, len(select.selects) + 1)]
    order.set("expressions", [exp.Ordered(**(ordered.args | {"this": number})) for number in numbers])


def _add_intervals(expression: Any) -> None:
    """`date + INTERVAL '1 day'` as DATEADD, which keeps a DATE."""
    for interval in list(expression.find_all(exp.Interval)):
        operation, unit = interval.parent, interval.args.get("unit")
        if not isinstance(operation, exp.Add | exp.Sub) or unit is None or not interval.this.name.isdecimal():
            raise unsupported(
                f"{text_of(operation)}: an INTERVAL other than added or subtracted, in one unit"
            )
        date = operation.this if operation.expression is interval else operation.expression
        sign = "-" if isinstance(operation, exp.Sub) else ""
        [added] = _selected(parse_one(f"SELECT DATEADD({unit.name}, {sign}{interval.this.name}, _)"))
        added.find(exp.Column).replace(date)
        operation.replace(added)


def _limit_texts(expression: Any) -> None:
    """Let DuckDB check the length of a VARCHAR(n)."""
    if isinstance(expression, exp.Create):
        for column in expression.find_all(exp.ColumnDef):
            kind = column.args.get("kind")
            if kind is not None and kind.this.name in TEXTS and kind.expressions:
                length = exp.Length(this=exp.column(column.this.copy()))
                check = exp.CheckColumnConstraint(
                    this=exp.LTE(this=length, expression=kind.expressions[0].this.copy())
                )
                column.append("constraints", exp.ColumnConstraint(kind=check))


def _qualify_inserted(merge: Any) -> None:
    """Qualify the columns that MERGE inserts, which are its source's; DuckDB calls them ambiguous."""
    if not merge.args["using"].alias_or_name:
        merge.args["using"].set("alias", exp.TableAlias(this=exp.to_identifier(f"{_INTERNAL}MERGED")))
    source = merge.args["using"].alias_or_name
    for insert in merge.args["whens"].find_all(exp.Insert):
        for column in insert.expression.find_all(exp.Column):
            if not column.table:
                column.set("table", exp.to_identifier(source))


def _compute_in_source(merge: Any) -> None:
    """Compute in the USING query what MERGE computes: fakesnow passes on only the columns of values."""
    source: Any = merge.args["using"]
    computed: list[Any] = []
    values = [each.expression for update in merge.find_all(exp.Update) for each in update.expressions]
    values += [value for insert in merge.find_all(exp.Insert) for value in insert.expression.expressions]
    for value in values:
        if isinstance(value, exp.Column | exp.Literal | exp.Null | exp.Boolean):
            continue
        if any(column.table.upper() != source.alias_or_name.upper() for column in value.find_all(exp.Column)):
            raise unsupported(f"{text_of(value)} in MERGE: qualify columns of the source, and use only those")
        name = f"{_INTERNAL}VALUE_{len(computed)}"
        value.replace(exp.column(name, table=source.alias_or_name))
        computed.append(exp.alias_(value, name))
    if computed:
        query = source.this if isinstance(source, exp.Subquery) else exp.select("*")
        names = [each.args.get("alias") or each.this for each in query.selects]
        columns = [exp.Star()] if query.is_star else [exp.column(each.copy()) for each in names]
        alias = exp.TableAlias(this=exp.to_identifier(source.alias_or_name))
        source.replace(exp.Subquery(this=exp.select(*columns, *computed).from_(source.copy()), alias=alias))


def _known_columns(expression: Any, session: Session, tables: dict[str, Any]) -> Schema:
    """The columns of the tables in the statement. Raises ProgrammingError for a name in another case."""
    schema: Schema = {}
    for table in expression.find_all(exp.Table):
        parts = tuple(map(stored_name, table.parts)) if isinstance(table.this, exp.Identifier) else ()
        if not parts or (len(parts) < MAX_PARTS and not session.schema):
            continue
        database, schema_name, name = session.qualify(parts)
        for found, column, kind in session.columns(database, schema_name, name):
            if found != name:
                raise not_found("Object", ".".join(parts))
            columns = schema.setdefault(database, {}).setdefault(schema_name, {}).setdefault(name, {})
            columns[column] = exp.DataType.build("VARIANT" if kind == "JSON" else kind, dialect="duckdb")
        if name in tables:
            columns = schema.setdefault(database, {}).setdefault(schema_name, {}).setdefault(name, {})
            columns |= {field.name: _type_of(field.type) for field in tables[name].schema}
    return schema


def _type_of(kind: Any) -> Any:
    """The type of an Arrow column; UNKNOWN for those whose type matters to no rule."""
    names = {pa.string(): "VARCHAR", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN"}
    if pa.types.is_integer(kind):
        return exp.DataType.build("BIGINT")
    if pa.types.is_decimal(kind):
        return exp.DataType.build(f"DECIMAL({kind.precision}, {kind.scale})")
    if pa.types.is_timestamp(kind):
        return exp.DataType.build("TIMESTAMPTZ" if kind.tz else "TIMESTAMP")
    is_json = getattr(kind, "extension_name", "") == "arrow.json"
    return exp.DataType.build("VARIANT" if is_json else names.get(kind, "UNKNOWN"), dialect="snowflake")


def _returned_type(node: Any, session: Session) -> str | None:
    """The type of a function's result, None if unknown."""
    overloads = find_overloads(node, session)
    return overloads[0].returns if overloads else _RETURNS.get(node.name.upper())


def find_overloads(node: Any, session: Session) -> list[ExternalFunction]:
    """The external functions of the name that the call uses."""
    names, _ = _qualified_name(node)
    if not session.schema and len(names) == 1:
        return []
    return session.catalog.overloads(session.qualify(names))


def _refuse_internal(expression: Any) -> None:
    """Raises ProgrammingError for internal functions and tables, which do not check their arguments."""
    for node in expression.find_all(exp.Anonymous, exp.Table):
        if is_internal(node.name):
            raise (
                unknown_function(node.name)
                if isinstance(node, exp.Anonymous)
                else not_found("Object", node.name)
            )


def _refuse_stored(expression: Any) -> None:
    """Raises ProgrammingError for a default: it would store values of this query only."""
    makes_rows = isinstance(expression, exp.Create) and str(expression.args["kind"]).upper() in {
        "TABLE",
        "VIEW",
    }
    if isinstance(expression, exp.Create | exp.Alter) and not (makes_rows and expression.expression):
        kind = str(expression.args["kind"]).upper()
        raise unsupported(f"{kind} with context functions, stages or external functions")


def _selected(expression: Any) -> list[Any]:
    holder = "this" if isinstance(expression, exp.Describe) else "expression"
    query = expression if isinstance(expression, exp.Query) else expression.args.get(holder)
    return list(query.selects) if isinstance(query, exp.Query) else []


def _replace_function(node: Any, session: Session, query: Query) -> None:
    name = node.name.upper() if isinstance(node, exp.Anonymous) else node.sql_name().upper()
    if name in STAGE_FUNCTIONS:
        node.replace(_stage_function(name, node.expressions, session, query))
    elif name in {"SYSTEM$ALLOWLIST", "SYSTEM$ALLOWLIST_PRIVATELINK"} and not node.expressions:
        node.replace(exp.Literal.string(_allowlist(".privatelink" if "PRIVATE" in name else "")))
    elif isinstance(node, exp.ToFile):
        path, is_optional = (
            node.args.get("path") or exp.Literal.string(""),
            exp.convert(bool(node.args.get("safe"))),
        )
        node.replace(_call(f"{_INTERNAL}TO_FILE", exp.Literal.string(query.id), node.this, path, is_optional))
    elif name.startswith("FL_") and name in _RETURNS and len(node.expressions) == 1:
        node.replace(_field_of_file(name, node.expressions[0]))
    elif name == "LAST_QUERY_ID" and not node.expressions:
        node.replace(exp.Literal.string(session.last_query_id))
    elif name == "SYSTEM$STREAM_HAS_DATA":
        node.replace(exp.convert(_has_data(node, session)))
    elif name == "SYSTEM$CANCEL_ALL_QUERIES":  # a session runs one statement at a time: this one
        node.replace(exp.Literal.string("0 cancelled."))
    elif name in query.context and not node.expressions:
        value = query.context[name]
        node.replace(exp.Literal.string(value) if value else exp.Null())
    elif isinstance(node, exp.Anonymous):
        _replace_external(node, session, query)


def _has_data(call: Any, session: Session) -> bool:
    if len(call.expressions) != 1 or not call.expressions[0].is_string:
        raise invalid("SYSTEM$STREAM_HAS_DATA takes the name of a stream.")
    name = session.qualify(parse_identifier(call.expressions[0].name))
    if name not in session.catalog.streams:
        raise not_found("Stream", quote_identifier(*name))
    return bool(session.catalog.streams[name].changes())


def _stage_function(name: str, arguments: list[Any], session: Session, query: Query) -> Any:
    most = 2 if name == "BUILD_STAGE_FILE_URL" else 3
    if not 2 <= len(arguments) <= most or not arguments[0].is_string:
        raise invalid(f"Invalid arguments for function '{name}': expected (@stage, relative_path, …).")
    stage = _whole_stage(arguments[0].name, session)
    query_id, stage_name = exp.Literal.string(query.id), exp.Literal.string(json.dumps(stage.name))
    path, *rest = arguments[1:]
    if name == "GET_PRESIGNED_URL":
        seconds = rest[0] if rest else exp.Literal.number(DEFAULT_SIGNED_SECONDS)
        return _call(f"{_INTERNAL}SIGN", query_id, stage_name, path, seconds)
    if name == "BUILD_STAGE_FILE_URL":
        return _call(f"{_INTERNAL}FILE_URL", query_id, stage_name, path)
    return _call(f"{_INTERNAL}SCOPED_URL", query_id, stage_name, path)


def _field_of_file(function: str, file: Any) -> Any:
    field = function.removeprefix("FL_GET_") if function != "FL_IS_IMAGE" else "CONTENT_TYPE"
    text = _call("JSON_EXTRACT_STRING", file, exp.Literal.string(f"$.{field}"))
    if function == "FL_IS_IMAGE":
        return exp.Coalesce(
            this=exp.StartsWith(this=text, expression=exp.Literal.string("image/")), expressions=[exp.false()]
        )
    return exp.cast(text, "BIGINT", copy=False) if field == "SIZE" else text


def _whole_stage(location: str, session: Session) -> Stage:
    stage, path = session.find_stage(location)
    if path:
        raise invalid(f"The stage must be given without a path. Received: {location}.")
    return stage


def _replace_external(node: Any, session: Session, query: Query) -> None:
    names, outermost = _qualified_name(node)
    overloads = find_overloads(node, session)
    if not overloads and names[0] == "SNOWFLAKE":
        raise unsupported(".".join(names))
    if not overloads and len(names) > 1:
        raise unknown_function(".".join(names))
    if not overloads:
        return  # a built-in function
    function = _choose(overloads, node.expressions)
    session.catalog.url(function)
    arguments = [
        _call("HEX", argument) if kind == "BINARY" else argument
        for argument, kind in zip(node.expressions, function.argument_types, strict=True)
    ]
    call = _call(
        f"{_INTERNAL}CALL_EACH" if _is_constant(node) else f"{_INTERNAL}CALL",
        exp.Literal.string(query.id),
        exp.Literal.number(query.index_of(function)),
        _call("JSON_ARRAY", *arguments),
    )
    outermost.replace(_convert(call, function.returns, is_cast=_is_cast(outermost)))


def _is_constant(call: Any) -> bool:
    """Whether DuckDB would call once for all rows. Windows accept no function with side effects."""
    select = call.find_ancestor(exp.Select)
    return not call.find(exp.Column) and bool(
        select and select.args.get("from_") and not select.find(exp.Window)
    )


def _qualified_name(node: Any) -> tuple[tuple[str, ...], Any]:
    """The parts of a function's name as stored, and the node of the whole qualified name."""
    dot = node.parent
    if not isinstance(dot, exp.Dot) or dot.expression is not node:
        return (stored_name(node.this),), node
    return tuple(map(stored_name, [*_parts(dot.this), node.this])), dot


def _parts(name: Any) -> list[Any]:
    return [*_parts(name.this), name.expression] if isinstance(name, exp.Dot) else [name]


def _choose(overloads: list[ExternalFunction], arguments: list[Any]) -> ExternalFunction:
    """The overload with this number of arguments: their types are known only while DuckDB runs."""
    possible = [each for each in overloads if len(each.arguments) == len(arguments) and not each.is_sql]
    if not possible:
        given = ", ".join(argument.sql(dialect="snowflake") for argument in arguments)
        known = ", ".join(function.signature for function in overloads)
        raise invalid_arguments(overloads[0].name[-1], given, known)
    if len(possible) > 1:
        raise unsupported(f"overloads of {overloads[0].name[-1]} with the same number of arguments")
    return possible[0]


def _convert(call: Any, returns: str, *, is_cast: bool) -> Any:
    """The call itself for a semi-structured type; for other types and casts, the value in its JSON."""
    if returns in _SEMI_STRUCTURED and not is_cast:
        return call
    text = _call("JSON_EXTRACT_STRING", call, exp.Literal.string("$"))
    if is_cast:
        return text
    return exp.cast(text, exp.DataType.build(returns, dialect="snowflake"))


def _is_cast(node: Any) -> bool:
    """Whether the value is cast to a type that is not semi-structured."""
    cast = node.parent
    return isinstance(cast, exp.Cast) and cast.to.sql(dialect="snowflake").upper() not in _SEMI_STRUCTURED


def _call(name: str, *arguments: Any) -> Any:
    return exp.Anonymous(this=name, expressions=list(arguments))


def _directory_table(stage: Stage) -> Any:
    if not stage.has_directory:
        raise invalid(
            f"Stage {stage} has no directory table: run ALTER STAGE … SET DIRECTORY = (ENABLE = TRUE)."
        )
    rows = [_file_row(stage, file) for file in stage.directory]
    return pa.Table.from_pylist(rows, schema=_DIRECTORY_SCHEMA)


def _stream_of(table: Any, session: Session) -> Stream | None:
    streams = session.catalog.streams
    is_named = bool(streams) and isinstance(table.this, exp.Identifier) and not is_internal(table.name)
    return streams.get(session.qualify(tuple(map(stored_name, table.parts)))) if is_named else None


def _changes(stream: Stream) -> Any:
    stage, schema = stream.stage, _DIRECTORY_SCHEMA
    for name, kind in (("ACTION", pa.string()), ("ISUPDATE", pa.bool_()), ("ROW_ID", pa.string())):
        schema = schema.append(pa.field(f"METADATA${name}", kind))
    rows = [
        {
            **_file_row(stage, file),
            "METADATA$ACTION": action,
            "METADATA$ISUPDATE": is_update,
            "METADATA$ROW_ID": hashlib.sha1(f"{stage}/{file.relative_path}".encode()).hexdigest(),  # noqa: S324
        }
        for file, action, is_update in stream.changes()
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def _file_row(stage: Stage, file: StagedFile) -> dict[str, Any]:
    return {
        "RELATIVE_PATH": file.relative_path,
        "SIZE": file.size,
        "LAST_MODIFIED": file.last_modified,
        "MD5": file.md5,
        "ETAG": file.etag,
        "FILE_URL": stage.file_url(file.relative_path),
    }


def _allowlist(label: str) -> str:
    host = ACCOUNT_HOST.replace(".", f"{label}.", 1)
    return json.dumps([{"type": "SNOWFLAKE_DEPLOYMENT", "host": host, "port": 443}])
