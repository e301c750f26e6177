"""Results in the forms that clients read: Arrow, and JSON for drivers such as Snowflake's for Node.js.

In JSON each value is text in the form that drivers parse: a date in days, a time in seconds since the epoch.
"""

import json
from base64 import b64decode
from collections.abc import Callable
from datetime import date
from typing import Any, TypeAlias

import pyarrow as pa
from fakesnow import arrow

_Text: TypeAlias = Callable[[Any], str]
_structs_of_times = arrow.timestamp_to_sf_struct


def _times(times: Any) -> Any:
    """Timestamps as fakesnow's structs, in which the connector reads a NULL as 1970-01-01, with NULLs."""
    structs = _structs_of_times(times)
    parts = [structs.field(place).fill_null(0) for place in range(structs.type.num_fields)]
    mask = structs.field(0).is_null()
    return pa.StructArray.from_arrays(parts, fields=list(structs.type), mask=mask)


# fakesnow looks it up in its module whenever it sends timestamps.
vars(arrow)["timestamp_to_sf_struct"] = _times


def as_json(answer: bytes) -> dict[str, Any]:
    """The document of a response, its rows as JSON."""
    document: dict[str, Any] = json.loads(answer)
    data = document.get("data") or {}
    if data.get("queryResultFormat") == "arrow":
        rows = _rows(b64decode(data.pop("rowsetBase64")), [column["type"] for column in data["rowtype"]])
        data |= {"queryResultFormat": "json", "rowset": rows}
    if "rowset" in data:
        data["returned"] = len(data["rowset"])
    return document


def _rows(encoded: bytes, kinds: list[str]) -> list[list[str | None]]:
    if not encoded:
        return []
    with pa.ipc.open_stream(encoded) as stream:
        columns = [column.to_pylist() for column in stream.read_all().columns]
    texts = [_TEXTS.get(kind, str) for kind in kinds]
    return [
        [None if value is None else text(value) for text, value in zip(texts, row, strict=True)]
        for row in zip(*columns, strict=True)
    ]


def _days(value: date) -> str:
    return str((value - date(1970, 1, 1)).days)


def _seconds(value: dict[str, int]) -> str:
    return f"{value['epoch']}.{value['fraction']:09}"


def _seconds_and_zone(value: dict[str, int]) -> str:
    """The zone is in minutes; 1440 is UTC."""
    return f"{_seconds(value)} {value['timezone']}"


_TEXTS: dict[str, _Text] = {
    "boolean": lambda value: "1" if value else "0",
    "date": _days,
    "time": lambda nanoseconds: f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09}",
    "timestamp_ntz": _seconds,
    "timestamp_ltz": _seconds,
    "timestamp_tz": _seconds_and_zone,
    "binary": bytes.hex,
}
