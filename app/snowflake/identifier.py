"""Snowflake's names and string constants, read and written.

Grammar: Snowflake's reference, "Identifier requirements" and "String & binary data types".
"""

import re

MAX_CHARACTERS = 255
# database.schema.object
MAX_PARTS = 3

_RULE = (
    "A name must be Snowflake identifiers joined by dots: letters, digits, _ and $ that begin with a letter "
    'or _, or anything in double quotes, with "" for a quote'
)
# Letters are those of ASCII. A quoted name may hold any character but NUL.
_PART = re.compile(r'(?P<bare>[A-Za-z_][A-Za-z0-9_$]*+)|"(?P<quoted>(?:[^"\0]++|"")++)"')


def parse_identifier(text: str, *, max_parts: int = MAX_PARTS) -> tuple[str, ...]:
    """The parts of a name as Snowflake stores them: `db."St age"` is ("DB", "St age").

    Raises ValueError for anything else than a name of at most `max_parts` parts.
    """
    parts: list[str] = []
    position = 0
    while match := _PART.match(text, position):
        parts.append(_stored(match))
        position = match.end()
        if position == len(text):
            return _refuse_too_many(tuple(parts), max_parts, text)
        if text[position] != ".":
            break
        position += 1
    raise ValueError(f"{_RULE}. Received: {text!r}.")


def quote_identifier(*names: str) -> str:
    """Names as stored, quoted and joined by dots. Raises ValueError where Snowflake can hold no such name."""
    for name in names:
        _refuse_unstorable(name)
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def quote_string(text: str) -> str:
    """`text` as a string constant. A backslash is an escape in Snowflake's. Raises ValueError for a NUL."""
    if "\0" in text:
        raise ValueError("A string constant must hold no NUL.")
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _stored(match: re.Match[str]) -> str:
    quoted: str | None = match["quoted"]
    name = match["bare"].upper() if quoted is None else quoted.replace('""', '"')
    _refuse_unstorable(name)
    return name


def _refuse_unstorable(name: str) -> None:
    if not 1 <= len(name) <= MAX_CHARACTERS or "\0" in name:
        raise ValueError(
            f"A name must have 1 to {MAX_CHARACTERS} characters, and no NUL. Received: {name[:300]!r}."
        )


def _refuse_too_many(parts: tuple[str, ...], max_parts: int, text: str) -> tuple[str, ...]:
    if len(parts) > max_parts:
        raise ValueError(f"This name must have at most {max_parts} parts. Received: {text!r}.")
    return parts
