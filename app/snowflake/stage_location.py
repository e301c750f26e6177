"""A stage's name and a path in it, as SQL writes them: `@db.schema."My stage"/2026/a.png`."""

import re

from app.snowflake.identifier import parse_identifier

# A name has at most 255 characters, and the regex reads no further. It never backtracks: where the longest
# name does not match, no shorter one does.
_PART = r'(?:[A-Za-z_][A-Za-z0-9_$]{0,254}+|"(?:[^"\0]|""){1,255}+")'
_LOCATION = re.compile(rf"@(?P<name>(?:{_PART}\.){{0,2}}+{_PART})(?:/(?P<path>.*))?", re.DOTALL)
# The stage of a user, `@~`, and that of a table, `@db.schema.%table`; neither can be granted to anyone.
_OWNERS = re.compile(rf"@(?:~|(?:{_PART}\.){{0,2}}+%{_PART})(?:/.*)?", re.DOTALL)


class OwnersStage(ValueError):
    """A stage that only its owner can read: that of a user or a table."""


def parse_location(text: str) -> tuple[tuple[str, ...], str]:
    """The stage's name in parts as stored, and the path, "" if there is none.

    Raises OwnersStage, or ValueError for what is no location.
    """
    match = _LOCATION.fullmatch(text)
    if match is not None:
        return parse_identifier(match["name"]), match["path"] or ""
    if _OWNERS.fullmatch(text):
        raise OwnersStage(
            f"A stage must have a name of its own: those of a user, @~, and of a table, @%table, are their "
            f"owner's alone. Received: {text[:80]!r}."
        )
    raise ValueError(
        "A stage path must be @stage/path, @schema.stage/path or @db.schema.stage/path, with names that "
        f"hold other characters than letters, digits, _ and $ in double quotes. Received: {text[:80]!r}."
    )
