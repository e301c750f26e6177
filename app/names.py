"""Snowflake's names: identifiers, string constants and stage locations in SQL, and the headers with its ids.

Grammar: Snowflake's reference, "Identifier requirements" and "String & binary data types".
"""

import re
from collections.abc import Mapping

# Source: Snowflake documentation, "Remote service input and output data formats".
QUERY_ID_HEADER = "sf-external-function-current-query-id"
BATCH_ID_HEADER = "sf-external-function-query-batch-id"
# Snowflake's ids are shorter. Any client can send ids, and the service logs them.
MAX_ID_CHARACTERS = 512

MAX_CHARACTERS = 255
# database.schema.object
MAX_PARTS = 3

_RULE = (
    "A name must be Snowflake identifiers joined by dots: letters, digits, _ and $ that begin with a letter "
    'or _, or any text in double quotes, with "" for a quote'
)
# Only ASCII letters. A quoted name may contain any character except NUL.
_PART = re.compile(r'(?P<bare>[A-Za-z_][A-Za-z0-9_$]*+)|"(?P<quoted>(?:[^"\0]++|"")++)"')


def parse_identifier(text: str, *, max_parts: int = MAX_PARTS) -> tuple[str, ...]:
    """The parts of a name as Snowflake stores them: `db."St age"` is ("DB", "St age").

    Raises ValueError unless `text` is a name of at most `max_parts` parts.
    """
    parts: list[str] = []
    position = 0
    while match := _PART.match(text, position):
        parts.append(_stored_name(match))
        position = match.end()
        if position == len(text):
            if len(parts) > max_parts:
                raise ValueError(f"This name must have at most {max_parts} parts. Received: {text!r}.")
            return tuple(parts)
        if text[position] != ".":
            break
        position += 1
    raise ValueError(f"{_RULE}. Received: {text!r}.")


def quote_identifier(*names: str) -> str:
    """Stored names, quoted and joined by dots. Raises ValueError for a name that Snowflake cannot store."""
    for name in names:
        _require_storable(name)
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


# What surrounds an account in URLs of Snowflake.
_AROUND_ACCOUNT = re.compile(
    r"\A\s*(?:https://)?(?:app\.snowflake\.com/)?|(?:\.snowflakecomputing\.[a-z]+)?/?\s*\Z", re.IGNORECASE
)
# `org.account`, as in SQL, or `org/account`, as in Snowsight. A region has a dash, or a cloud after it.
_DOTTED_ACCOUNT = re.compile(r"([a-z0-9]+)[./](?!(?:privatelink|global)\Z)([a-z0-9_]+)", re.IGNORECASE)


def require_account(text: str) -> None:
    """Raises ValueError for common mistakes in an account identifier, with what to write instead.

    Source: Snowflake documentation, "Account identifiers".
    """
    name = _AROUND_ACCOUNT.sub("", text)
    if dotted := _DOTTED_ACCOUNT.fullmatch(name):
        name = "-".join(dotted.groups())
    if name != text:
        raise ValueError(
            "An account must be organization-account, or a locator with its region, such as "
            f"xy12345.eu-central-1. Received: {text!r}" + ("" if "/" in name else f"; write {name}")
        )


def quote_string(text: str) -> str:
    """`text` as a string constant, with backslashes escaped for Snowflake. Raises ValueError for NUL."""
    if "\0" in text:
        raise ValueError("A string constant must not contain NUL.")
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def directory_of(stage: str) -> str:
    """The directory table of a quoted stage name in FROM, the location as a string constant.

    Snowflake requires the constant for names with blanks or special characters.
    """
    return f"DIRECTORY({quote_string(f'@{stage}')})"


def _stored_name(match: re.Match[str]) -> str:
    quoted: str | None = match["quoted"]
    name = match["bare"].upper() if quoted is None else quoted.replace('""', '"')
    _require_storable(name)
    return name


def _require_storable(name: str) -> None:
    if not 1 <= len(name) <= MAX_CHARACTERS or "\0" in name:
        raise ValueError(
            f"A name must have 1 to {MAX_CHARACTERS} characters, none of them NUL. Received: {name[:300]!r}."
        )


# A name has at most 255 characters, and the regex reads no further. It is possessive (never backtracks): if
# the longest name does not match, no shorter one does.
_LOCATION_PART = r'(?:[A-Za-z_][A-Za-z0-9_$]{0,254}+|"(?:[^"\0]|""){1,255}+")'
_LOCATION = re.compile(
    rf"@(?P<name>(?:{_LOCATION_PART}\.){{0,2}}+{_LOCATION_PART})(?:/(?P<path>.*))?", re.DOTALL
)
# The stage of a user, `@~`, and that of a table, `@db.schema.%table`; neither can be granted to another role.
_OWNERS = re.compile(rf"@(?:~|(?:{_LOCATION_PART}\.){{0,2}}+%{_LOCATION_PART})(?:/.*)?", re.DOTALL)


class OwnersStage(ValueError):
    """A stage that only its owner can read: that of a user or a table."""


class SchemaMissing(ValueError):
    """A stage path without its database or schema."""


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
        "A stage path must be @db.schema.stage/path, with double quotes around names that contain "
        "characters other than letters, digits, _ and $. "
        f"Received: {text[:80]!r}."
    )


def parse_full_location(text: str) -> tuple[tuple[str, ...], str]:
    """As parse_location, for a location that a session without a current schema reads.

    Raises OwnersStage, SchemaMissing, or ValueError.
    """
    stage, path = parse_location(text)
    if missing := MAX_PARTS - len(stage):
        prefix = ".".join(["db", "schema"][:missing])
        raise SchemaMissing(
            f"A stage path must name the database and the schema, as in @{prefix}.{text[1:80]}. "
            f"Received: {text[:80]!r}."
        )
    return stage, path


def ids_of(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The query id and the batch id, truncated for the log."""
    query_id, batch_id = (headers.get(name) for name in (QUERY_ID_HEADER, BATCH_ID_HEADER))
    return query_id and query_id[:MAX_ID_CHARACTERS], batch_id and batch_id[:MAX_ID_CHARACTERS]
