"""Grants: recorded for SHOW GRANTS but not enforced; every role has every privilege here.

Source: Snowflake documentation, GRANT <privileges>, REVOKE <privileges> and SHOW GRANTS.
"""

from typing import TYPE_CHECKING

from app.emulator.answer import Answer, status
from app.emulator.catalog import Grant
from app.emulator.function_statements import take_types
from app.emulator.grammar import Tokens
from app.emulator.refusals import not_found, unsupported
from app.names import quote_identifier

if TYPE_CHECKING:
    from app.emulator.session import LocalConnection


def grant(tokens: Tokens, session: "LocalConnection") -> Answer:
    for each in _take_grants(tokens, session, "TO"):
        session.local.catalog.grants.setdefault(each)
    return status("Statement executed successfully.")


def revoke(tokens: Tokens, session: "LocalConnection") -> Answer:
    for each in _take_grants(tokens, session, "FROM"):
        session.local.catalog.grants.pop(each, None)
    return status("Statement executed successfully.")


def show_grants(tokens: Tokens, session: "LocalConnection") -> Answer:
    kind, name = _take_object(tokens, session)
    tokens.require_end()
    rows = [
        [grant.privilege, kind, name, "ROLE", grant.role]
        for grant in session.local.catalog.grants
        if (grant.kind, grant.name) == (kind, name)
    ]
    return Answer(["privilege", "granted_on", "name", "granted_to", "grantee_name"], rows)


def _take_grants(tokens: Tokens, session: "LocalConnection", preposition: str) -> list[Grant]:
    privileges = [tokens.take_token().text.upper()]
    while tokens.take(","):
        privileges.append(tokens.take_token().text.upper())
    tokens.require("ON")
    kind, name = _take_object(tokens, session)
    tokens.require(preposition)
    tokens.require("ROLE")
    [role] = tokens.take_name(max_parts=1)
    tokens.require_end()
    return [Grant(privilege, kind, name, role) for privilege in privileges]


def _take_object(tokens: Tokens, session: "LocalConnection") -> tuple[str, str]:
    """The kind and full name of the granted object; a function's name includes its argument types."""
    kind = tokens.take_token().text.upper()
    names = tokens.take_name()
    if kind == "WAREHOUSE":
        return kind, quote_identifier(*names)
    if kind in {"DATABASE", "INTEGRATION"}:
        exists = (
            session.has_schema(names[0])
            if kind == "DATABASE"
            else names[0] in session.local.catalog.integrations
        )
        return kind, _require(exists, kind, quote_identifier(*names))
    if kind == "SCHEMA":
        database, schema, _ = session.qualify((*names, ""))
        return kind, _require(session.has_schema(database, schema), kind, quote_identifier(database, schema))
    name = session.qualify(names)
    if kind == "STAGE":
        return kind, _require(name in session.local.catalog.stages, kind, quote_identifier(*name))
    if kind == "FUNCTION":
        types = take_types(tokens)
        exists = (name, types) in session.local.catalog.functions
        return kind, _require(exists, kind, f"{quote_identifier(*name)}({', '.join(types)})")
    raise unsupported(f"privileges on {kind}")


def _require(exists: bool, kind: str, name: str) -> str:
    if not exists:
        raise not_found(kind.capitalize(), name)
    return name
