"""The statements that the emulator executes itself; fakesnow executes all others.

Source: Snowflake documentation, USE, ALTER SESSION, GRANT and REVOKE <privileges>, and SHOW GRANTS.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TypeAlias

from app.emulator import functions, loading, stages, tasks
from app.emulator.catalog import SCHEMA, Grant, quote_function
from app.emulator.errors import not_found, unsupported
from app.emulator.grammar import Tokens
from app.emulator.query import Answer, status
from app.emulator.session import Session
from app.names import quote_identifier

Statement: TypeAlias = Callable[[Tokens, Session], Answer]


def answer_statement(sql: str, session: Session) -> Answer | None:
    """The result of a statement that the emulator executes, None for others. Raises ProgrammingError."""
    tokens = Tokens(sql)
    statement = _find(tokens)
    if statement is None:
        return None
    if statement is tasks.execute_task:  # its statements call services, which read the catalog meanwhile
        return statement(tokens, session)
    with session.catalog.lock:
        return statement(tokens, session)


def is_own(sql: str) -> bool:
    """Whether the emulator executes this statement, which sqlglot may not be able to parse."""
    return _find(Tokens(sql)) is not None


def _find(tokens: Tokens) -> Statement | None:
    return _find_creation(tokens) if tokens.take("CREATE") else _find_other(tokens)


def _find_creation(tokens: Tokens) -> Statement | None:
    replace = tokens.take("OR", "REPLACE")
    alter = not replace and tokens.take("OR", "ALTER")
    is_secure = tokens.take("SECURE")
    tokens.take("SCOPED")
    is_temporary = tokens.take("TEMPORARY") or tokens.take("TEMP")
    if is_temporary and tokens.take("FILE FORMAT"):  # one token
        return loading.create_file_format
    if not is_temporary and tokens.take("EXTERNAL", "FUNCTION"):
        return partial(functions.create_function, replace=replace, alter=alter, is_secure=is_secure)
    if not (is_temporary or is_secure) and _is_service_function(tokens) and tokens.take("FUNCTION"):
        return partial(functions.create_service_function, replace=replace, alter=alter)
    creations: list[tuple[tuple[str, ...], Callable[..., Answer]]] = []
    if not (alter or is_secure):
        creations = [(("STAGE",), stages.create_stage)]
    if creations and not is_temporary:
        creations += [
            (("FUNCTION",), functions.create_sql_function),
            (("API", "INTEGRATION"), functions.create_integration),
            (("STREAM",), tasks.create_stream),
            (("TASK",), tasks.create_task),
        ]
    return next((partial(make, replace=replace) for words, make in creations if tokens.take(*words)), None)


def _is_service_function(tokens: Tokens) -> bool:
    words = tokens.words(len(tokens.sql))
    return ("SERVICE", "=") in pairwise(words)


def _find_other(tokens: Tokens) -> Statement | None:
    return next((statement for words, statement in _STATEMENTS.items() if tokens.take(*words.split())), None)


# The session and its warehouse.

# Accepted without effect.
_PARAMETERS = frozenset({"USE_CACHED_RESULT", "QUERY_TAG", "STATEMENT_TIMEOUT_IN_SECONDS"})


def _use(tokens: Tokens, session: Session) -> Answer:
    if tokens.take("SECONDARY", "ROLES"):
        tokens.take_token()
    elif tokens.take("ROLE"):
        [session.role] = tokens.take_name(max_parts=1)
    elif tokens.take("WAREHOUSE"):
        [session.warehouse] = tokens.take_name(max_parts=1)
    elif tokens.take("SCHEMA"):
        _use_schema(tokens.take_name(max_parts=2), session)
    else:
        tokens.take("DATABASE")
        names = tokens.take_name(max_parts=2)
        _use_database(names[0], session) if len(names) == 1 else _use_schema(names, session)
    tokens.require_end()
    return status()


def _use_database(name: str, session: Session) -> None:
    """Make the database current, with its schema PUBLIC if it has one."""
    if not session.has_schema(name):
        raise not_found("Database", quote_identifier(name))
    session.use(name, SCHEMA if session.has_schema(name, SCHEMA) else None)


def _use_schema(names: tuple[str, ...], session: Session) -> None:
    database, schema, _ = session.qualify((*names, ""))
    session.require_schema(database, schema)
    session.use(database, schema)


def _alter_session(tokens: Tokens, _: Session) -> Answer:
    is_set = tokens.take("SET")
    if not is_set:
        tokens.require("UNSET")
    while not tokens.at_end:
        name = tokens.take_token().text.upper()
        if name not in _PARAMETERS and not (name == "TIMEZONE" and tokens.words(1) == ("=",)):
            raise unsupported(f"ALTER SESSION … {name}")
        if is_set:
            tokens.require("=")
            if str(tokens.take_value()).upper() != "UTC" and name == "TIMEZONE":
                raise unsupported("time zones other than UTC, which all sessions have")
        tokens.take(",")
    return status()


def _unset(tokens: Tokens, session: Session) -> Answer:
    names = (
        tokens.take_list(lambda: tokens.take_name(max_parts=1))
        if tokens.words(1) == ("(",)
        else [tokens.take_name(max_parts=1)]
    )
    tokens.require_end()
    for [name] in names:
        session.assigned.pop(name, None)
    return status()


def _alter_warehouse(tokens: Tokens, session: Session) -> Answer:
    [name] = tokens.take_name(max_parts=1)
    if tokens.take("SUSPEND"):
        session.catalog.suspended_warehouses.add(name)
    else:
        tokens.require("RESUME")
        session.catalog.suspended_warehouses.discard(name)
    tokens.require_end()
    return status()


def _show_warehouses(tokens: Tokens, session: Session) -> Answer:
    shown, current = session.take_filter(tokens, is_account_level=True), session.warehouse
    suspended = session.catalog.suspended_warehouses
    names = [name for name in sorted({current, *suspended}) if shown(("", "", name))]
    rows = [
        [name, "SUSPENDED" if name in suspended else "STARTED", "STANDARD", "Y" if name == current else "N"]
        for name in names
    ]
    return Answer(["name", "state", "type", "is_current"], rows)


# Grants: recorded for SHOW GRANTS but not enforced; every role has every privilege here.


def _grant(tokens: Tokens, session: Session) -> Answer:
    session.catalog.grants |= dict.fromkeys(_take_grants(tokens, session, "TO"))
    return status()


def _revoke(tokens: Tokens, session: Session) -> Answer:
    for each in _take_grants(tokens, session, "FROM"):
        session.catalog.grants.pop(each, None)
    return status()


def _show_grants(tokens: Tokens, session: Session) -> Answer:
    kind, name = _take_object(tokens, session)
    tokens.require_end()
    rows = [
        [grant.privilege, kind, name, "ROLE", grant.role]
        for grant in session.catalog.grants
        if (grant.kind, grant.name) == (kind, name)
    ]
    return Answer(["privilege", "granted_on", "name", "granted_to", "grantee_name"], rows)


def _take_grants(tokens: Tokens, session: Session, preposition: str) -> list[Grant]:
    privileges = [tokens.take_token().text.upper()]
    while tokens.take(","):
        privileges.append(tokens.take_token().text.upper())
    tokens.require("ON")
    kind, name = _take_object(tokens, session)
    tokens.require(preposition, "ROLE")
    [role] = tokens.take_name(max_parts=1)
    tokens.require_end()
    return [Grant(privilege, kind, name, role) for privilege in privileges]


def _take_object(tokens: Tokens, session: Session) -> tuple[str, str]:
    """The kind and full name of the granted object; a function's name includes its argument types."""
    kind = tokens.take_token().text.upper()
    if kind == "FUNCTION":
        return kind, quote_function(
            session.catalog.function(functions.take_function_key(tokens, session)).key
        )
    names = tokens.take_name()
    if kind == "STAGE":
        return kind, str(session.catalog.stage(session.qualify(names)))
    if kind == "SCHEMA":
        database, schema, _ = session.qualify((*names, ""))
        session.require_schema(database, schema)
        return kind, quote_identifier(database, schema)
    if kind == "INTEGRATION":
        return kind, quote_identifier(session.catalog.integration(names[0]).name)
    if kind == "DATABASE" and not session.has_schema(names[0]):
        raise not_found("Database", quote_identifier(*names))
    if kind not in {"DATABASE", "WAREHOUSE"}:
        raise unsupported(f"privileges on {kind}")
    return kind, quote_identifier(*names)


_STATEMENTS: dict[str, Statement] = {
    "ALTER API INTEGRATION": functions.alter_integration,
    "ALTER INTEGRATION": functions.alter_integration,
    "ALTER FUNCTION": functions.alter_function,
    "ALTER SESSION": _alter_session,
    "ALTER STAGE": stages.alter_stage,
    "ALTER TASK": tasks.alter_task,
    "ALTER WAREHOUSE": _alter_warehouse,
    "COPY INTO": loading.copy_into,
    "DROP API INTEGRATION": functions.drop_integration,
    "DROP INTEGRATION": functions.drop_integration,
    "DROP STAGE": stages.drop_stage,
    "DROP FUNCTION": functions.drop_function,
    "DROP STREAM": partial(tasks.drop, kind="Stream"),
    "DROP TASK": partial(tasks.drop, kind="Task"),
    "DESC API INTEGRATION": functions.describe_integration,
    "DESC INTEGRATION": functions.describe_integration,
    "DESCRIBE API INTEGRATION": functions.describe_integration,
    "DESCRIBE INTEGRATION": functions.describe_integration,
    "DESC FUNCTION": functions.describe_function,
    "DESCRIBE FUNCTION": functions.describe_function,
    "DESC STAGE": stages.describe_stage,
    "DESCRIBE STAGE": stages.describe_stage,
    "DESC STREAM": partial(tasks.describe, kind="Stream"),
    "DESCRIBE STREAM": partial(tasks.describe, kind="Stream"),
    "DESC TASK": partial(tasks.describe, kind="Task"),
    "DESCRIBE TASK": partial(tasks.describe, kind="Task"),
    "EXECUTE TASK": tasks.execute_task,
    "SHOW API INTEGRATIONS": functions.show_integrations,
    "SHOW INTEGRATIONS": functions.show_integrations,
    "SHOW EXTERNAL FUNCTIONS": functions.show_external_functions,
    "SHOW FUNCTIONS": functions.show_functions,
    "SHOW USER FUNCTIONS": functions.show_functions,
    "SHOW WAREHOUSES": _show_warehouses,
    "SHOW STAGES": stages.show_stages,
    "SHOW STREAMS": partial(tasks.show, kind="Stream"),
    "SHOW TASKS": partial(tasks.show, kind="Task"),
    "SHOW GRANTS ON": _show_grants,
    "LIST": stages.list_files,
    "LS": stages.list_files,
    "REMOVE": stages.remove_files,
    "RM": stages.remove_files,
    "UNSET": _unset,
    "USE": _use,
    "GRANT": _grant,
    "REVOKE": _revoke,
}
