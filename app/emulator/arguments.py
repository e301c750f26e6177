"""Convert the arguments of a call to the types that the external function declares, as Snowflake does.

Source: Snowflake documentation, "Data type conversion".
"""

import json
import re
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Any

from snowflake.connector.errors import ProgrammingError

from app.emulator.catalog import ExternalFunction
from app.emulator.refusals import invalid_arguments, unsupported

_TRUE = frozenset({"true", "t", "yes", "y", "on", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "off", "0"})
_DIGITS = Context(prec=80, rounding=ROUND_HALF_UP)
_SCALE = re.compile(r"\(\s*\d+\s*,\s*(\d+)\s*\)")


def read_arguments(row: str) -> list[Any]:
    """Parse a row that DuckDB wrote as a JSON array. Raises ProgrammingError for NaN and infinity."""
    arguments: list[Any] = json.loads(row, parse_constant=_refuse_constant)
    return arguments


def coerce(function: ExternalFunction, row: Sequence[Any]) -> list[Any]:
    """The row in the declared types. Raises ProgrammingError for a value that Snowflake does not coerce."""
    return [
        None if value is None else _coerce_one(value, kind, function)
        for value, (_, kind) in zip(row, function.arguments, strict=True)
    ]


def _coerce_one(value: Any, kind: str, function: ExternalFunction) -> Any:
    try:
        return _COERCIONS[kind.partition("(")[0]](value, kind)
    except TypeError:
        raise invalid_arguments(function.name[-1], _type_of(value), function.signature) from None


def _to_text(value: Any, _: str) -> str:
    """Return a string unchanged, and JSON for any other VARIANT."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _to_number(value: Any, kind: str) -> int | float:
    """Round to the declared scale, 0 by default."""
    if isinstance(value, dict | list):
        raise TypeError
    try:
        number = Decimal(str(int(value) if isinstance(value, bool) else value))
        scale = _SCALE.search(kind)
        rounded = number.quantize(Decimal(1).scaleb(-int(scale[1]) if scale else 0), context=_DIGITS)
    except InvalidOperation:
        raise _not_recognized("Numeric", value) from None
    return int(rounded) if rounded == rounded.to_integral() else float(rounded)


def _to_float(value: Any, _: str) -> float:
    if isinstance(value, dict | list):
        raise TypeError
    try:
        return float(value)
    except ValueError:
        raise _not_recognized("Numeric", value) from None


def _to_boolean(value: Any, _: str) -> bool:
    if isinstance(value, dict | list):
        raise TypeError
    word = value.lower() if isinstance(value, str) else None
    if word is not None and word not in _TRUE | _FALSE:
        raise _not_recognized("Boolean", value)
    return bool(value) if word is None else word in _TRUE


def _only(expected: type) -> Callable[[Any, str], Any]:
    def check(value: Any, _: str) -> Any:
        if not isinstance(value, expected):
            raise TypeError
        return value

    return check


_COERCIONS: dict[str, Callable[[Any, str], Any]] = {
    "VARCHAR": _to_text,
    "NUMBER": _to_number,
    "FLOAT": _to_float,
    "BOOLEAN": _to_boolean,
    "BINARY": _only(str),
    "VARIANT": _only(object),
    "OBJECT": _only(dict),
    "ARRAY": _only(list),
}


def _type_of(value: Any) -> str:
    names = {dict: "OBJECT", list: "ARRAY", str: "VARCHAR", bool: "BOOLEAN", float: "FLOAT"}
    return names.get(type(value), "NUMBER")


def _not_recognized(kind: str, value: Any) -> ProgrammingError:
    return ProgrammingError(msg=f"{kind} value '{value}' is not recognized", errno=100038, sqlstate="22018")


def _refuse_constant(name: str) -> Any:
    raise unsupported(f"{name} as an argument of an external function")
