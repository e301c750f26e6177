"""Rewrites what DuckDB answers otherwise than Snowflake, by the types of its operands.

A rule puts the expression that DuckDB answers correctly in the place of another.

Source: Snowflake documentation, SQL Reference: functions, data type conversion, arithmetic operators, and
VALUES.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from sqlglot import exp, parse_one

from app.emulator.errors import (
    invalid_arguments,
    no_cast,
    not_in_values,
    not_recognized,
    unsupported,
)
from app.emulator.expressions import arguments_of, classes, outermost, text_of, wrap
from app.emulator.inference import FLOATING, FLOATS, INTEGERS, TEXTS, TIMES, VARIANTS, Types
from app.emulator.refusals import AGGREGATES, SLICES, mixes, refuse
from app.emulator.semistructured import (
    FLOAT_TEXT,
    FLOAT_VARIANT,
    FUNCTIONS,
    TAKES_TEXT,
    TELL_FLOATS,
    function_of,
    refuse_floats,
)
from app.emulator.semistructured import arguments_of as function_arguments

_DATE_UNITS = frozenset({"YEAR", "QUARTER", "MONTH", "WEEK", "DAY"})
_UNITS = _DATE_UNITS | {"HOUR", "MINUTE", "SECOND"}
_PARTS = _UNITS | {"DAYOFWEEK", "DAYOFYEAR", "EPOCH_SECOND"}
_FORMAT = {"YYYY": "%Y", "MM": "%m", "DD": "%d", "HH24": "%H", "MI": "%M", "SS": "%S"}
# Elements that only TO_CHAR takes here, longer ones first.
_NAMES = {"MMMM": "%B", "MON": "%b", "DY": "%a", "HH12": "%I", "AM": "%p", "PM": "%p", "FF3": "%g"}
_WRITTEN = _NAMES | _FORMAT | {"YY": "%y"}
# The form of dates that DuckDB reads as Snowflake does.
OFFSET = r"(Z|[+-]\d\d:?\d\d)"
ISO_TIME = rf"\s*\d{{4}}-\d\d?-\d\d?([T ]\d\d?:\d\d(:\d\d(\.\d+)?)?)?\s*{OFFSET}?\s*"
OTHER_TIMES = "dates and times in a form other than YYYY-MM-DD HH:MI:SS"
# The form of numbers that Snowflake reads; DuckDB reads 0x10 and 1_000 too.
NUMBER = r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*"
_OFFSET = ("Z", "+00:00", "+0000")
_MAX_DIGITS = 18
_LONGEST_TEXT = 16_777_216
_MEDIAN_DIGITS = 3
_COMPARISONS = (exp.Predicate, exp.In)
_TEXT_FUNCTIONS = classes("""
    Like ILike DPipe Concat ConcatWs Length Substring Trim Replace StartsWith EndsWith Contains RegexpLike
    RegexpReplace RegexpExtract RegexpInstr RegexpCount Split SplitPart Upper Lower Left Right GroupConcat Pad
    MD5 SHA2 Reverse Repeat StrPosition Unicode
""")
_TO_VARIANT = classes("ArrayAgg ObjectAgg")
# Functions that take a timestamp and that sqlglot does not know.
_OF_TIMES = frozenset({"HASH", "TO_TIMESTAMP"})
# Of the query, the comparison, whether it orders, and the value: rewriting.py adds the query.
COMPARISON_KEY = "_LOCAL_KEY"
_NOT_IN_VALUES = classes("ToFile ParseJSON Struct JSONObject Array ToVariant")


def adapt(expression: Any, get_types: Callable[[], Types]) -> None:
    """Change the expression in place. Raises ProgrammingError for what DuckDB answers differently.

    Inner queries come first: the types of their columns are those of the adapted expressions.
    """
    for values in expression.find_all(exp.Values):  # before a rule changes them
        if (found := values.find(*_NOT_IN_VALUES)) is not None:
            raise not_in_values(text_of(found))
    selects = [*reversed(list(expression.find_all(exp.Select, exp.Values))), None]
    nodes: dict[int, list[Any]] = {id(select): [] for select in selects}
    for node in expression.walk():  # parents first: a rule sees its operands unchanged
        nodes[id(node.find_ancestor(exp.Select, exp.Values))].append(node)
    for select in selects:
        types = get_types()
        for node in nodes[id(select)]:
            refuse(node, types)
            for kinds, rule in _RULES:
                if isinstance(node, kinds):
                    rule(node, types)


_KNOWN: Any = parse_one("LIST_EXTRACT(LIST_FILTER([x], LAMBDA v : v <> JSON('null')), 1)", read="duckdb")


def _call(name: str, *arguments: Any) -> Any:
    texts = [exp.Literal.string(each) if isinstance(each, str) else each for each in arguments]
    return exp.Anonymous(this=name, expressions=texts)


def _cast_to(node: Any, kind: str) -> Any:
    return exp.cast(node, kind, copy=False)  # a copy would hide the operands from their rules


def _number(scale: int) -> str:
    return "DOUBLE" if scale == FLOATING else f"DECIMAL(38, {scale})"


# Numbers.


def _divide(node: Any, types: Types) -> None:
    scale = types.quotient_scale(node.this, node.expression)
    if scale is None:
        raise unsupported(f"{text_of(node)} of operands whose types it cannot tell; cast them to FLOAT")
    if scale != FLOATING:
        wrap(node, lambda each: _rounded(each, scale))


def _rounded(node: Any, scale: int) -> Any:
    return _cast_to(exp.Round(this=node, decimals=exp.Literal.number(scale)), _number(scale))


def _aggregate(node: Any, types: Types) -> None:
    """Cast the argument: fakesnow casts any other to DOUBLE, with NULL for text."""
    [argument] = arguments_of(node)
    scale = types.scale(argument)
    if scale is None:
        raise unsupported(f"{text_of(node)} of what is not a number, or whose type it cannot tell")
    is_sum = isinstance(node, exp.Sum)
    wrap(argument, lambda each: _cast_to(each, _number(scale) if is_sum else "DOUBLE"))
    if isinstance(node, exp.Stddev) or scale == FLOATING:
        return
    if is_sum:  # DuckDB's sum of integers has 128 bits, which Arrow lacks
        wrap(outermost(node), lambda each: _cast_to(each, "BIGINT" if scale == 0 else _number(scale)))
        return
    digits = scale + _MEDIAN_DIGITS if isinstance(node, exp.Median) else types.quotient_scale(argument)
    wrap(outermost(node), lambda each: _rounded(each, int(digits or 0)))


def _widen(node: Any, types: Types) -> None:
    """Compute with constants in 64 bits: DuckDB gives them the smallest type."""
    if isinstance(node.this, exp.Literal) and types.kind(node.this) == types.kind(node.expression) == "INT":
        if len(node.this.name) > _MAX_DIGITS:
            raise unsupported(f"{text_of(node)}: arithmetic with more than 64 bits")
        wrap(node.this, lambda literal: _cast_to(literal, "BIGINT"))


def _sign(node: Any, _: Types) -> None:
    wrap(node, lambda each: _cast_to(each, "BIGINT"))


def _count(node: Any, types: Types) -> None:
    """An aggregate takes a JSON null for NULL."""
    for argument in arguments_of(node):
        if types.is_variant(argument):
            wrap(argument, _without_json_null)


def _without_json_null(node: Any) -> Any:
    """DuckDB's NULLIF computes its first argument twice, and so calls a service twice."""
    known = _KNOWN.copy()
    known.find(exp.Column).replace(node)
    return known


# Semi-structured values.


def _compare(node: Any, types: Types) -> None:
    """Cast VARIANT operands: Snowflake compares their values, DuckDB their JSON texts."""
    is_ordered = not isinstance(node, exp.EQ | exp.NEQ | exp.In | exp.NullSafeEQ | exp.NullSafeNEQ)
    is_assignment = isinstance(node.parent, exp.Update | exp.SetItem)
    others = classes("Is Exists Like ILike RegexpLike")
    if is_assignment or isinstance(node, others) or function_of(node):
        return None
    operands = list(node.iter_expressions()) if isinstance(node, exp.Between) else arguments_of(node)
    if mixes(operands, types, "number", "text"):
        for operand in operands:
            _read_number(operand, types)
    variants = [each for each in operands if types.is_variant(each)]
    kinds = {_type_of(other, types) for other in operands if other not in variants}
    if variants and len(variants) == len(operands) > 1:
        return _compare_by_key(variants, node, is_ordered=is_ordered)
    if variants and (len(kinds) != 1 or None in kinds):
        raise unsupported(f"{text_of(node)}: comparison of VARIANT values without a cast")
    for variant in variants:
        wrap(variant, lambda each: _cast_variant(each, str(*kinds)))
    return None


def _compare_by_key(variants: Sequence[Any], comparison: Any, *, is_ordered: bool = True) -> None:
    """Compare values of one type, which the emulator knows only while DuckDB runs."""
    number, flag = exp.Literal.number(id(comparison)), exp.convert(is_ordered)
    for variant in variants:
        wrap(variant, lambda each: _call(COMPARISON_KEY, number.copy(), flag.copy(), _json(each)))


def _order(node: Any, types: Types) -> None:
    select, key = node.find_ancestor(exp.Select, exp.Window, exp.WithinGroup), node.this
    if isinstance(key, exp.Literal) and isinstance(select, exp.Select) and key.name.isdecimal():
        column = dict(enumerate(select.selects, 1)).get(int(key.name))
        if column is None or not types.is_variant(column.unalias()):
            return
        is_named = isinstance(column, exp.Alias | exp.Column)
        if select.args.get("distinct") or (select.args.get("group") and not is_named):
            raise unsupported(f"{text_of(node)}: ordering of VARIANT values by their position")
        key.replace(
            exp.column(column.args["alias"].copy()) if isinstance(column, exp.Alias) else column.copy()
        )
    elif not types.is_variant(key):
        return
    _compare_by_key([node.this], node)


def _extreme(node: Any, types: Types) -> None:
    """The largest VARIANT is the one with the largest key."""
    place = "expression" if isinstance(node, exp.ArgMax | exp.ArgMin) else "this"
    if types.is_variant(node.args[place]):
        if place == "this":
            make = exp.ArgMax if isinstance(node, exp.Max) else exp.ArgMin
            extreme = make(this=node.this, expression=node.this.copy())
            node.replace(extreme)
            node = extreme
        _compare_by_key([node.expression], node)


def _read_number(operand: Any, types: Types) -> None:
    """Put a number in the place of a text constant: DuckDB would round it to the other operand's type."""
    if types.kind(operand) not in TEXTS:
        return
    if not operand.is_string:
        raise unsupported(f"{text_of(operand.parent)}: text and a number, without a cast")
    try:
        float(operand.name)
    except ValueError:
        raise not_recognized("Numeric", operand.name) from None
    operand.replace(exp.Literal.number(operand.name.strip()))


def _type_of(operand: Any, types: Types) -> str | None:
    """The type to which a comparison casts a VARIANT on its other side."""
    if types.kind(operand) in TEXTS or (isinstance(operand, exp.Literal) and operand.is_string):
        return "VARCHAR"
    if types.kind(operand) == "BOOLEAN":
        return "BOOLEAN"
    return None if types.scale(operand) is None else "DOUBLE"


def _cast_variant(node: Any, kind: str) -> Any:
    text = _call("JSON_EXTRACT_STRING", node, "$")
    return text if kind == "VARCHAR" else _cast_to(text, kind)


def _make_variant(node: Any, types: Types) -> None:
    for part in arguments_of(node):
        _require_plain(part, types)


def _require_plain(value: Any, types: Types) -> None:
    """Raises ProgrammingError for a type that DuckDB writes otherwise in JSON."""
    if types.scale(value) == FLOATING:
        wrap(value, lambda each: _of_float(FLOAT_VARIANT, each))
    elif types.kind(value) in {*TIMES, "TIME", "BINARY", "VARBINARY"}:
        raise unsupported(f"{text_of(value)} in a VARIANT; cast it to a NUMBER or to text")


def _of_float(name: str, value: Any) -> Any:
    """With an exponent, which makes it a FLOAT in JSON."""
    return _json_function(name, _call("LIST_VALUE", _call("FORMAT", "{:.16e}", value)))


def _semi_structured(node: Any, types: Types) -> None:
    """Compute the function in Python."""
    name = function_of(node)
    if name is None:
        return
    arguments = function_arguments(node)
    if name in {"PARSE_JSON", "TRY_PARSE_JSON", "CHECK_JSON"}:
        for argument in arguments:
            if argument.is_string:
                refuse_floats(argument.name)
            _make_text(argument, types)
        arguments = function_arguments(node)
    else:
        _refuse_text(name, arguments, types)
        if name in TELL_FLOATS and any(types.scale(each) == FLOATING for each in node.walk()):
            raise unsupported(f"{text_of(node)}: the type of a FLOAT in a VARIANT")
        for argument in arguments:
            _require_plain(argument, types)
        arguments = function_arguments(node)
    node.replace(_of_json(name, *arguments))


def _refuse_text(name: str, arguments: Sequence[Any], types: Types) -> None:
    """Raises ProgrammingError for a text in the place of a VARIANT, an OBJECT or an ARRAY."""
    kinds = [str(types.kind(argument)) for argument in arguments]
    checked = kinds[:2] if name in {"ARRAY_CONTAINS", "ARRAY_POSITION"} else kinds[:1]
    if name not in TAKES_TEXT and not TEXTS.isdisjoint(checked):
        raise invalid_arguments(name, ", ".join(kinds), f"{name}(VARIANT)")


def _of_json(name: str, *arguments: Any) -> Any:
    return _json_function(name, _call("LIST_VALUE", *map(_json, arguments)))


def _json_function(name: str, arguments: Any) -> Any:
    call, kind = _call("_LOCAL_JSON", name, arguments), FUNCTIONS[name][0]
    return call if kind == "VARIANT" else _cast_to(_call("JSON_EXTRACT_STRING", call, "$"), kind)


def _json(node: Any) -> Any:
    """The text of the value's JSON, NULL for NULL."""
    return exp.JSONFormat(this=node)


def _json_list(values: Any) -> Any:
    """The JSON texts of an aggregate's values."""
    item = exp.to_identifier("e")
    each = exp.Lambda(this=_json(item), expressions=[item.copy()])
    return _call("LIST_TRANSFORM", exp.List(expressions=[values]), each)


def _array_agg(node: Any, _: Types) -> None:
    values, whole = node.this, outermost(node)
    if isinstance(whole, exp.WithinGroup):
        values = exp.Order(this=values, expressions=whole.expression.expressions)
    whole.replace(_json_function("ARRAY_AGG", _json_list(values)))


def _object_agg(node: Any, _: Types) -> None:
    pairs = _call("LIST_CONCAT", _json_list(node.this), _json_list(node.expression))
    node.replace(_json_function("OBJECT_AGG", pairs))


def _flatten(node: Any, types: Types) -> None:
    given = {
        each.this.name.upper(): each.expression
        for each in node.iter_expressions()
        if isinstance(each, exp.Kwarg)
    }
    given.setdefault("INPUT", node.this)
    _refuse_text("FLATTEN", [given["INPUT"]], types)
    no, both = exp.false(), exp.Literal.string("BOTH")
    defaults = {"INPUT": None, "PATH": exp.Null(), "OUTER": no, "RECURSIVE": no.copy(), "MODE": both}
    if unknown := given.keys() - defaults.keys():
        raise unsupported(f"{', '.join(unknown)} of FLATTEN")
    arguments = [given.get(name, default) for name, default in defaults.items()]
    node.set("this", _of_json("FLATTEN", *arguments))
    node.set("expressions", [])


def _listagg(node: Any, _: Types) -> None:
    wrap(outermost(node), lambda each: exp.Coalesce(this=each, expressions=[exp.Literal.string("")]))


# Text.


def _text_function(node: Any, types: Types) -> None:
    for argument in arguments_of(node):
        _make_text(argument, types)
    if isinstance(node.this, exp.Expr) and types.scale(node.this) not in {None, FLOATING}:
        wrap(node.this, lambda each: _cast_to(each, "VARCHAR"))


def _users_call(node: Any, types: Types) -> None:
    """A function receives a timestamp as text."""
    if node.name.upper() not in _OF_TIMES:
        for argument in node.expressions:
            if types.kind(argument) in TIMES:
                _make_text(argument, types)


def _make_text(value: Any, types: Types) -> None:
    """Convert the value as Snowflake does. Raises ProgrammingError for what DuckDB writes otherwise."""
    kind = types.kind(value)
    if types.scale(value) == FLOATING:
        wrap(value, lambda each: _of_float(FLOAT_TEXT, each))
    if kind in {"TIME", "BINARY", "VARBINARY"}:
        raise unsupported(f"{text_of(value)}: {kind} as text")
    if kind in TIMES:
        wrap(value, lambda each: _call("STRFTIME", each, TIMES[str(kind)]))
    elif kind in VARIANTS:
        wrap(value, lambda each: _cast_variant(each, "VARCHAR"))


def _cast(node: Any, types: Types) -> None:
    target, kind = node.to.this.name, types.kind(node.this)
    if isinstance(node, exp.TryCast) and kind not in TEXTS | {"NULL", None}:
        raise no_cast("TRY_CAST", str(kind), node.to.sql(dialect="snowflake"))
    if target in TEXTS:
        is_limited = node.to.expressions and int(node.to.expressions[0].name) < _LONGEST_TEXT
        if is_limited or target in {"CHAR", "NCHAR"}:
            raise unsupported(f"{text_of(node)}: a cast to text of a given length")
        _make_text(node.this, types)
    elif target in VARIANTS:
        _cast_to_variant(node, target, types)
    elif kind in VARIANTS and not isinstance(node.this, exp.JSONExtract):
        wrap(node.this, lambda each: _cast_variant(each, "VARCHAR"))
    elif target in INTEGERS | {"DECIMAL"} and types.scale(node.this) == FLOATING:
        scale = node.to.expressions[1].this.copy() if len(node.to.expressions) > 1 else exp.Literal.number(0)
        wrap(node.this, lambda each: exp.Round(this=each, decimals=scale))
    elif target == "BOOLEAN" and kind in TEXTS and node.this.is_string:
        value = {"on": "true", "off": "false"}.get(node.this.name.lower())
        node.this.replace(exp.Literal.string(value or node.this.name))
    elif target == "TIMESTAMPTZ" and kind in TEXTS and not _is_in_utc(node.this):
        raise unsupported(f"{text_of(node)}: time zones other than UTC, which all sessions have")
    elif isinstance(node, exp.TryCast) and target in {"DATE", *TIMES}:
        _try_time(node, types)


def _check_number(node: Any, _: Types) -> None:
    """Raises ProgrammingError for a text that DuckDB reads as a number, but Snowflake does not."""
    target = node.to.this.name
    if target not in INTEGERS | FLOATS | {"DECIMAL"} or not node.this.is_string:
        return
    is_special = target in FLOATS and node.this.name.strip().lower().lstrip("+-") in {
        "nan",
        "inf",
        "infinity",
    }
    if is_special or re.fullmatch(NUMBER, node.this.name):
        return
    if not isinstance(node, exp.TryCast):
        raise not_recognized("Numeric", node.this.name)
    node.this.replace(exp.Null())


def _cast_to_variant(node: Any, target: str, types: Types) -> None:
    _require_plain(node.this, types)
    kind = types.kind(node.this)
    if target not in {"VARIANT", "JSON"}:
        if kind not in {target, "NULL", "VARIANT", "JSON"}:
            raise unsupported(f"{text_of(node)}: a cast to {target} of another type than VARIANT")
    elif kind in VARIANTS:
        wrap(node, lambda each: each.this)
    else:
        wrap(node, lambda each: _of_json("TO_VARIANT", each.this))


def _is_in_utc(node: Any) -> bool:
    text = node.name.strip()
    return bool(node.is_string) and (text.endswith(_OFFSET) or not any(sign in text[10:] for sign in "+-"))


def _try_time(node: Any, types: Types) -> None:
    """Raises an error, for other texts, where DuckDB would return NULL and Snowflake may not."""
    if types.kind(node.this) in TEXTS | {None}:
        if node.this.find(exp.Anonymous, exp.Placeholder):
            raise unsupported(f"{text_of(node)} of a bind variable or a function's result")
        is_iso = _call("REGEXP_FULL_MATCH", node.this.copy(), ISO_TIME)
        has_no_digit = exp.Not(this=_call("REGEXP_MATCHES", node.this.copy(), "[0-9]"))
        unreadable = _call("ERROR", OTHER_TIMES)
        null = exp.Is(this=node.this.copy(), expression=exp.Null())
        known = exp.or_(null, is_iso, has_no_digit)
        if isinstance(node, exp.TryCast) and node.to.this.name in {"TIMESTAMP", "TIMESTAMPNTZ"}:
            # fakesnow reads a TRY_CAST to them as a CAST, and Snowflake ignores the offset.
            local = _call("REGEXP_REPLACE", node.this.copy(), rf"\s*{OFFSET}\s*$", "")
            node.set("this", local)
            node.set("to", exp.DataType.build("TIMESTAMPTZ"))
            wrap(node, lambda each: _call("TIMEZONE", "UTC", each))
            node = node.parent
        wrap(node, lambda each: exp.Case().when(known, each, copy=False).else_(unreadable))


# Dates.


def _to_char(node: Any, types: Types) -> None:
    template = node.args.get("format")
    if template is None:
        _make_text(node.this, types)
        wrap(node, lambda each: _cast_to(each.this, "VARCHAR"))
        return
    if types.kind(node.this) not in {"DATE", *TIMES} or not template.is_string:
        raise unsupported(f"{text_of(node)}: a format for anything but a date or a timestamp")
    text = _read_format(node, _WRITTEN)
    wrap(node, lambda each: _call("STRFTIME", each.this, text))


def _read_format(node: Any, known: dict[str, str]) -> str:
    """The format in DuckDB's codes. Raises ProgrammingError for elements that DuckDB writes otherwise."""
    # sqlglot reads dd as a day without its zero, and FF3 as %f_three.
    text = node.args["format"].name.replace("%-", "%").replace("%f_three", "%g")
    for element, code in known.items():
        text = text.replace(element, code).replace(element.lower(), code)
    rest = text
    for code in known.values():
        rest = rest.replace(code, "")
    if any(character.isalnum() or character in '%"' for character in rest):
        raise unsupported(f"{text_of(node)}: format elements other than {', '.join(known)}")
    return str(text)


def _to_date(node: Any, types: Types) -> None:
    if node.args.get("format") is not None:
        node.args["format"].replace(exp.Literal.string(_read_format(node, _FORMAT)))
    elif node.args.get("safe"):
        _try_time(node, types)


def _slice(node: Any, types: Types) -> None:
    """Slices start at midnight of January 1, 1970; DuckDB's of days and months start in 2000."""
    length = _call(SLICES[node.args["unit"].name.upper()], node.expression)
    start = _call("TIME_BUCKET", length, node.this, _cast_to(exp.Literal.string("1970-01-01"), "TIMESTAMP"))
    is_end = node.args.get("kind") and node.args["kind"].name.upper() == "END"
    sliced = exp.Add(this=start, expression=length.copy()) if is_end else start
    node.replace(_cast_to(sliced, "DATE" if types.kind(node.this) == "DATE" else "TIMESTAMP"))


def _date_part(node: Any, types: Types) -> None:
    unit = str((node.args.get("unit") or node.this).name).upper()
    if unit not in (_PARTS if isinstance(node, exp.Extract) else _UNITS):
        raise unsupported(f"{text_of(node)}: the date part {unit}")
    if isinstance(node, exp.DateAdd) and types.scale(node.expression) != 0:
        raise unsupported(f"{text_of(node)}: an amount that is not an integer")
    is_date = types.kind(node.this) == "DATE"
    keeps_date = isinstance(node, exp.DateTrunc | exp.TimestampTrunc) or (
        isinstance(node, exp.DateAdd) and unit in _DATE_UNITS
    )
    if is_date and keeps_date:
        wrap(node, lambda each: _cast_to(each, "DATE"))


_RULES: Sequence[tuple[Any, Callable[[Any, Types], None]]] = (
    (_TEXT_FUNCTIONS, _text_function),
    (_TO_VARIANT, _make_variant),
    (_COMPARISONS, _compare),
    ((exp.Cast, exp.TryCast), _check_number),
    ((exp.Cast, exp.TryCast), _cast),
    (exp.Ordered, _order),
    ((exp.Max, exp.Min, exp.ArgMax, exp.ArgMin), _extreme),
    (exp.Div, _divide),
    (AGGREGATES, _aggregate),
    ((exp.Add, exp.Sub, exp.Mul), _widen),
    (exp.Sign, _sign),
    (exp.Anonymous, _users_call),
    (exp.Count, _count),
    ((exp.ToChar, exp.TimeToStr), _to_char),
    ((exp.TsOrDsToDate, exp.StrToTime), _to_date),
    ((exp.DateAdd, exp.DateDiff, exp.DateTrunc, exp.TimestampTrunc, exp.Extract), _date_part),
    (exp.TimeSlice, _slice),
    (exp.GroupConcat, _listagg),
    (exp.ArrayAgg, _array_agg),
    (exp.ObjectAgg, _object_agg),
    (exp.Explode, _flatten),
    (exp.Func, _semi_structured),
)
