"""Statements on the session: USE and ALTER SESSION.

Source: Snowflake documentation, USE <object> and ALTER SESSION.
"""

from typing import TYPE_CHECKING

from app.emulator.answer import Answer, status
from app.emulator.catalog import SCHEMA
from app.emulator.grammar import Tokens
from app.emulator.refusals import not_found, unsupported
from app.names import quote_identifier

if TYPE_CHECKING:
    from app.emulator.session import LocalConnection

_DONE = "Statement executed successfully."
# Accepted without effect.
_PARAMETERS = frozenset({"USE_CACHED_RESULT", "QUERY_TAG", "STATEMENT_TIMEOUT_IN_SECONDS"})


def use(tokens: Tokens, session: "LocalConnection") -> Answer:
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
    return status(_DONE)


def _use_database(name: str, session: "LocalConnection") -> None:
    """Make the database current, with its schema PUBLIC if it has one."""
    if not session.has_schema(name):
        raise not_found("Database", quote_identifier(name))
    session.use(name, SCHEMA if session.has_schema(name, SCHEMA) else None)


def _use_schema(names: tuple[str, ...], session: "LocalConnection") -> None:
    database, schema, _ = session.qualify((*names, ""))
    session.require_schema(database, schema)
    session.use(database, schema)


def alter_session(tokens: Tokens, _: "LocalConnection") -> Answer:
    is_set = tokens.take("SET")
    if not is_set:
        tokens.require("UNSET")
    while not tokens.at_end:
        name = tokens.take_token().text.upper()
        if name not in _PARAMETERS:
            raise unsupported(f"ALTER SESSION … {name}")
        if is_set:
            tokens.require("=")
            tokens.take_value()
        tokens.take(",")
    return status(_DONE)
