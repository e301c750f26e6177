"""The headers and the body encoding of a call to an external function.

Source: Snowflake documentation, "Remote service input and output data formats" and CREATE EXTERNAL FUNCTION.
"""

import base64
import gzip
import re
import zlib
from typing import Any

from app.emulator.catalog import ExternalFunction
from app.emulator.query import Query
from app.emulator.refusals import invalid

MAX_CUSTOM_BYTES = 8192
_CUSTOM_NAME = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z-]+")  # an HTTP token without underscores
_CUSTOM_VALUE = re.compile(r"[!-~]+(?: [!-~]+)*")


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


def headers_of(function: ExternalFunction, query: Query, batch_id: str) -> dict[str, str]:
    """The headers of a call, without those of the body's encoding."""
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


def compress(body: bytes, compression: str) -> tuple[bytes, dict[str, str]]:
    """The encoded body and its headers. AUTO means gzip, as Snowflake does for Amazon API Gateway."""
    kind = compression.upper()
    if kind == "NONE":
        return body, {}
    if kind == "DEFLATE":
        return zlib.compress(body), {"Content-Encoding": "deflate", "Accept-Encoding": "deflate"}
    return gzip.compress(body, 1), {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}


def without_body(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if not name.startswith("Content-")}


def _plain_and_base64(name: str, text: str) -> dict[str, str]:
    """Two headers: ASCII with a blank for each run of other characters, and the exact text in base64."""
    plain = re.sub(r"[^ -~]+", " ", text)
    return {name: plain, f"{name}-base64": base64.b64encode(text.encode()).decode()}
