"""Parts of parsed statements."""

from collections.abc import Callable
from typing import Any

from sqlglot import exp


def classes(names: str) -> tuple[Any, ...]:
    return tuple(getattr(exp, name) for name in names.split())


def text_of(node: Any) -> str:
    return " ".join(node.sql(dialect="snowflake").split())[:80]


def outermost(aggregate: Any) -> Any:
    """The aggregate with its WITHIN GROUP, IGNORE NULLS and OVER."""
    parent = aggregate.parent
    if isinstance(parent, exp.WithinGroup | exp.Window | exp.IgnoreNulls) and parent.this is aggregate:
        return outermost(parent)
    return aggregate


def arguments_of(node: Any) -> list[Any]:
    """Without DISTINCT and the order of an aggregate."""
    first = node.this.this if isinstance(node.this, exp.Order) else node.this
    firsts = first.expressions if isinstance(first, exp.Distinct) else [first]
    parts = [*firsts, node.args.get("expression"), *node.expressions]
    return [part for part in parts if isinstance(part, exp.Expr)]


def wrap(node: Any, make: Callable[[Any], Any]) -> None:
    """Put the result of `make` in the place of the node, which it may contain."""
    place = exp.Null()
    node.replace(place)
    place.replace(make(node))


def stored_name(part: Any) -> str:
    """A part of a name in the form that Snowflake stores."""
    if isinstance(part, exp.Identifier):
        return str(part.this) if part.quoted else str(part.this).upper()
    return str(getattr(part, "name", part)).upper()
