"""Statements on external functions: create, describe, show, drop.

Source: Snowflake documentation, CREATE EXTERNAL FUNCTION, DESCRIBE FUNCTION and SHOW EXTERNAL FUNCTIONS.
"""

from typing import TYPE_CHECKING, Any

from app.emulator.answer import Answer, status
from app.emulator.catalog import ExternalFunction, Name
from app.emulator.filters import take_filter
from app.emulator.grammar import Tokens
from app.emulator.headers import check_custom_headers
from app.emulator.refusals import already_exists, invalid, not_found, unsupported
from app.emulator.rewriting import is_built_in

if TYPE_CHECKING:
    from app.emulator.session import LocalConnection

_TYPES = {
    "VARCHAR": "VARCHAR",
    "STRING": "VARCHAR",
    "TEXT": "VARCHAR",
    "CHAR": "VARCHAR",
    "OBJECT": "OBJECT",
    "VARIANT": "VARIANT",
    "ARRAY": "ARRAY",
    "NUMBER": "NUMBER",
    "DECIMAL": "NUMBER",
    "NUMERIC": "NUMBER",
    "BIGINT": "NUMBER",
    "INTEGER": "NUMBER",
    "INT": "NUMBER",
    "FLOAT": "FLOAT",
    "DOUBLE": "FLOAT",
    "BOOLEAN": "BOOLEAN",
    "BINARY": "BINARY",
}
_OPTIONS = dict.fromkeys(
    ("COMMENT", "API_INTEGRATION", "HEADERS", "CONTEXT_HEADERS", "MAX_BATCH_ROWS", "COMPRESSION"), ""
)
_COMPRESSIONS = frozenset({"NONE", "GZIP", "DEFLATE", "AUTO"})


def create_external_function(tokens: Tokens, session: "LocalConnection") -> Answer:
    tokens.require("CREATE")
    replace = tokens.take("OR", "REPLACE")
    is_secure = tokens.take("SECURE")
    tokens.require("EXTERNAL", "FUNCTION")
    name = session.qualify(tokens.take_name())
    session.require_schema(*name[:2])
    if is_built_in(name[-1]):
        raise unsupported(f"external function with the name of a system function, {name[-1]}")
    arguments = tuple(tokens.take_list(lambda: _take_argument(tokens)))
    tokens.require("RETURNS")
    returns = _take_type(tokens)
    if returns == "BINARY":
        raise unsupported("RETURNS BINARY")
    tokens.take("NOT", "NULL")
    is_strict, is_immutable, options = _take_clauses(tokens)
    url = tokens.take_string()
    tokens.require_end()
    _check(options, url, session)
    function = ExternalFunction(
        name,
        arguments,
        returns,
        options["API_INTEGRATION"],
        url,
        options,
        is_strict,
        is_secure,
        is_immutable,
    )
    known = session.local.catalog.functions
    key = name, function.argument_types
    if key in known and not replace:
        raise already_exists(name[-1])
    session.local.catalog.drop_function(key)  # and its grants, as in Snowflake
    known[key] = function
    return status(f"Function {name[-1]} successfully created.")


def drop_function(tokens: Tokens, session: "LocalConnection") -> Answer:
    optional = tokens.take("IF", "EXISTS")
    key = _take_signature(tokens, session)
    tokens.require_end()
    if key not in session.local.catalog.functions:
        if not optional:
            raise not_found("Function", key[0][-1])
        return status("Drop statement executed successfully (it was not there).")
    session.local.catalog.drop_function(key)
    return status(f"{key[0][-1]} successfully dropped.")


def describe_function(tokens: Tokens, session: "LocalConnection") -> Answer:
    key = _take_signature(tokens, session)
    tokens.require_end()
    function = session.local.catalog.functions.get(key)
    if function is None:
        raise not_found("Function", key[0][-1])
    properties: dict[str, Any] = {
        "signature": function.signature,
        "returns": function.returns,
        "language": "EXTERNAL",
        "null handling": "RETURNS NULL ON NULL INPUT" if function.is_strict else "CALLED ON NULL INPUT",
        "volatility": "IMMUTABLE" if function.is_immutable else "VOLATILE",
        "body": function.url,
        "headers": str(function.options.get("HEADERS", "null")),
        "context_headers": str(function.options.get("CONTEXT_HEADERS", "null")),
        "max_batch_rows": str(function.max_batch_rows or "not set"),
        "request_translator": "null",
        "response_translator": "null",
        "compression": function.options.get("COMPRESSION", "AUTO"),
        "api_integration": function.integration,
    }
    return Answer(["property", "value"], [[name, value] for name, value in properties.items()])


def show_external_functions(tokens: Tokens, session: "LocalConnection") -> Answer:
    shown = take_filter(tokens, session)
    rows = [
        [
            function.name[-1],
            function.name[1],
            function.name[0],
            f"{function.name[-1]}({', '.join(function.argument_types)}) RETURN {_unsized(function.returns)}",
            function.options.get("COMMENT", ""),
            "Y",
        ]
        for function in session.local.catalog.functions.values()
        if shown(function.name)
    ]
    columns = ["name", "schema_name", "catalog_name", "arguments", "description", "is_external_function"]
    return Answer(columns, rows)


def take_types(tokens: Tokens) -> tuple[str, ...]:
    """The argument types of a signature without sizes, by which Snowflake distinguishes overloads."""
    return tuple(_unsized(kind) for kind in tokens.take_list(lambda: _take_type(tokens)))


def _take_argument(tokens: Tokens) -> tuple[str, str]:
    [name] = tokens.take_name(max_parts=1)
    return name, _take_type(tokens)


def _unsized(kind: str) -> str:
    return kind.partition("(")[0]


def _take_type(tokens: Tokens) -> str:
    """The declared type under its canonical name, with its sizes: NUMBER(10,2) for DECIMAL(10, 2)."""
    word = tokens.take_token().text.upper()
    if word not in _TYPES:
        raise unsupported(f"type {word} in an external function")
    if tokens.words(1) != ("(",):
        return _TYPES[word]
    sizes = tokens.take_list(lambda: tokens.take_token().text)
    return f"{_TYPES[word]}({','.join(sizes)})"


def _take_clauses(tokens: Tokens) -> tuple[bool, bool, dict[str, Any]]:
    """Read the clauses up to AS: whether the function is strict, whether it is immutable, its options."""
    is_strict = is_immutable = False
    options: dict[str, Any] = {}
    while not tokens.take("AS"):
        if tokens.take("STRICT") or tokens.take("RETURNS", "NULL", "ON", "NULL", "INPUT"):
            is_strict = True
        elif tokens.take("IMMUTABLE"):
            is_immutable = True
        elif not (tokens.take("VOLATILE") or tokens.take("CALLED", "ON", "NULL", "INPUT")):
            name = tokens.take_token().text.upper()
            if name not in _OPTIONS:
                raise unsupported(f"{name} of an external function")
            tokens.require("=")
            options[name] = _take_option(name, tokens)
    return is_strict, is_immutable, options


def _take_option(name: str, tokens: Tokens) -> Any:
    if name != "API_INTEGRATION":
        return tokens.take_value()
    [integration] = tokens.take_name(max_parts=1)
    return integration


def _check(options: dict[str, Any], url: str, session: "LocalConnection") -> None:
    name = str(options.get("API_INTEGRATION", ""))
    integration = session.local.catalog.integrations.get(name)
    if integration is None:
        raise not_found("Integration", name)
    integration.check_url(url)
    check_custom_headers(options.get("HEADERS") or {})
    if str(options.get("COMPRESSION", "AUTO")).upper() not in _COMPRESSIONS:
        raise _invalid_value("COMPRESSION", options)
    if not str(options.get("MAX_BATCH_ROWS", 1)).isdecimal() or int(options.get("MAX_BATCH_ROWS", 1)) < 1:
        raise _invalid_value("MAX_BATCH_ROWS", options)
    context = options.get("CONTEXT_HEADERS", [])
    if not isinstance(context, list):
        raise _invalid_value("CONTEXT_HEADERS", options)
    if unknown := {name.upper() for name in context} - session.context().keys():
        raise unsupported(f"context header {', '.join(sorted(unknown))}")


def _invalid_value(name: str, options: dict[str, Any]) -> Exception:
    return invalid(f"invalid value [{options[name]}] for parameter '{name}'")


def _take_signature(tokens: Tokens, session: "LocalConnection") -> tuple[Name, tuple[str, ...]]:
    name = session.qualify(tokens.take_name())
    return name, take_types(tokens)
