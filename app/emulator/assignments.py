"""Converts the values that INSERT, UPDATE and MERGE assign to the types of their columns.

Source: Snowflake documentation, "Data type conversion": what is coercible.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from sqlglot import exp

from app.emulator.errors import unsupported, wrong_type
from app.emulator.expressions import stored_name, wrap
from app.emulator.inference import FLOATING, TEXTS, TIMES, VARIANTS, Types


def convert_assigned(expression: Any, columns: dict[str, Any], types: Types) -> None:
    """Convert VARIANT values to the types of their columns. Raises ProgrammingError if types do not fit.

    `columns` are those of the table that the statement changes, with their types.
    """
    for name, assigned in _assignments(expression, columns):
        if (column := columns.get(name)) is None:
            continue
        value, target = _source_of(expression, assigned), column.this.name
        kind = "VARCHAR" if value.is_string else types.kind(value)
        if target in VARIANTS and isinstance(value, exp.Placeholder):
            raise unsupported("a bind variable as a VARIANT; select PARSE_JSON of it")
        if target not in VARIANTS and kind in VARIANTS:
            wrap(value, partial(exp.cast, to=column.copy(), copy=False))
        elif target in VARIANTS and kind in TEXTS | TIMES.keys() | {"DATE", "TIME"}:
            raise wrong_type(name, "VARIANT", str(kind))
        elif target in VARIANTS and types.scale(value) not in (None, FLOATING):
            wrap(value, partial(exp.cast, to="VARIANT", copy=False))


def _source_of(statement: Any, value: Any) -> Any:
    """The expression that computes the value: in a MERGE, one of the USING query."""
    source = statement.args.get("using")
    if (
        isinstance(value, exp.Column)
        and isinstance(source, exp.Subquery)
        and value.table == source.alias_or_name
    ):
        for each in source.this.selects:
            if each.alias_or_name.upper() == value.name.upper():
                if isinstance(each, exp.Column):  # it keeps its name when it is converted
                    wrap(each, lambda column: exp.Alias(this=column, alias=column.this.copy()))
                return each.unalias()
    return value


def _assignments(statement: Any, columns: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The name of each column that the statement sets, and its value."""
    match statement:
        case exp.Update():
            yield from ((stored_name(each.this.this), each.expression) for each in statement.expressions)
        case exp.Insert():
            is_named = isinstance(statement.this, exp.Schema | exp.Tuple)
            names = list(map(stored_name, statement.this.expressions)) if is_named else list(columns)
            for row in _rows(statement.expression):
                yield from zip(names, (value.unalias() for value in row), strict=False)
        case exp.Merge():
            for each in statement.args["whens"].find_all(exp.Update, exp.Insert):
                yield from _assignments(each, columns)


def _rows(values: Any) -> Iterator[list[Any]]:
    match values:
        case exp.Values():
            yield from (each.expressions for each in values.expressions)
        case exp.Tuple():
            yield values.expressions
        case exp.SetOperation():
            yield from [*_rows(values.this), *_rows(values.expression)]
        case exp.Subquery():
            yield from _rows(values.this)
        case exp.Select() if not values.is_star:
            yield values.expressions
