"""The types of the parts of a statement, as far as they are known before DuckDB runs it."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from sqlglot import exp
from sqlglot.optimizer.annotate_types import annotate_types
from sqlglot.optimizer.qualify import qualify
from sqlglot.schema import MappingSchema

from app.emulator.expressions import wrap
from app.emulator.semistructured import FUNCTIONS, function_of

# Database, schema and name of a table, and the type of each of its columns.
Schema: TypeAlias = dict[str, dict[str, dict[str, dict[str, Any]]]]

VARIANTS = frozenset({"VARIANT", "JSON", "OBJECT", "ARRAY", "STRUCT", "MAP"})
INTEGERS = frozenset({"INT", "BIGINT", "SMALLINT", "TINYINT", "UBIGINT", "INT128"})
FLOATS = frozenset({"DOUBLE", "FLOAT"})
TEXTS = frozenset({"VARCHAR", "TEXT", "CHAR", "NCHAR", "NVARCHAR"})
TIMES = {
    "TIMESTAMP": "%Y-%m-%d %H:%M:%S.%g",
    "TIMESTAMPNTZ": "%Y-%m-%d %H:%M:%S.%g",
    "TIMESTAMPTZ": "%Y-%m-%d %H:%M:%S.%g +0000",
    "TIMESTAMPLTZ": "%Y-%m-%d %H:%M:%S.%g +0000",
}
"""Snowflake's default output format of each type; the time zone of the emulator is UTC."""
# A division adds six digits to the scale of its dividend, up to twelve digits.
_DIVISION_DIGITS, _MAX_SCALE = 6, 12
FLOATING = -1
# sqlglot does not know their type.
_EXTRACTS = (exp.JSONExtract, exp.Bracket, exp.GetExtract)


class Types:
    """The types of the parts of a statement, as far as they are known before DuckDB runs it."""

    def __init__(
        self,
        expression: Any,
        schema: Schema,
        namespace: tuple[str | None, str | None],
        returns: Callable[[Any], str | None],
    ) -> None:
        """`namespace` is the current database and schema; `returns` gives the type of a function's result."""
        for number, node in enumerate(expression.walk()):
            node.meta["number"] = number
        self._typed: dict[int, Any] = {}
        self.has_flatten = expression.find(exp.Explode) is not None
        mapping = MappingSchema(dict(schema), dialect="snowflake", normalize=False)
        for query in _outermost_queries(expression):
            try:
                typed = query.copy()
                for node in list(typed.find_all(exp.Anonymous, exp.Literal)):
                    _type_leaf(node, returns)
                for node in list(typed.find_all(*_EXTRACTS)):
                    wrap(node, lambda each: exp.cast(each, "VARIANT", copy=False))
                typed = qualify(
                    typed,
                    dialect="snowflake",
                    schema=mapping,
                    db=namespace[1],
                    catalog=namespace[0],
                    validate_qualify_columns=False,
                    quote_identifiers=False,
                )
                annotated = annotate_types(typed, schema=mapping, dialect="snowflake")
            except Exception:  # noqa: BLE001, S112 - sqlglot's optimizer raises many; the types stay unknown
                continue
            self._typed |= {node.meta["number"]: node for node in annotated.walk() if "number" in node.meta}

    def kind(self, node: Any) -> str | None:
        """The name of the type, "NULL" for NULL, None if unknown."""
        is_flattened = isinstance(node, exp.Column) and node.name.upper() in {"VALUE", "THIS"}
        if isinstance(node, _EXTRACTS) or (self.has_flatten and is_flattened):
            return "VARIANT"
        if isinstance(node, exp.Paren):
            return self.kind(node.this)
        if (function := function_of(node)) is not None:
            return FUNCTIONS[function][0]
        if isinstance(node, exp.Literal) and not node.is_string:
            return "DOUBLE" if "e" in node.name.lower() else "DECIMAL" if "." in node.name else "INT"
        kind = self._type_of(node) and self._type_of(node).this.name
        if kind in {None, "UNKNOWN"} and (alias := _alias_of(node)) is not None:
            return self.kind(alias)
        return None if kind == "UNKNOWN" else kind

    def _type_of(self, node: Any) -> Any:
        typed = self._typed.get(node.meta.get("number", -1))
        if typed is None and isinstance(node, exp.Cast):  # of a rule
            return node.to
        return typed.type if typed is not None else None

    def is_variant(self, node: Any) -> bool:
        return self.kind(node) in VARIANTS

    def family(self, node: Any) -> str | None:
        """What mixes: "variant", "number", "text", or None for another or unknown type."""
        kind = self.kind(node)
        if kind in VARIANTS or kind in TEXTS:
            return "variant" if kind in VARIANTS else "text"
        return "number" if self.scale(node) is not None else None

    def scale(self, node: Any) -> int | None:
        """The number of decimal digits of a number, FLOATING for a FLOAT, None if unknown."""
        for kinds, rule in _SCALES:
            if isinstance(node, kinds):
                return rule(self, node)
        return self._declared_scale(node)

    def product_scale(self, left: Any, right: Any) -> int | None:
        widest, scales = self.widest(left, right), (self.scale(left), self.scale(right))
        if widest in (None, FLOATING):
            return widest
        digits = [scale for scale in scales if scale is not None]
        return min(sum(digits), max(*digits, _MAX_SCALE)) if len(digits) > 1 else widest

    def literal_scale(self, node: Any) -> int | None:
        if node.is_string:
            return None
        return FLOATING if self.kind(node) == "DOUBLE" else len(node.name.partition(".")[2])

    def rounded_scale(self, node: Any) -> int | None:
        """The scale of ROUND or TRUNC."""
        digits = node.args.get("decimals")
        if self.scale(node.this) == FLOATING:
            return FLOATING
        return 0 if digits is None else int(digits.name) if isinstance(digits, exp.Literal) else None

    def quotient_scale(self, dividend: Any, *divisor: Any) -> int | None:
        """The scale of a quotient; a mean is a quotient without an explicit divisor."""
        scale, widest = self.scale(dividend), self.widest(dividend, *divisor)
        if widest is None or widest == FLOATING or scale is None:
            return widest
        return max(scale, min(scale + _DIVISION_DIGITS, _MAX_SCALE))

    def widest(self, *nodes: Any) -> int | None:
        scales = [self.scale(node) for node in nodes if not isinstance(node, exp.Null)]
        if None in scales:
            return None
        return FLOATING if FLOATING in scales else max(map(int, scales), default=0)  # type: ignore[arg-type]

    def _declared_scale(self, node: Any) -> int | None:
        kind = self.kind(node)
        if kind in INTEGERS:
            return 0
        if kind in FLOATS:
            return FLOATING
        if (alias := _alias_of(node)) is not None and self._type_of(node) is None:
            return self.scale(alias)
        if kind != "DECIMAL" or self._type_of(node) is None:
            return None
        sizes = [int(size.name) for size in self._type_of(node).expressions]
        return sizes[1] if len(sizes) > 1 else 0 if isinstance(node, exp.Cast) else None


_SCALES: Sequence[tuple[Any, Callable[[Types, Any], int | None]]] = (
    (exp.Literal, Types.literal_scale),
    (
        (exp.Paren, exp.Neg, exp.Sum, exp.Min, exp.Max, exp.Abs, exp.Window, exp.AnyValue),
        lambda types, node: types.scale(node.this),
    ),
    ((exp.Add, exp.Sub, exp.Mod), lambda types, node: types.widest(node.this, node.expression)),
    (exp.Mul, lambda types, node: types.product_scale(node.this, node.expression)),
    (exp.Div, lambda types, node: types.quotient_scale(node.this, node.expression)),
    (exp.Avg, lambda types, node: types.quotient_scale(node.this)),
    ((exp.Round, exp.Trunc), Types.rounded_scale),
    (exp.Coalesce, lambda types, node: types.widest(node.this, *node.expressions)),
    (exp.If, lambda types, node: types.widest(node.args["true"], node.args.get("false") or exp.Null())),
)


def _alias_of(node: Any) -> Any:
    """The expression that an earlier alias of the same SELECT gives this name, None if there is none."""
    select = node.find_ancestor(exp.Select) if isinstance(node, exp.Column) and not node.table else None
    for column in select.selects if select is not None else ():
        if any(part is node for part in column.walk()):
            return None
        if isinstance(column, exp.Alias) and column.alias.upper() == node.name.upper():
            return column.this
    return None


def _outermost_queries(expression: Any) -> list[Any]:
    """The queries in a statement; for an UPDATE or DELETE, one of its values and conditions."""
    if isinstance(expression, exp.Query):
        return [expression]
    if isinstance(expression, exp.Merge):
        source = expression.args["using"]
        return [source.this] if isinstance(source, exp.Subquery) else []
    if not isinstance(expression, exp.Update | exp.Delete):
        return [child for child in (expression.this, expression.expression) if isinstance(child, exp.Query)]
    copy = expression.copy()
    parts = [each.expression for each in copy.expressions] + [each.this for each in copy.find_all(exp.Where)]
    query = exp.select(exp.Null(), *parts).from_(copy.this)
    for other in [each.this for each in copy.find_all(exp.From)] + (copy.args.get("using") or []):
        query = query.join(other, join_type="cross")
    return [query]


def _type_leaf(node: Any, returns: Callable[[Any], str | None]) -> None:
    """Cast a call or a decimal to its type, which sqlglot does not know."""
    if isinstance(node, exp.Anonymous):
        kind, outermost = returns(node), node.parent if isinstance(node.parent, exp.Dot) else node
    elif not node.is_string and "." in node.name and "e" not in node.name.lower():
        kind, outermost = f"DECIMAL(38, {len(node.name.partition('.')[2])})", node
    else:
        return
    if kind is not None:
        wrap(outermost, lambda each: _cast_with_number(each, kind))


def _cast_with_number(node: Any, kind: str) -> Any:
    typed = exp.cast(node, kind, copy=False, dialect="snowflake")
    typed.meta["number"] = node.meta.pop("number", None)
    return typed
