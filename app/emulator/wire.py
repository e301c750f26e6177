"""The wire format of external and service functions: a batch's request, its headers, and the response to it.

Source: Snowflake documentation, "Remote service input and output data formats", "Data type conversion" and
CREATE EXTERNAL FUNCTION. The error messages are Snowflake's, as quoted by its users.
"""

import base64
import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Any, Self

from snowflake.connector.errors import ProgrammingError

from app.emulator.catalog import ExternalFunction
from app.emulator.errors import invalid, invalid_arguments, not_recognized, unsupported
from app.emulator.query import Query

MAX_RESPONSE_BYTES = 10_000_000
MAX_CUSTOM_BYTES = 8192
_CUSTOM_NAME = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z-]+")  # an HTTP token without underscores
_CUSTOM_VALUE = re.compile(r"[!-~]+(?: [!-~]+)*")


@dataclass(frozen=True)
class Batch:
    """One batch of rows. Every attempt sends the same id and the same bytes."""

    function: ExternalFunction
    id: str
    rows: int
    body: bytes
    headers: dict[str, str]

    @classmethod
    def encode(cls, function: ExternalFunction, query: Query, rows: Sequence[Sequence[Any]]) -> Self:
        batch_id = query.next_batch_id()
        document = {"data": [[number, *values] for number, values in enumerate(rows)]}
        body, encoding = _compress(
            json.dumps(document, ensure_ascii=False, allow_nan=False).encode(),
            "NONE" if function.service else function.options.get("COMPRESSION", "AUTO"),
        )
        return cls(function, batch_id, len(rows), body, _headers(function, query, batch_id) | encoding)

    @property
    def polling_headers(self) -> dict[str, str]:
        return {name: value for name, value in self.headers.items() if not name.startswith("Content-")}

    @property
    def null_answer(self) -> bytes:
        """The body of a response with NULL for every row."""
        return json.dumps({"data": [[number, None] for number in range(self.rows)]}).encode()

    def decode(self, body: bytes) -> list[str | None]:
        """The value of each row as JSON. Raises ProgrammingError for a response that Snowflake rejects."""
        if len(body) > MAX_RESPONSE_BYTES:
            raise self.failure(100351, "22023", f"with a response of more than {MAX_RESPONSE_BYTES} bytes")
        try:
            rows = _parse(body)
            if len(rows) != self.rows:
                message = f"Function received the wrong number of rows, expected {self.rows}, got {len(rows)}"
                raise self.failure(100352, "22023", message)
            if any(type(row[0]) is not int or row[0] != index for index, row in enumerate(rows)):
                raise self.failure(100353, "22023", "Row numbers out of order")
            return [None if value is None else _to_json(value) for _, value in rows]
        except (ValueError, RecursionError) as error:
            raise self.not_json(error) from None

    def not_json(self, error: Exception) -> ProgrammingError:
        return self.failure(100287, "22P02", f"Error parsing JSON response: {error}")

    def failure(self, number: int, sql_state: str, message: str) -> ProgrammingError:
        name = ".".join(self.function.name)
        return ProgrammingError(
            msg=f"Request failed for external function {name}, request batch id {self.id}: {message}",
            errno=number,
            sqlstate=sql_state,
        )


# Headers and compression.


def check_custom_headers(headers: Any) -> None:
    """Raises ProgrammingError for an invalid name, value or total size."""
    if not isinstance(headers, dict):
        raise invalid("HEADERS must be a list of 'name' = 'value' pairs.")
    for name, value in headers.items():
        if (
            not _CUSTOM_NAME.fullmatch(name)
            or not isinstance(value, str)
            or not _CUSTOM_VALUE.fullmatch(value)
        ):
            raise invalid(f"invalid header '{name}' for parameter 'HEADERS'")
    if sum(len(name) + len(value) for name, value in headers.items()) > MAX_CUSTOM_BYTES:
        raise invalid(f"HEADERS must have at most {MAX_CUSTOM_BYTES} bytes.")


def _headers(function: ExternalFunction, query: Query, batch_id: str) -> dict[str, str]:
    """The headers of a request, without those of the body's encoding."""
    returns = "VARCHAR(134217728)" if function.returns == "VARCHAR" else function.returns
    described = {"name": function.name[-1], "signature": function.signature, "return-type": returns}
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "snowflake/1.0",
        "Accept": "*/*",
        "sf-external-function-format": "json",
        "sf-external-function-format-version": "1.0",
        "sf-external-function-current-query-id": query.id,
        "sf-external-function-query-batch-id": batch_id,
    }
    for key, text in described.items():
        headers |= _plain_and_base64(f"sf-external-function-{key}", text)
    for name, value in function.options.get("HEADERS", {}).items():
        headers[f"sf-custom-{name}"] = value
    for name in function.options.get("CONTEXT_HEADERS", ()):
        key = name.lower().replace("_", "-")
        headers |= _plain_and_base64(f"sf-context-{key}", query.context[name.upper()])
    return headers


def _plain_and_base64(name: str, text: str) -> dict[str, str]:
    """Two headers: ASCII with a blank for each run of other characters, and the exact text in base64."""
    plain = re.sub(r"[^ -~]+", " ", text)
    return {name: plain, f"{name}-base64": base64.b64encode(text.encode()).decode()}


def _compress(body: bytes, compression: str) -> tuple[bytes, dict[str, str]]:
    """The encoded body and its headers. AUTO means gzip, as Snowflake does for Amazon API Gateway."""
    kind = compression.upper()
    if kind == "NONE":
        return body, {}
    if kind == "DEFLATE":
        return zlib.compress(body), {"Content-Encoding": "deflate", "Accept-Encoding": "deflate"}
    return gzip.compress(body, 1), {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}


# Arguments, in the types that the function declares.

_TRUE = frozenset({"true", "t", "yes", "y", "on", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "off", "0"})
_DIGITS = Context(prec=80, rounding=ROUND_HALF_UP)
_SCALE = re.compile(r"\(\s*\d+\s*,\s*(\d+)\s*\)")


def read_arguments(row: str) -> list[Any]:
    """Parse a row that DuckDB wrote as a JSON array. Raises ProgrammingError for NaN and infinity."""

    def refuse(name: str) -> Any:
        raise unsupported(f"{name} as an argument of an external function")

    arguments: list[Any] = json.loads(row, parse_constant=refuse)
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
        names = {dict: "OBJECT", list: "ARRAY", str: "VARCHAR", bool: "BOOLEAN", float: "FLOAT"}
        given = names.get(type(value), "NUMBER")
        raise invalid_arguments(function.name[-1], given, function.signature) from None


def _to_text(value: Any, _: str) -> str:
    """Return a string unchanged, and JSON for any other VARIANT."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _to_number(value: Any, kind: str) -> int | float:
    """Round to the declared scale, 0 by default."""
    _require_scalar(value)
    try:
        number = Decimal(str(int(value) if isinstance(value, bool) else value))
        scale = _SCALE.search(kind)
        rounded = number.quantize(Decimal(1).scaleb(-int(scale[1]) if scale else 0), context=_DIGITS)
    except InvalidOperation:
        raise not_recognized("Numeric", value) from None
    return int(rounded) if rounded == rounded.to_integral() else float(rounded)


def _to_float(value: Any, _: str) -> float:
    _require_scalar(value)
    try:
        return float(value)
    except ValueError:
        raise not_recognized("Numeric", value) from None


def _to_boolean(value: Any, _: str) -> bool:
    _require_scalar(value)
    if not isinstance(value, str):
        return bool(value)
    if value.lower() not in _TRUE | _FALSE:
        raise not_recognized("Boolean", value)
    return value.lower() in _TRUE


def _require_scalar(value: Any) -> None:
    if isinstance(value, dict | list):
        raise TypeError


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


# Responses.


def outcome_of(value: str | None) -> dict[str, Any]:
    """An outcome of our service; empty for any other value."""
    if value is None or '"error"' not in value:
        return {}
    outcome = json.loads(value)
    return outcome if isinstance(outcome, dict) else {}


def _parse(body: bytes) -> list[list[Any]]:
    """Pairs of row number and value. Raises ValueError for other documents."""
    document = json.loads(body, parse_constant=_refuse_constant, parse_float=_finite)
    rows = document.get("data") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise ValueError('top-level JSON object must contain "data" JSON array element')  # noqa: TRY004
    for index, row in enumerate(rows):
        elements = len(row) if isinstance(row, list) else 0
        if elements != 2:
            raise ValueError(f"index {index} contains {elements} elements, but 2 elements are expected")
    return rows


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def _finite(digits: str) -> float:
    """An integer without its zeros: a VARIANT shows 1.0 as 1.

    Raises ValueError for a number such as 1e999, which Python reads as infinity.
    """
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:20]} is out of range")
    return int(value) if value.is_integer() and "e" not in digits.lower() else value


def _to_json(value: Any) -> str:
    """Raises ValueError for a lone surrogate, which JSON can escape but UTF-8 cannot encode."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    text.encode()
    return text
