"""Looks up stages, integrations and functions that exist in Snowflake, with SHOW and DESC.

Sources: Snowflake documentation, SHOW STAGES, SHOW USER FUNCTIONS, DESC FUNCTION, DESC INTEGRATION.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from app.client import ClientError
from app.names import quote_identifier, quote_string
from app.provisioning.console import Console, StatementFailed


def describe_stage(console: Console, parts: Sequence[str]) -> dict[str, Any]:
    """The stage's row of SHOW STAGES. Raises ClientError if there is no such stage."""
    *parents, name = parts
    for row in _show(console, "STAGES", name, f"SCHEMA {quote_identifier(*parents)}".strip()):
        if row["name"] == name:
            return row
    raise ClientError(f"There is no stage {quote_identifier(*parts)}, or none that this role may use.")


def is_encrypted(stage: dict[str, Any]) -> bool:
    """Whether the stage is client-side encrypted (no SNOWFLAKE_SSE), so that URLs return ciphertext."""
    return str(stage["type"]) == "INTERNAL"


def is_external(stage: dict[str, Any]) -> bool:
    return str(stage["type"]).startswith("EXTERNAL")


def has_integration(console: Console, name: str) -> bool:
    return any(row["name"] == name for row in _show(console, "INTEGRATIONS", name))


def describe_integration(console: Console, name: str) -> dict[str, str]:
    """The integration's properties. Raises StatementFailed if there is none."""
    return _properties(console.rows(f"DESC INTEGRATION {quote_identifier(name)}"))


def allowed_prefixes(properties: dict[str, str]) -> list[str]:
    """The allowed URL prefixes; commas separate them, and may also occur inside them."""
    shown = properties.get("API_ALLOWED_PREFIXES", "").strip(" []")
    return [prefix.strip() for prefix in re.split(r",\s*(?=https?://)", shown) if prefix.strip()]


def describe_function(console: Console, parts: Sequence[str], types: str) -> dict[str, str]:
    """The function's properties and its `comment`; {} if there is no such function."""
    *parents, name = parts
    for row in _show(console, "USER FUNCTIONS", name, f"SCHEMA {quote_identifier(*parents)}"):
        if row["name"] == name and _types(row) == types:
            described = console.rows(f"DESC FUNCTION {quote_identifier(*parts)}({types})")
            return _properties(described) | {"comment": str(row.get("description") or "")}
    return {}


def functions_through(console: Console, integration: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Names and types of the external functions that use an integration, as far as this role can see them.

    If DESC FUNCTION hides the integration, every function whose URL the integration allows counts as its
    function.
    """
    prefixes = tuple(allowed_prefixes(describe_integration(console, integration)))
    for row in _show(console, "USER FUNCTIONS", "%", "ACCOUNT"):
        if row["is_external_function"] != "Y":
            continue
        name, types = (str(row["catalog_name"]), str(row["schema_name"]), str(row["name"])), _types(row)
        try:
            shown = _properties(console.rows(f"DESC FUNCTION {quote_identifier(*name)}({types})"))
        except StatementFailed:  # owned by another role
            continue
        used = shown.get("api_integration")
        if used == integration or (used is None and shown.get("body", "").startswith(prefixes)):
            yield name, types


def _show(console: Console, things: str, name: str, scope: str = "") -> list[dict[str, Any]]:
    """Rows whose name matches LIKE, which ignores case and reads _ as any character."""
    pattern = quote_string(name.replace("\\", "_"))
    return console.rows(f"SHOW {things} LIKE {pattern}" + (f" IN {scope}" if scope else ""))


def _types(row: dict[str, Any]) -> str:
    """`MY FN(VARCHAR, OBJECT) RETURN VARIANT` → `VARCHAR, OBJECT`; a name may hold parentheses too."""
    signature = str(row["arguments"]).rpartition(" RETURN")[0]
    return signature.rpartition("(")[2].removesuffix(")")


def _properties(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {str(row["property"]): str(row.get("property_value", row.get("value", ""))) for row in rows}
