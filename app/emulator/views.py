"""Views over stages and functions, and temporary tables and views.

DuckDB cannot hold a view whose query calls the service: the emulator keeps its text, and puts the query in
place of the view wherever a statement reads it. DuckDB holds an empty view of the same columns, for SHOW and
DESCRIBE. Unqualified names in the view are those of the session that created it.

DuckDB's temporary objects have no database. Here they are permanent ones that end with their session; other
sessions see them too.

Source: Snowflake documentation, CREATE VIEW, "Working with temporary and transient tables".
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

from fakesnow.dialect import parse_one
from sqlglot import exp

from app.emulator.catalog import Name
from app.emulator.errors import unsupported
from app.emulator.expressions import stored_name
from app.emulator.grammar import quote_stage_arguments
from app.emulator.rewriting import internal_types, is_internal
from app.emulator.session import Session
from app.names import quote_identifier, quote_string


class Creation(NamedTuple):
    """A CREATE TABLE or CREATE VIEW."""

    name: Name
    kind: str
    query: Any
    """The parsed query of a view before any rewriting, None of a table."""
    is_temporary: bool
    text: str


def take_creation(expression: Any, session: Session) -> Creation | None:
    """Describe the creation and make it a permanent one. Raises ProgrammingError if it would hide another."""
    kind = str(expression.args.get("kind") or "").upper()
    if not isinstance(expression, exp.Create) or kind not in {"TABLE", "VIEW"}:
        return None
    name = _name_of(expression.find(exp.Table), session)
    text, temporary = expression.sql(dialect="snowflake"), expression.find(exp.TemporaryProperty)
    if temporary is not None:
        if name not in session.temporary and _exists(name, session):
            raise unsupported("a temporary object with the name of a permanent one")
        temporary.pop()
    query = expression.expression.copy() if kind == "VIEW" and expression.expression else None
    if query is not None and isinstance(expression.this, exp.Schema):
        names = [
            each.this if isinstance(each, exp.ColumnDef) else each for each in expression.this.expressions
        ]
        columns = [exp.to_identifier(stored_name(each), quoted=True) for each in names]
        named = exp.TableAlias(this=exp.to_identifier("_VIEW"), columns=columns)
        query = exp.select("*").from_(exp.Subquery(this=query, alias=named))
    return Creation(name, kind, query, temporary is not None, text)


def unchanged(expression: Any, session: Session) -> str | None:
    """What Snowflake answers to a CREATE IF NOT EXISTS or DROP IF EXISTS that changes nothing."""
    kind = str(expression.args.get("kind") or "").upper()
    if not expression.args.get("exists") or kind not in {"TABLE", "VIEW", "SCHEMA", "DATABASE"}:
        return None
    parts = tuple(stored_name(part) for part in expression.find(exp.Table).parts)
    if kind == "DATABASE":
        name, exists = parts, session.has_schema(*parts)
    elif kind == "SCHEMA":
        name = session.qualify((*parts, ""))[:2]
        exists = session.has_schema(*name)
    else:
        name = session.qualify(parts)
        exists = _exists(name, session)
    if isinstance(expression, exp.Create) and exists:
        return f"{name[-1]} already exists, statement succeeded."
    if isinstance(expression, exp.Drop) and not exists:
        return f"Drop statement executed successfully ({name[-1]} already dropped)."
    return None


def expand_pivots(expression: Any, session: Session) -> None:
    """PIVOT as one aggregate for each value, grouped by the other columns, as Snowflake defines it."""
    for pivot in list(expression.find_all(exp.Pivot)):
        source, fields = pivot.parent, pivot.args.get("fields") or [None]
        aggregate = pivot.expressions[0].unalias()
        names = _columns_of(source, session)
        if (
            not isinstance(fields[0], exp.In)
            or len(source.args["pivots"]) + len(fields) + len(pivot.expressions) > 3
            or not isinstance(aggregate, exp.Count | exp.Sum | exp.Avg | exp.Min | exp.Max)
            or not isinstance(aggregate.this, exp.Column)
            or not all(isinstance(value, exp.Literal | exp.PivotAlias) for value in fields[0].expressions)
            or not names
        ):
            raise unsupported(" ".join(pivot.sql(dialect="snowflake").split()))
        pivoted = []
        for value, name in zip(fields[0].expressions, pivot.args["columns"], strict=True):
            is_value = exp.EQ(this=fields[0].this.copy(), expression=value.unalias().copy())
            each = aggregate.copy()
            each.set("this", exp.If(this=is_value, true=aggregate.this.copy()))
            pivoted.append(exp.alias_(each, name.copy()))
        used = {stored_name(column.this) for column in (aggregate.this, fields[0].this)}
        others = [exp.column(exp.to_identifier(name, quoted=True)) for name in names if name not in used]
        table = source.copy()
        table.set("pivots", None)
        query = exp.select(*others, *pivoted).from_(table).group_by(*others)
        source.replace(exp.Subquery(this=query, alias=pivot.args.get("alias")))


def _columns_of(source: Any, session: Session) -> list[str]:
    """The names of a table's or a query's columns, [] if unknown."""
    query = source.this
    if isinstance(source, exp.Table):
        ctes = {stored_name(each.args["alias"].this): each for each in source.root().find_all(exp.CTE)}
        cte = None if source.db else ctes.get(stored_name(source.this))
        if cte is None:
            return [name for _, name, _ in session.columns(*_name_of(source, session))]
        query = None if cte.args["alias"].columns else cte.this
    is_known = isinstance(query, exp.Select) and not query.is_star
    return [stored_name(each.args.get("alias") or each.this) for each in query.selects] if is_known else []


def expand_views(expression: Any, session: Session) -> None:
    """Put the queries of kept views in place of their names, also within each other."""
    while tables := [table for table in _sources(expression) if _kept(table, session)]:
        for table in tables:
            text, database, schema = session.catalog.views[_name_of(table, session)]
            if (database, schema) != (session.database, session.schema):
                raise unsupported(
                    f"a view over stages or functions outside {quote_identifier(database, schema)}"
                )
            query, alias = parse_one(quote_stage_arguments(text)), table.args.get("alias")
            alias = alias or exp.TableAlias(this=exp.to_identifier(table.name, quoted=table.this.quoted))
            table.replace(exp.Subquery(this=query.unnest(), alias=alias))


def keep_columns(expression: Any) -> None:
    """Replace what the rewritten query of a view reads by NULLs of the same types, and no rows."""
    for node in list(expression.find_all(exp.Anonymous)):
        if is_internal(node.name):
            node.replace(_null("VARCHAR" if node.name.endswith(("SIGN", "URL")) else "VARIANT"))
    for table in list(expression.find_all(exp.Table)):
        if is_internal(table.name):
            columns = [exp.alias_(_null(kind), name) for name, kind in internal_types(table.name).items()]
            empty = exp.select(*columns).where(exp.false())
            table.replace(exp.Subquery(this=empty, alias=table.args.get("alias")))


def _null(kind: str) -> Any:
    return exp.cast(exp.Null(), exp.DataType.build(kind, dialect="snowflake"))


def note_creation(creation: Creation, session: Session, *, is_kept: bool) -> None:
    """Record a table or view that now exists."""
    if is_kept:
        text = creation.query.sql(dialect="snowflake")
        session.catalog.views[creation.name] = (text, str(session.database), str(session.schema))
    else:
        session.catalog.views.pop(creation.name, None)
    if creation.kind == "VIEW":
        text = quote_string(creation.text)
        session.duck_conn.execute(f"COMMENT ON VIEW {quote_identifier(*creation.name)} IS {text}")
    if creation.is_temporary:
        session.temporary[creation.name] = creation.kind


def note_drop(expression: Any, session: Session) -> None:
    """Forget a dropped table or view."""
    name = _name_of(expression.find(exp.Table), session)
    session.catalog.views.pop(name, None)
    session.temporary.pop(name, None)


def _sources(expression: Any) -> Iterator[Any]:
    """The tables that a statement reads, except those that its WITH clauses define."""
    described = expression.this if isinstance(expression, exp.Describe) else expression
    parts = ("expression", "using", "from_", "where")
    roots: list[Any] = (
        [described] if isinstance(described, exp.Query) else [expression.args.get(part) for part in parts]
    )
    defined = {each.alias.upper() for each in expression.find_all(exp.CTE)}
    # The USING of a DELETE is a list of its sources.
    for root in chain.from_iterable(part if isinstance(part, list) else [part] for part in roots if part):
        for table in root.find_all(exp.Table):
            if table.args.get("db") or table.name.upper() not in defined:
                yield table


def _kept(table: Any, session: Session) -> bool:
    return bool(session.catalog.views) and _name_of(table, session) in session.catalog.views


def _name_of(table: Any, session: Session) -> Name:
    return session.qualify(tuple(stored_name(part) for part in table.parts))


def _exists(name: Name, session: Session) -> bool:
    found = session.duck_conn.execute(
        "SELECT 1 FROM information_schema.tables WHERE (table_catalog, table_schema, table_name) = (?, ?, ?)",
        list(name),
    )
    return bool(found.fetchall())
