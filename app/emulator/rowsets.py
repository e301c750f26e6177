"""Results as JSON, for clients that read no Arrow, such as Snowflake's driver for Node.js.

Each value is text in the form that drivers parse: a date in days, a time in seconds since the epoch.
"""

import json
from base64 import b64decode
from collections.abc import Callable
from datetime import date
from typing import Any, TypeAlias

import pyarrow as pa

_Text: TypeAlias = Callable[[Any], str]


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
        [None if _is_null(value) else text(value) for text, value in zip(texts, row, strict=True)]
        for row in zip(*columns, strict=True)
    ]


def _is_null(value: Any) -> bool:
    """Including timestamps, which fakesnow sends as {epoch, fraction}."""
    return value is None or (isinstance(value, dict) and value["epoch"] is None)


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
