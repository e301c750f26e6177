"""Statements on API integrations, external functions and service functions.

Source: Snowflake documentation, CREATE, ALTER, DESCRIBE, SHOW and DROP API INTEGRATION, CREATE EXTERNAL
FUNCTION, DESCRIBE and DROP FUNCTION, SHOW EXTERNAL FUNCTIONS, and CREATE, ALTER and DESCRIBE FUNCTION
(Snowpark Container Services).
"""

import re
from collections.abc import Collection
from dataclasses import replace as copy_with
from typing import Any

import pyarrow as pa
from fakesnow.dialect import parse_one

from app.emulator.catalog import ApiIntegration, ExternalFunction, FunctionKey, quote_function
from app.emulator.errors import already_exists, invalid, invalid_value, unsupported
from app.emulator.grammar import Tokens
from app.emulator.query import Answer, status
from app.emulator.rewriting import find_overloads, is_built_in
from app.emulator.session import Session
from app.emulator.supported import refuse_unknown
from app.emulator.wire import check_custom_headers
from app.names import quote_identifier

# API integrations.

_COMMON = {
    "API_PROVIDER": "String",
    "ENABLED": "Boolean",
    "API_KEY": "String",
    "API_ALLOWED_PREFIXES": "List",
    "API_BLOCKED_PREFIXES": "List",
    "COMMENT": "String",
}
# The options that each provider requires.
_REQUIRED = {
    "aws": ("API_AWS_ROLE_ARN",),
    "azure": ("AZURE_TENANT_ID", "AZURE_AD_APPLICATION_ID"),
    "google": ("GOOGLE_AUDIENCE",),
}
_INTEGRATION_OPTIONS = _COMMON | {name: "String" for names in _REQUIRED.values() for name in names}
_PROVIDER = re.compile(
    r"(?:(aws)(?:_gov)?(?:_private)?_api_gateway|aws_private_api_gateway|(azure)_api_management|(google)_api_gateway)"
)


def create_integration(tokens: Tokens, session: Session, *, replace: bool) -> Answer:
    keep = tokens.take_if_not_exists(replace=replace)
    [name] = tokens.take_name(max_parts=1)
    options = tokens.take_options(_INTEGRATION_OPTIONS)
    known = session.catalog.integrations
    if name in known and keep:
        return status(f"{name} already exists, statement succeeded.")
    if name in known and not replace:
        raise already_exists(name)
    _refuse_incomplete(options)
    _refuse_wrong(options)
    known[name] = ApiIntegration(name, options)
    session.catalog.drop_grants("INTEGRATION", quote_identifier(name))
    return status(f"Integration {name} successfully created.")


def alter_integration(tokens: Tokens, session: Session) -> Answer:
    optional = tokens.take("IF", "EXISTS")
    [name] = tokens.take_name(max_parts=1)
    tokens.require("SET")
    options = tokens.take_options(_INTEGRATION_OPTIONS)
    if "API_PROVIDER" in options:
        raise invalid("API_PROVIDER cannot be altered.")
    _refuse_wrong(options)
    if not optional or name in session.catalog.integrations:
        session.catalog.integration(name).options |= options
    return status()


def drop_integration(tokens: Tokens, session: Session) -> Answer:
    optional = tokens.take("IF", "EXISTS")
    [name] = tokens.take_name(max_parts=1)
    tokens.require_end()
    if optional and name not in session.catalog.integrations:
        return status(f"Drop statement executed successfully ({name} already dropped).")
    del session.catalog.integrations[session.catalog.integration(name).name]
    session.catalog.drop_grants("INTEGRATION", quote_identifier(name))
    return status(f"{name} successfully dropped.")


def describe_integration(tokens: Tokens, session: Session) -> Answer:
    [name] = tokens.take_name(max_parts=1)
    tokens.require_end()
    integration = session.catalog.integration(name)
    shown = integration.options | {"ENABLED": str(integration.is_enabled).lower()}
    rows = [
        [name, kind, _text(shown.get(name, "")), ""]
        for name, kind in _INTEGRATION_OPTIONS.items()
        if name != "API_KEY" and (name in _COMMON or name in integration.options)
    ]
    return Answer(
        ["property", "property_type", "property_value", "property_default"], rows + _trust_rows(integration)
    )


def show_integrations(tokens: Tokens, session: Session) -> Answer:
    shown = session.take_filter(tokens, is_account_level=True)
    rows = [
        [
            each.name,
            f"EXTERNAL_API - {each.options['API_PROVIDER']}".upper(),
            "API",
            str(each.is_enabled).lower(),
            each.options.get("COMMENT", ""),
        ]
        for each in session.catalog.integrations.values()
        if shown(("", "", each.name))
    ]
    return Answer(["name", "type", "category", "enabled", "comment"], rows)


def _provider(options: dict[str, Any]) -> str:
    match = _PROVIDER.fullmatch(str(options.get("API_PROVIDER", "")).lower())
    if match is None:
        raise invalid_value("API_PROVIDER", options.get("API_PROVIDER"))
    return next((group for group in match.groups() if group), "aws")


def _refuse_incomplete(options: dict[str, Any]) -> None:
    required = (*_REQUIRED[_provider(options)], "API_ALLOWED_PREFIXES")
    missing = [name for name in required if name not in options]
    if missing:
        raise invalid(f"Missing option(s): {missing}")


def _refuse_wrong(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if isinstance(value, list) != (_INTEGRATION_OPTIONS[name] == "List") or isinstance(value, dict):
            raise invalid(f"invalid value for parameter '{name}'")  # the value may be a secret
    if str(options.get("ENABLED", "TRUE")).upper() not in {"TRUE", "FALSE"}:
        raise invalid_value("ENABLED", options["ENABLED"])


def _trust_rows(integration: ApiIntegration) -> list[list[str]]:
    trust = {
        "aws": {
            "API_AWS_IAM_USER_ARN": "arn:aws:iam::000000000000:user/local",
            "API_AWS_EXTERNAL_ID": integration.external_id,
        },
        "azure": {
            "AZURE_MULTI_TENANT_APP_NAME": "local_snowflake",
            "AZURE_CONSENT_URL": "https://login.microsoftonline.com/local/oauth2/authorize",
        },
        "google": {"API_GCP_SERVICE_ACCOUNT": "local@local.iam.gserviceaccount.com"},
    }
    return [[name, "String", value, ""] for name, value in trust[_provider(integration.options)].items()]


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


# External functions and service functions.

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
    "FILE": "FILE",
}
_EXTERNAL_OPTIONS = frozenset(
    {"COMMENT", "API_INTEGRATION", "HEADERS", "CONTEXT_HEADERS", "MAX_BATCH_ROWS", "COMPRESSION"}
)
_SQL_OPTIONS = frozenset({"COMMENT"})
# The types that a function in SQL takes and returns without a conversion.
_SQL_TYPES = frozenset({"FILE", "OBJECT"})
_INTEGERS = {
    "MAX_BATCH_ROWS": range(1, 2**31),
    "MAX_BATCH_RETRIES": range(2**31),
    "BATCH_TIMEOUT_SECS": range(1, 604_801),
}
_ALTERABLE_OPTIONS = frozenset({"CONTEXT_HEADERS", "ON_BATCH_FAILURE", "SERVICE", "ENDPOINT", *_INTEGERS})
_SERVICE_OPTIONS = _ALTERABLE_OPTIONS | {"COMMENT"}
_COMPRESSIONS = frozenset({"NONE", "GZIP", "DEFLATE", "AUTO"})


def create_function(
    tokens: Tokens, session: Session, *, replace: bool, alter: bool, is_secure: bool
) -> Answer:
    function = _take_function(tokens, session, _EXTERNAL_OPTIONS, is_secure=is_secure)
    check_custom_headers(function.options.get("HEADERS") or {})
    if str(function.options.get("COMPRESSION", "AUTO")).upper() not in _COMPRESSIONS:
        raise invalid_value("COMPRESSION", function.options["COMPRESSION"])
    return _add_function(function, session, replace=replace, alter=alter)


def create_service_function(tokens: Tokens, session: Session, *, replace: bool, alter: bool) -> Answer:
    function = _take_function(tokens, session, _SERVICE_OPTIONS)
    return _add_function(function, session, replace=replace, alter=alter)


def create_sql_function(tokens: Tokens, session: Session, *, replace: bool) -> Answer:
    """Only of a FILE: rewriting puts its expression in the place of the call."""
    function = _take_function(tokens, session, _SQL_OPTIONS, language="SQL")
    if not set(function.argument_types) <= _SQL_TYPES or function.returns != "VARIANT":
        raise unsupported("a function in SQL other than of FILE and OBJECT, with RETURNS VARIANT")
    sql = f"SELECT {function.body}"
    refuse_unknown(parse_one(sql), sql, lambda node: bool(find_overloads(node, session)))
    return _add_function(function, session, replace=replace, alter=False)


def alter_function(tokens: Tokens, session: Session) -> Answer:
    """Only of a service function: an external function has no property in common with it that ALTER sets."""
    optional = tokens.take("IF", "EXISTS")
    key = take_function_key(tokens, session)
    if optional and key not in session.catalog.functions:
        return status()
    function = session.catalog.function(key)
    if function.service is None:
        raise unsupported("ALTER FUNCTION of an external function")
    tokens.require("SET")
    options = dict(function.options)
    while not tokens.at_end:
        _take_option(tokens, session, _ALTERABLE_OPTIONS, options)
    changed = copy_with(function, options=options)
    _check(changed, session)
    session.catalog.functions[key] = changed
    return status()


def _take_function(
    tokens: Tokens,
    session: Session,
    known: Collection[str],
    *,
    is_secure: bool = False,
    language: str | None = None,
) -> ExternalFunction:
    """Read a function's name, arguments and clauses, of which the options must be in `known`.

    `language` is that of the body, None if it is a URL or a path.
    """
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
    is_strict, is_immutable, options = _take_clauses(tokens, session, known, language)
    body = tokens.take_string()
    tokens.require_end()
    function = ExternalFunction(name, arguments, returns, body, options, is_strict, is_secure, is_immutable)
    if language is None:
        _check(function, session)
    return function


def _add_function(function: ExternalFunction, session: Session, *, replace: bool, alter: bool) -> Answer:
    name = function.name[-1]
    known = session.catalog.functions.get(function.key)
    if known is not None and not (replace or alter):
        raise already_exists(name)
    if known is not None and alter and _definition(known) != _definition(function):
        raise invalid("CREATE OR ALTER cannot change a function's definition or return type.")
    session.catalog.functions[function.key] = function
    if not alter:
        session.catalog.drop_grants("FUNCTION", quote_function(function.key))
    return status(f"Function {name} successfully created.")


def _definition(function: ExternalFunction) -> tuple[object, ...]:
    return function.returns, function.body, function.is_strict, function.is_immutable


def drop_function(tokens: Tokens, session: Session) -> Answer:
    optional = tokens.take("IF", "EXISTS")
    key = take_function_key(tokens, session)
    name = key[0][-1]
    tokens.require_end()
    if optional and key not in session.catalog.functions:
        return status(f"Drop statement executed successfully ({name} already dropped).")
    del session.catalog.functions[session.catalog.function(key).key]
    session.catalog.drop_grants("FUNCTION", quote_function(key))
    return status(f"{name} successfully dropped.")


def describe_function(tokens: Tokens, session: Session) -> Answer:
    function = session.catalog.function(take_function_key(tokens, session))
    tokens.require_end()
    options = function.options
    properties: dict[str, Any] = {
        "signature": function.signature,
        "returns": function.returns,
        "language": _language(function),
        "null handling": "RETURNS NULL ON NULL INPUT" if function.is_strict else "CALLED ON NULL INPUT",
        "volatility": "IMMUTABLE" if function.is_immutable else "VOLATILE",
        "body": function.body,
    }
    if function.is_sql:
        return Answer(["property", "value"], [[name, value] for name, value in properties.items()])
    properties |= {
        "headers": str(options.get("HEADERS", "null")),
        "context_headers": str(options.get("CONTEXT_HEADERS", "null")),
        "max_batch_rows": str(function.max_batch_rows or "not set"),
    }
    if function.service is not None:
        properties |= {
            "service": function.service[-1],
            "service_endpoint": options["ENDPOINT"],
            "max_batch_retries": str(function.max_batch_retries),
            "on_batch_failure": "RETURN_NULL" if function.returns_null_on_failure else "ABORT",
            "batch_timeout_secs": str(options.get("BATCH_TIMEOUT_SECS", "not set")),
        }
    else:
        properties |= {
            "request_translator": "null",
            "response_translator": "null",
            "compression": options.get("COMPRESSION", "AUTO"),
            "api_integration": options["API_INTEGRATION"],
        }
    return Answer(["property", "value"], [[name, value] for name, value in properties.items()])


def show_functions(tokens: Tokens, session: Session, *, only_external: bool = False) -> Answer:
    shown = session.take_filter(tokens)
    return Answer(
        list(_FUNCTION_COLUMNS),
        [
            _function_row(each)
            for each in session.catalog.functions.values()
            if shown(each.name) and not (only_external and _language(each) != "EXTERNAL")
        ],
        {name: kind for name, kind in _FUNCTION_COLUMNS.items() if kind is not None},
    )


def show_external_functions(tokens: Tokens, session: Session) -> Answer:
    return show_functions(tokens, session, only_external=True)


# With the Arrow types of those that are not text.
_FUNCTION_COLUMNS = {
    "created_on": pa.timestamp("us", "UTC"),
    "name": None,
    "schema_name": None,
    "is_builtin": None,
    "is_aggregate": None,
    "is_ansi": None,
    "min_num_arguments": pa.int64(),
    "max_num_arguments": pa.int64(),
    "arguments": None,
    "description": None,
    "catalog_name": None,
    "is_table_function": None,
    "valid_for_clustering": None,
    "is_secure": None,
    "is_external_function": None,
    "language": None,
    "is_memoizable": None,
    "is_data_metric": None,
}


def _function_row(function: ExternalFunction) -> list[Any]:
    count, language = len(function.arguments), _language(function)
    arguments = f"({', '.join(function.argument_types)}) RETURN {_unsized(function.returns)}"
    row = dict.fromkeys(_FUNCTION_COLUMNS, "N") | {
        "created_on": function.created_on,
        "name": function.name[-1],
        "schema_name": function.name[1],
        "catalog_name": function.name[0],
        "min_num_arguments": count,
        "max_num_arguments": count,
        "arguments": function.name[-1] + arguments,
        "description": function.options.get("COMMENT", "user-defined function"),
        "is_secure": "Y" if function.is_secure else "N",
        "is_external_function": "Y" if language == "EXTERNAL" else "N",
        "language": language,
    }
    return list(row.values())


def _language(function: ExternalFunction) -> str | None:
    return function.options.get("LANGUAGE", None if function.service else "EXTERNAL")


def take_function_key(tokens: Tokens, session: Session) -> FunctionKey:
    """Read `name(type, …)`."""
    name = session.qualify(tokens.take_name())
    return name, tuple(_unsized(kind) for kind in tokens.take_list(lambda: _take_type(tokens)))


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


def _take_clauses(
    tokens: Tokens, session: Session, known: Collection[str], language: str | None
) -> tuple[bool, bool, dict[str, Any]]:
    """Read the clauses up to AS: whether the function is strict, whether it is immutable, its options."""
    is_strict = is_immutable = False
    options: dict[str, Any] = {} if language is None else {"LANGUAGE": language}
    while not tokens.take("AS"):
        if language and tokens.take("LANGUAGE", language):
            continue
        if tokens.take("STRICT") or tokens.take("RETURNS", "NULL", "ON", "NULL", "INPUT"):
            is_strict = True
        elif tokens.take("IMMUTABLE"):
            is_immutable = True
        elif not (tokens.take("VOLATILE") or tokens.take("CALLED", "ON", "NULL", "INPUT")):
            _take_option(tokens, session, known, options)
    return is_strict, is_immutable, options


def _take_option(tokens: Tokens, session: Session, known: Collection[str], options: dict[str, Any]) -> None:
    name = tokens.take_token().text.upper()
    if name not in known:
        raise unsupported(f"{name} of this kind of function")
    tokens.require("=")
    if name == "API_INTEGRATION":
        [options[name]] = tokens.take_name(max_parts=1)
    elif name == "SERVICE":
        options[name] = session.qualify(tokens.take_name())
    else:
        options[name] = tokens.take_value()


def _check(function: ExternalFunction, session: Session) -> None:
    """Raises ProgrammingError for an option that Snowflake refuses."""
    options = function.options
    if "FILE" in function.argument_types:
        raise unsupported("FILE as an argument of an external function")
    session.catalog.url(function)
    for name in options.keys() & _INTEGERS:
        value = str(options[name])
        if not value.isdecimal() or int(value) not in _INTEGERS[name]:
            raise invalid_value(name, value)
    if str(options.get("ON_BATCH_FAILURE", "ABORT")).upper() not in {"ABORT", "RETURN_NULL"}:
        raise invalid_value("ON_BATCH_FAILURE", options["ON_BATCH_FAILURE"])
    context = options.get("CONTEXT_HEADERS", [])
    if not isinstance(context, list):
        raise invalid_value("CONTEXT_HEADERS", context)
    if unknown := {name.upper() for name in context} - session.context().keys():
        raise unsupported(f"context header {', '.join(sorted(unknown))}")
