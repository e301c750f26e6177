"""The statements that the emulator executes itself; fakesnow executes all others."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from app.emulator import function_statements as functions
from app.emulator import grant_statements as grants
from app.emulator import integration_statements as integrations
from app.emulator import session_statements as sessions
from app.emulator import stage_statements as stages
from app.emulator.answer import Answer, status
from app.emulator.grammar import Tokens

if TYPE_CHECKING:
    from app.emulator.session import LocalConnection

Statement: TypeAlias = Callable[[Tokens, "LocalConnection"], Answer]


def answer_statement(sql: str, session: "LocalConnection") -> Answer | None:
    """The result of a statement that the emulator executes, None for others. Raises ProgrammingError."""
    tokens = Tokens(sql)
    find = _create_statement if tokens.words(1) == ("CREATE",) else _other_statement
    statement = find(tokens)
    if statement is None:
        return None
    with session.local.catalog.lock:
        return statement(tokens, session)


def _create_statement(tokens: Tokens) -> Statement | None:
    """Find the kind of object after CREATE's modifiers, which the statement itself reads again."""
    words = [
        word
        for word in tokens.words(8)
        if word not in {"CREATE", "OR", "REPLACE", "SECURE", "TEMPORARY", "TEMP"}
    ]
    if words[:2] == ["EXTERNAL", "FUNCTION"]:
        return functions.create_external_function
    if words[:2] == ["API", "INTEGRATION"]:
        return integrations.create_integration
    return stages.create_stage if words[:1] == ["STAGE"] else None


def _other_statement(tokens: Tokens) -> Statement | None:
    for words, statement in _STATEMENTS.items():
        if tokens.take(*words):
            return statement
    return None


def _suspend_or_resume(tokens: Tokens, session: "LocalConnection") -> Answer:
    [name] = tokens.take_name(max_parts=1)
    suspended = session.local.catalog.suspended_warehouses
    if tokens.take("SUSPEND"):
        suspended.add(name)
    else:
        tokens.require("RESUME")
        suspended.discard(name)
    tokens.require_end()
    return status("Statement executed successfully.")


_STATEMENTS: dict[tuple[str, ...], Statement] = {
    ("ALTER", "API", "INTEGRATION"): integrations.alter_integration,
    ("ALTER", "INTEGRATION"): integrations.alter_integration,
    ("ALTER", "SESSION"): sessions.alter_session,
    ("ALTER", "STAGE"): stages.alter_stage,
    ("ALTER", "WAREHOUSE"): _suspend_or_resume,
    ("DROP", "API", "INTEGRATION"): integrations.drop_integration,
    ("DROP", "INTEGRATION"): integrations.drop_integration,
    ("DROP", "STAGE"): stages.drop_stage,
    ("DROP", "FUNCTION"): functions.drop_function,
    ("DESC", "API", "INTEGRATION"): integrations.describe_integration,
    ("DESC", "INTEGRATION"): integrations.describe_integration,
    ("DESCRIBE", "API", "INTEGRATION"): integrations.describe_integration,
    ("DESCRIBE", "INTEGRATION"): integrations.describe_integration,
    ("DESC", "FUNCTION"): functions.describe_function,
    ("DESCRIBE", "FUNCTION"): functions.describe_function,
    ("DESC", "STAGE"): stages.describe_stage,
    ("DESCRIBE", "STAGE"): stages.describe_stage,
    ("SHOW", "API", "INTEGRATIONS"): integrations.show_integrations,
    ("SHOW", "INTEGRATIONS"): integrations.show_integrations,
    ("SHOW", "EXTERNAL", "FUNCTIONS"): functions.show_external_functions,
    ("SHOW", "FUNCTIONS"): functions.show_external_functions,
    ("SHOW", "USER", "FUNCTIONS"): functions.show_external_functions,
    ("SHOW", "STAGES"): stages.show_stages,
    ("SHOW", "GRANTS", "ON"): grants.show_grants,
    ("LIST",): stages.list_files,
    ("LS",): stages.list_files,
    ("REMOVE",): stages.remove_files,
    ("RM",): stages.remove_files,
    ("USE",): sessions.use,
    ("GRANT",): grants.grant,
    ("REVOKE",): grants.revoke,
}
