"""The filters of a SHOW statement: LIKE '<pattern>' and IN <scope>."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from app.emulator.catalog import Name
from app.emulator.grammar import Tokens

if TYPE_CHECKING:
    from app.emulator.session import LocalConnection


def take_filter(tokens: Tokens, session: "LocalConnection") -> Callable[[Name], bool]:
    """Read the filters up to the end of the statement. Raises ProgrammingError for any other clause."""
    pattern = _take_pattern(tokens)
    scope = _take_scope(tokens, session)
    tokens.require_end()
    return lambda name: bool(pattern.fullmatch(name[-1])) and name[: len(scope)] == scope


def _take_pattern(tokens: Tokens) -> re.Pattern[str]:
    """Unless escaped, % matches any text and _ one character. Case is ignored."""
    if not tokens.take("LIKE"):
        return re.compile(".*", re.DOTALL)
    special = {"%": ".*", "_": "."}
    text = "".join(
        re.escape(part[1:]) if part.startswith("\\") else special.get(part, re.escape(part))
        for part in re.findall(r"\\.|.", tokens.take_string(), re.DOTALL)
    )
    return re.compile(text, re.IGNORECASE | re.DOTALL)


def _take_scope(tokens: Tokens, session: "LocalConnection") -> tuple[str, ...]:
    """The database, or database and schema, to list; () for the whole account."""
    if not tokens.take("IN") or tokens.take("ACCOUNT"):
        return ()
    if tokens.take("DATABASE"):
        return (str(session.database),) if tokens.at_end else tokens.take_name()
    tokens.take("SCHEMA")
    if tokens.at_end:
        return str(session.database), str(session.schema)
    return session.qualify((*tokens.take_name(), ""))[:2]
