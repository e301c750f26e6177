"""Parses Snowflake's names for a staged file: a file URL, a scoped URL, a stage path.

Sources: Snowflake documentation, "Introduction to unstructured data" and BUILD_STAGE_FILE_URL. Directory
tables percent-encode even the dots and slashes of their file URLs; URLs written by hand seldom do.
"""

import contextlib
import re
from binascii import a2b_qp
from dataclasses import dataclass
from urllib.parse import unquote

from app.errors import InvalidSource, ScopedUrlNotReadable, StageNotAuthorized
from app.snowflake.identifier import parse_identifier, quote_identifier
from app.snowflake.stage_location import OwnersStage, parse_location

# Accounts in China have .cn.
ACCOUNT_DOMAINS = (".snowflakecomputing.com", ".snowflakecomputing.cn")

_FILE_URL = re.compile(
    r"https://(?P<host>[A-Za-z0-9._-]+)(?::443)?/api/files/(?P<rest>.*)", re.IGNORECASE | re.ASCII | re.DOTALL
)
_QUERY_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_SURROGATES = re.compile("[\ud800-\udfff]")

# A quoted name of 255 characters, each of them an escaped double quote.
_MAX_NAME_CHARACTERS = 2 * 255 + 2
_DOTTED_PART = r'((?:[^."%]++|%22.*?%22(?!%22)|"[^"]*+"|%)++)'
# `db.schema.stage`, the form of older documents; a dot in a name is %2e or in quotes.
DOTTED = re.compile(rf"{_DOTTED_PART}\.{_DOTTED_PART}\.{_DOTTED_PART}")
# unquote takes a tenth of a microsecond for an escape, and half a microsecond for a % that begins none.
_MAX_SLOW_ESCAPES = 256


@dataclass(frozen=True, slots=True)
class StageFile:
    """`stage` is the stage's name in parts, as Snowflake stores it: ("DB", "SCHEMA", "IMAGES").

    For a stage path it may lack the database or the schema, which then default to the session's. `host` is
    the account's host, None for a stage path.
    """

    stage: tuple[str, ...]
    path: str
    host: str | None = None


def parse_file_url(text: str) -> StageFile | InvalidSource | ScopedUrlNotReadable | None:
    """The staged file behind a Snowflake file URL; None for a URL of another host or kind."""
    match = _FILE_URL.fullmatch(text)
    if match is None or not match["host"].lower().endswith(ACCOUNT_DOMAINS):
        return None
    segments = match["rest"].split("/", 3)
    if _QUERY_ID.fullmatch(segments[0]) and len(segments) <= 3:
        return ScopedUrlNotReadable(
            "A scoped URL can be read only by the user who made it. Pass the directory table's file_url, "
            "BUILD_STAGE_FILE_URL(@stage, relative_path) or GET_PRESIGNED_URL(@stage, relative_path)."
        )
    try:
        stage, path = _names_and_path(segments)
    except ValueError:
        return InvalidSource(
            "A file URL must be https://<account>/api/files/<database>/<schema>/<stage>/<path>, "
            "percent-encoded."
        )
    return StageFile(stage, path, match["host"].lower())


def parse_stage_path(text: str) -> StageFile | InvalidSource | StageNotAuthorized:
    """The staged file of a path like `@db.schema."My stage"/2026/07/a.png`, which is not percent-encoded."""
    try:
        stage, path = parse_location(text)
        _reject_unusable_names(*stage, path)
    except OwnersStage as error:
        return StageNotAuthorized(str(error))
    except ValueError as error:
        return InvalidSource(str(error))
    return StageFile(stage, path)


def _names_and_path(segments: list[str]) -> tuple[tuple[str, ...], str]:
    """Raises ValueError."""
    if any(mark in segment for segment in segments for mark in "?#"):
        raise ValueError("A `?` or `#` in a file URL must be percent-encoded.")
    dotted = DOTTED.fullmatch(segments[0])
    names, parts = (dotted.groups(), segments[1:]) if dotted else (segments[:3], segments[3:])
    stage = tuple(map(_name_of_segment, names))
    path = percent_decode("/".join(parts))
    quote_identifier(*stage)
    _reject_unusable_names(*stage, path)
    return stage, path


def _reject_unusable_names(*names_and_path: str) -> None:
    """Raises ValueError for names that would make the statement for the whole batch fail."""
    if not names_and_path[-1].strip("/"):
        raise ValueError("A stage path must name a file in the stage. Received: a stage without a path.")
    text = "".join(names_and_path)
    if "\0" in text or not (text.isascii() or _SURROGATES.search(text) is None):
        raise ValueError("A stage path must not contain NUL or unpaired surrogates.")


def percent_decode(text: str) -> str:
    """What `urllib.parse.unquote` returns, at a tenth of its cost. Raises ValueError for invalid UTF-8.

    Also raises ValueError for hundreds of % that begin no escape (RFC 3986, section 2.1).
    """
    escapes = text.count("%")
    if not escapes:
        return text
    encoded = text.encode()
    if b"\n" not in encoded and b"\r" not in encoded:
        # Quoted-printable has the same escapes with `=` instead of `%`, and uses `=` for soft line breaks.
        decoded = a2b_qp(encoded.replace(b"=", b"%3D").replace(b"%", b"="))
        if len(encoded) - len(decoded) == 2 * escapes:  # every % begins an escape
            return decoded.decode()
    if escapes > _MAX_SLOW_ESCAPES:
        raise ValueError(
            f"A URL must be percent-encoded. Received: {escapes} %, some of which begin no escape."
        )
    return unquote(text, errors="strict")


def _name_of_segment(segment: str) -> str:
    """The name in a URL segment: unquoted if in double quotes, else verbatim, as Snowflake stores it."""
    text = percent_decode(segment)
    if text.startswith('"') and len(text) <= _MAX_NAME_CHARACTERS:
        with contextlib.suppress(ValueError):
            [text] = parse_identifier(text, max_parts=1)
    return text
