"""Functions on VARIANT, OBJECT and ARRAY values, which DuckDB lacks or answers otherwise.

Each takes and returns JSON texts.

Source: Snowflake documentation, SQL Reference: semi-structured data functions, PARSE_JSON and FLATTEN.
"""

import json
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any, TypeAlias

from sqlglot import exp

from app.emulator.errors import invalid, malformed_json, not_recognized, unsupported
from app.emulator.expressions import classes

# SQL NULL, where None is a JSON null.
_NULL = object()
_Compute: TypeAlias = Callable[..., Any]


def compute(name: str, arguments: list[str | None]) -> str | None:
    """The function's value, None for NULL. Raises ProgrammingError for arguments that Snowflake refuses."""
    _, takes_null, function = FUNCTIONS[name]
    values = [_NULL if argument is None else _read(argument) for argument in arguments]
    value = _NULL if _NULL in values and not takes_null else function(*values)
    return None if value is _NULL else write(value)


def write(value: Any) -> str:
    """Compact JSON, in which a number has no trailing zeros."""
    match value:
        case dict():
            return "{" + ",".join(f"{write(key)}:{write(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ",".join(map(write, value)) + "]"
        case Decimal():
            return str(int(value)) if value == value.to_integral() else f"{value.normalize():f}"
    return json.dumps(value, ensure_ascii=False)


def _read(text: str, **hooks: Any) -> Any:
    return json.loads(text, parse_float=_number, **hooks)


def _number(digits: str) -> Decimal | float:
    """A number with an exponent is a FLOAT."""
    return float(digits) if "e" in digits.lower() else Decimal(digits)


def refuse_floats(text: str) -> None:
    """Raises ProgrammingError for a constant with a FLOAT, which Snowflake writes in a form of its own."""

    def refuse(digits: str) -> None:
        if "e" in digits.lower():
            raise unsupported(f"{digits} in PARSE_JSON, which is a FLOAT in a VARIANT")

    with suppress(ValueError, RecursionError):
        json.loads(text, parse_float=refuse)


def comparison_key(text: str, *, is_ordered: bool) -> tuple[str, str]:
    """The kind of a VARIANT, and a text that compares as its value does. Raises ProgrammingError."""
    match _read(text):
        case bool(value):
            return "BOOLEAN", str(int(value))
        case int() | float() | Decimal() as value:
            [bits] = struct.unpack(">Q", struct.pack(">d", value))
            bits ^= (1 << 64) - 1 if bits >> 63 else 1 << 63
            return "number", f"{bits:016x} {Decimal(str(value)).normalize():f}"
        case str(value):
            return "text", value
        case dict() | list() as value if not is_ordered:
            return "object", _same(value)
    raise unsupported("comparison of JSON nulls, objects or arrays; cast the VARIANT")


def _float_text(value: float) -> str:
    """Raises ProgrammingError for a FLOAT of which Snowflake may show other digits."""
    text = f"{value:.15g}"
    if text != repr(value).removesuffix(".0") or "e" in text:
        raise unsupported(f"{value} as text; cast it to a NUMBER first")
    return text


# JSON.


def _parse_json(text: Any) -> Any:
    if not text.strip():
        return _NULL
    try:
        return _read(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise malformed_json(str(error)) from None


def _try_parse_json(text: Any) -> Any:
    try:
        return _parse_json(text)
    except Exception as error:
        if getattr(error, "errno", 0) == malformed_json("").errno:
            return _NULL
        raise


def _check_json(text: Any) -> Any:
    if text.strip() and _try_parse_json(text) is _NULL:
        raise unsupported("the message of CHECK_JSON")
    return _NULL


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("duplicate object attribute")
    return dict(pairs)


def _refuse(name: str) -> None:
    raise ValueError(f"unknown keyword {name}")


# Types.


def _type(value: Any) -> str:
    names = {
        type(None): "NULL_VALUE",
        bool: "BOOLEAN",
        str: "VARCHAR",
        list: "ARRAY",
        dict: "OBJECT",
        float: "DOUBLE",
    }
    return names.get(type(value)) or ("INTEGER" if value == int(value) else "DECIMAL")


# Functions that tell a FLOAT in a VARIANT from a NUMBER; the emulator keeps it as a NUMBER.
TELL_FLOATS = frozenset({"TYPEOF", "IS_DECIMAL", "IS_INTEGER", "AS_INTEGER"})


def _is(*kinds: str) -> _Compute:
    return lambda value: _type(value) in kinds


def _as(*kinds: str) -> _Compute:
    return lambda value: value if _type(value) in kinds else _NULL


_NUMBERS = ("INTEGER", "DECIMAL", "DOUBLE")


# Objects.


def _object(*pairs: Any, keeps_null: bool = False) -> dict[str, Any]:
    keys, values = [_key_text(key) for key in pairs[::2]], pairs[1::2]
    known = [key for key, value in zip(keys, values, strict=True) if key is not _NULL]
    if len(set(known)) < len(known):
        raise unsupported("a key that occurs twice")
    return {
        key: None if value is _NULL else value
        for key, value in zip(keys, values, strict=True)
        if key is not _NULL and (keeps_null or value is not _NULL)
    }


def _key_text(key: Any) -> Any:
    return key if key is _NULL or isinstance(key, str) else write(key)


def _insert(value: Any, key: str, new: Any, update: Any = False) -> Any:
    if _NULL in (value, key):
        return _NULL
    if key in value and not update:
        raise invalid(f"Duplicate field key '{key}'")
    return _object(*(part for pair in (value | {key: new}).items() for part in pair))


def _pick(value: Any, *keys: Any) -> Any:
    wanted = [each for key in keys for each in (key if isinstance(key, list) else [key])]
    return {key: value[key] for key in wanted if key in value}


def _get_ignore_case(value: Any, key: Any) -> Any:
    if not isinstance(value, dict):
        return _NULL
    return value.get(key, next((value[each] for each in value if each.lower() == key.lower()), _NULL))


# Arrays. Equal values have the same JSON, whatever the order of their keys.


def _same(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=float)


def _array(*values: Any) -> list[Any]:
    if _NULL in values:
        raise unsupported("NULL in an array")
    return list(values)


def _on_arrays(function: _Compute, count: int = 1) -> _Compute:
    """NULL if one of the first arguments is no array."""
    return lambda *values: function(*values) if all(isinstance(v, list) for v in values[:count]) else _NULL


def _position(value: Any, array: Any) -> Any:
    texts = [_same(each) for each in array] if isinstance(array, list) else []
    return texts.index(_same(value)) if _same(value) in texts else _NULL


def _to_string(array: list[Any], separator: str) -> str:
    return separator.join(
        each if isinstance(each, str) else "" if each is None else write(each) for each in array
    )


def _distinct(array: list[Any]) -> list[Any]:
    return list({_same(each): each for each in reversed(array)}.values())[::-1]


def _common(left: list[Any], right: list[Any]) -> list[Any]:
    """The intersection of multisets."""
    rest, common = [_same(each) for each in right], []
    for each in left:
        if _same(each) in rest:
            rest.remove(_same(each))
            common.append(each)
    return common


def _ordered(array: list[Any]) -> list[Any]:
    known = [each for each in array if each is not None]
    if len({type(each) for each in known} - {int, Decimal, float}) > (0 if _all_numbers(known) else 1):
        raise unsupported("the order of values of different types")
    return sorted(known)


def _all_numbers(values: list[Any]) -> bool:
    return all(_type(each) in _NUMBERS for each in values)


def _aggregate_object(*parts: Any) -> dict[str, Any]:
    """Of all keys, followed by all values; pairs with a NULL are omitted."""
    half = len(parts) // 2
    return _object(*(part for pair in zip(parts[:half], parts[half:], strict=True) for part in pair))


# FLATTEN.


def _flatten(value: Any, path: Any, outer: Any, recursive: Any, mode: Any) -> list[dict[str, Any]]:
    """Rows of a key k, a path p, an index i, a value v, and what was flattened, t."""
    start = "" if path is _NULL else path
    for key, quoted, index in re.findall(r"""\.?([^.\[\]]+)|\[(['"].*?['"])\]|\[(\d+)\]""", start):
        place = int(index) if index else key or quoted[1:-1]
        holds = isinstance(value, list if index else dict)
        value = (dict(enumerate(value)) if index else value).get(place, _NULL) if holds else _NULL
    kinds = {"OBJECT": (dict,), "ARRAY": (list,), "BOTH": (dict, list)}[str(mode).upper()]
    rows = list(_children(value, start, kinds, recursive=recursive))
    if not rows and outer:
        rows = [{"p": start}] if value is _NULL else [{"p": start, "t": value}]
    return rows


def _children(value: Any, path: str, kinds: tuple[Any, ...], *, recursive: bool) -> Iterator[dict[str, Any]]:
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, kinds):
        pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
    for place, child in pairs:
        if isinstance(place, int):
            below, row = f"{path}[{place}]", {"i": place}
        else:
            simple = re.fullmatch(r"[A-Za-z_]\w*", place)
            below, row = (
                (f"{path}.{place}" if path else place) if simple else f"{path}['{place}']",
                {"k": place},
            )
        yield {**row, "p": below, "v": child, "t": value}
        if recursive:
            yield from _children(child, below, kinds, recursive=True)


def _cast_array(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _cast_object(value: Any) -> Any:
    if not isinstance(value, dict | None):
        raise not_recognized("Object", write(value))
    return value


_VALUE, _TEXT, _INTEGER, _BOOLEAN = "VARIANT", "VARCHAR", "BIGINT", "BOOLEAN"
FLOAT_TEXT, FLOAT_VARIANT = "FLOAT AS VARCHAR", "FLOAT AS VARIANT"

# Others take no text in the place of a VARIANT, an OBJECT or an ARRAY.
TAKES_TEXT = frozenset(
    {"PARSE_JSON", "TRY_PARSE_JSON", "CHECK_JSON", "OBJECT_CONSTRUCT", "OBJECT_CONSTRUCT_KEEP_NULL"}
    | {"ARRAY_CONSTRUCT", "ARRAY_CONSTRUCT_COMPACT", "TO_ARRAY", "TO_VARIANT"}
)
# By name: the type of the result, whether it takes NULL, and the function. Others return NULL for a NULL.
FUNCTIONS: dict[str, tuple[str, bool, _Compute]] = {
    "PARSE_JSON": (_VALUE, False, _parse_json),
    "TRY_PARSE_JSON": (_VALUE, False, _try_parse_json),
    "CHECK_JSON": (_TEXT, False, _check_json),
    "TO_JSON": (_TEXT, False, write),
    "TYPEOF": (_TEXT, False, _type),
    "IS_ARRAY": (_BOOLEAN, False, _is("ARRAY")),
    "IS_BOOLEAN": (_BOOLEAN, False, _is("BOOLEAN")),
    "IS_CHAR": (_BOOLEAN, False, _is("VARCHAR")),
    "IS_DECIMAL": (_BOOLEAN, False, _is("INTEGER", "DECIMAL")),
    "IS_DOUBLE": (_BOOLEAN, False, _is(*_NUMBERS)),
    "IS_INTEGER": (_BOOLEAN, False, _is("INTEGER")),
    "IS_OBJECT": (_BOOLEAN, False, _is("OBJECT")),
    "IS_REAL": (_BOOLEAN, False, _is(*_NUMBERS)),
    "IS_VARCHAR": (_BOOLEAN, False, _is("VARCHAR")),
    "AS_ARRAY": (_VALUE, False, _as("ARRAY")),
    "AS_BOOLEAN": (_BOOLEAN, False, _as("BOOLEAN")),
    "AS_CHAR": (_TEXT, False, _as("VARCHAR")),
    "AS_DOUBLE": ("DOUBLE", False, _as(*_NUMBERS)),
    "AS_INTEGER": (_INTEGER, False, _as("INTEGER")),
    "AS_OBJECT": (_VALUE, False, _as("OBJECT")),
    "AS_REAL": ("DOUBLE", False, _as(*_NUMBERS)),
    "AS_VARCHAR": (_TEXT, False, _as("VARCHAR")),
    "TO_ARRAY": (_VALUE, False, _cast_array),
    "TO_VARIANT": (_VALUE, False, lambda value: value),
    "TO_OBJECT": (_VALUE, False, _cast_object),
    "STRIP_NULL_VALUE": (_VALUE, False, lambda value: _NULL if value is None else value),
    "GET_IGNORE_CASE": (_VALUE, False, _get_ignore_case),
    "OBJECT_CONSTRUCT": (_VALUE, True, _object),
    "OBJECT_CONSTRUCT_KEEP_NULL": (_VALUE, True, lambda *pairs: _object(*pairs, keeps_null=True)),
    "OBJECT_KEYS": (_VALUE, False, lambda value: list(value) if isinstance(value, dict) else _NULL),
    "OBJECT_INSERT": (_VALUE, True, _insert),
    "OBJECT_DELETE": (_VALUE, False, lambda value, *keys: {k: v for k, v in value.items() if k not in keys}),
    "OBJECT_PICK": (_VALUE, False, _pick),
    "OBJECT_AGG": (_VALUE, True, _aggregate_object),
    "ARRAY_AGG": (_VALUE, True, lambda *values: [value for value in values if value is not _NULL]),
    "ARRAY_CONSTRUCT": (_VALUE, True, _array),
    "ARRAY_CONSTRUCT_COMPACT": (_VALUE, True, lambda *values: [v for v in values if v not in (None, _NULL)]),
    "ARRAY_CONTAINS": (_BOOLEAN, False, lambda value, array: _position(value, array) is not _NULL),
    "ARRAY_POSITION": (_INTEGER, False, _position),
    "ARRAY_TO_STRING": (_TEXT, False, _on_arrays(_to_string)),
    "ARRAY_APPEND": (_VALUE, False, _on_arrays(lambda array, value: [*array, value])),
    "ARRAY_PREPEND": (_VALUE, False, _on_arrays(lambda array, value: [value, *array])),
    "ARRAY_CAT": (_VALUE, False, _on_arrays(lambda left, right: left + right, 2)),
    "ARRAY_COMPACT": (_VALUE, False, _on_arrays(lambda array: [each for each in array if each is not None])),
    "ARRAY_DISTINCT": (_VALUE, False, _on_arrays(_distinct)),
    "ARRAY_FLATTEN": (
        _VALUE,
        False,
        _on_arrays(lambda array: [e for each in array for e in _cast_array(each)]),
    ),
    "ARRAY_INTERSECTION": (_VALUE, False, _on_arrays(_common, 2)),
    "ARRAYS_OVERLAP": (_BOOLEAN, False, lambda left, right: bool(_common(left, right))),
    "ARRAY_MAX": (_VALUE, False, _on_arrays(lambda array: (_ordered(array) or [_NULL])[-1])),
    "ARRAY_MIN": (_VALUE, False, _on_arrays(lambda array: (_ordered(array) or [_NULL])[0])),
    "ARRAY_REVERSE": (_VALUE, False, _on_arrays(lambda array: array[::-1])),
    "ARRAY_SLICE": (_VALUE, False, _on_arrays(lambda array, start, end: array[start:end])),
    "FLATTEN": (_VALUE, True, _flatten),
    # No functions of Snowflake's; they take a FLOAT.
    FLOAT_TEXT: (_TEXT, False, _float_text),
    FLOAT_VARIANT: (_VALUE, False, lambda value: Decimal(repr(value))),
}

_CLASSES = classes("""
    ArrayAppend ArrayCompact ArrayConstructCompact ArrayContains ArrayDistinct ArrayMax ArrayMin ArrayPosition
    ArrayPrepend ArrayReverse ArraySlice ArrayToString CheckJson GetIgnoreCase IsArray ObjectInsert
    StripNullValue ToArray ToVariant Typeof
""")
# Those whose name in sqlglot is another.
_RENAMED: dict[Any, str] = {
    exp.Array: "ARRAY_CONSTRUCT",
    exp.ArrayConcat: "ARRAY_CAT",
    exp.ArrayIntersect: "ARRAY_INTERSECTION",
    exp.ArrayOverlaps: "ARRAYS_OVERLAP",
    exp.Flatten: "ARRAY_FLATTEN",
    exp.JSONFormat: "TO_JSON",
    exp.JSONKeys: "OBJECT_KEYS",
    exp.JSONObject: "OBJECT_CONSTRUCT_KEEP_NULL",
    exp.Struct: "OBJECT_CONSTRUCT",
}


def function_of(node: Any) -> str | None:
    """The name in FUNCTIONS of the function that the node calls, None for others."""
    if isinstance(node, exp.ParseJSON):
        return "TRY_PARSE_JSON" if node.args.get("safe") else "PARSE_JSON"
    if isinstance(node, exp.Anonymous):
        return node.name.upper() if node.name.upper() in FUNCTIONS else None
    return _RENAMED.get(type(node)) or (node.sql_name() if isinstance(node, _CLASSES) else None)


def arguments_of(node: Any) -> list[Any]:
    """The arguments in the order of the statement; keys and values alternate."""
    if isinstance(node, exp.Struct | exp.JSONObject):
        return [part for pair in node.expressions for part in (_key(pair.this), pair.expression)]
    values = [
        part for value in node.args.values() for part in (value if isinstance(value, list) else [value])
    ]
    parts = [part for part in values if isinstance(part, exp.Expr)]
    return parts[::-1] if isinstance(node, exp.ArrayContains | exp.ArrayPosition) else parts


def _key(node: Any) -> Any:
    return exp.Literal.string(node.name) if isinstance(node, exp.Identifier) else node
