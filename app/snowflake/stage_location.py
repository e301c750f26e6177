"""Parses a stage location as in SQL: `@db.schema."My stage"/2026/a.png`."""

import re

from app.snowflake.identifier import parse_identifier

# A name has at most 255 characters, and the regex reads no further. It is possessive (never backtracks): if
# the longest name does not match, no shorter one does.
_PART = r'(?:[A-Za-z_][A-Za-z0-9_$]{0,254}+|"(?:[^"\0]|""){1,255}+")'
_LOCATION = re.compile(rf"@(?P<name>(?:{_PART}\.){{0,2}}+{_PART})(?:/(?P<path>.*))?", re.DOTALL)
# The stage of a user, `@~`, and that of a table, `@db.schema.%table`; neither can be granted to another role.
_OWNERS = re.compile(rf"@(?:~|(?:{_PART}\.){{0,2}}+%{_PART})(?:/.*)?", re.DOTALL)


class OwnersStage(ValueError):
    """A stage that only its owner can read: that of a user or a table."""


def parse_location(text: str) -> tuple[tuple[str, ...], str]:
    """The stage's name in parts as stored, and the path, "" if there is none.

    Raises OwnersStage, or ValueError for an invalid location.
    """
    match = _LOCATION.fullmatch(text)
    if match is not None:
        return parse_identifier(match["name"]), match["path"] or ""
    if _OWNERS.fullmatch(text):
        raise OwnersStage(
            f"A stage must be a named stage: only its owner can read a user stage, @~, or a table stage, "
            f"@%table. Received: {text[:80]!r}."
        )
    raise ValueError(
        "A stage path must be @stage/path, @schema.stage/path or @db.schema.stage/path, with double "
        f"quotes around names that contain characters other than letters, digits, _ and $. "
        f"Received: {text[:80]!r}."
    )
