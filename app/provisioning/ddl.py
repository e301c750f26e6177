"""Loads the numbered SQL files of infra/snowflake: fills in variables and splits statements.

`<% name %>` is a variable, as in the Snowflake CLI: `snow sql -f` runs the same files. The CLI pastes values
verbatim; this module quotes each value, so that it remains one name, one number or part of one string.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from app.names import parse_identifier, quote_identifier, quote_string

# A wheel has the files next to this module; a checkout has them in infra/snowflake.
_IN_WHEEL = Path(__file__).parent / "sql"
_IN_CHECKOUT = Path(__file__).parent.parent.parent / "infra" / "snowflake"
FOLDER = _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_CHECKOUT

_API_PROVIDERS = (
    "aws_api_gateway",
    "aws_private_api_gateway",
    "aws_gov_api_gateway",
    "aws_gov_private_api_gateway",
)
_VARIABLE = re.compile(r"<%\s*(?P<name>\w+)\s*%>")
# Block comments do not nest. A backslash escapes in a string constant; in a quoted name, only "" does.
_TOKEN = re.compile(
    r"""
      (?P<comment>--[^\n]*|//[^\n]*|/\*.*?\*/)
    | (?P<string>'(?:[^'\\]|\\.|'')*')
    | (?P<opaque>"(?:[^"]|"")*"|\$\$.*?\$\$)
    | (?P<variable><%\s*\w+\s*%>)
    | (?P<end>;)
    | (?P<unclosed>['"]|/\*|\$\$|<%|%>)
    | (?P<code>.[^-/'"$<%;]*)
    """,
    re.VERBOSE | re.DOTALL,
)


def file_names() -> list[str]:
    return sorted(path.name for path in FOLDER.glob("*.sql"))


def load(name: str, variables: Mapping[str, str]) -> list[str]:
    """The statements of one file, without comments and semicolons, each ready to execute.

    Variables of other files are ignored. Raises ValueError for a missing, unknown or invalid variable.
    """
    text = _read(name)
    if unknown := variables.keys() - VARIABLES.keys():
        raise ValueError(f"A variable must be one of {', '.join(VARIABLES)}. Received: {sorted(unknown)}.")
    if missing := variables_of(name) - variables.keys():
        raise ValueError(f"{name} needs the variables {', '.join(sorted(missing))}.")
    return list(split_and_fill(text, variables))


def load_with_fingerprint(name: str, variables: Mapping[str, str]) -> tuple[list[str], str]:
    """The statements of load(), with a hash of the whole file in each COMMENT; and the hash.

    SHOW and DESC hide some properties of a function, such as its integration, but show its comment.
    """
    whole = "\0".join(load(name, variables))
    fingerprint = f"[{hashlib.sha256(whole.encode()).hexdigest()[:16]}]"
    with_fingerprint = re.sub(r"(COMMENT = '[^']*)'", rf"\1 {fingerprint}'", _read(name))
    return list(split_and_fill(with_fingerprint, variables)), fingerprint


def variables_of(name: str) -> frozenset[str]:
    """The names of one file's variables. Raises ValueError if there is no such file."""
    return frozenset(_VARIABLE.findall(_read(name)))


def split_and_fill(text: str, variables: Mapping[str, str]) -> Iterator[str]:
    """The statements of `text`, filled in. Raises ValueError for unterminated SQL and invalid values."""
    written = ""
    for token in _TOKEN.finditer(text):
        if token.lastgroup == "end":
            yield written.strip()
            written = ""
        elif token.lastgroup == "comment" and not token[0].startswith("/*"):
            written = written.rstrip(" ")  # the line's end follows
        else:
            written += _write(token, variables)
    if written.strip():
        raise ValueError(f"A statement must end with a semicolon. Received: {written.strip()[:80]!r}.")


def _read(name: str) -> str:
    if name not in file_names():
        raise ValueError(f"A file must be one of {', '.join(file_names())}. Received: {name!r}.")
    return (FOLDER / name).read_text(encoding="utf-8")


def _write(token: re.Match[str], variables: Mapping[str, str]) -> str:
    text = token[0]
    if token.lastgroup == "comment":
        return " "
    if token.lastgroup == "variable":
        return _VARIABLE.sub(lambda found: _in_code(found["name"], variables), text)
    if token.lastgroup == "string":
        return _VARIABLE.sub(lambda found: _in_string(found["name"], variables), text)
    if token.lastgroup == "unclosed":
        raise ValueError(f"A quote, comment or variable must be closed. Received: unmatched {text}.")
    if token.lastgroup == "opaque" and _VARIABLE.search(text):
        raise ValueError(f"A variable must not be in double quotes or $$. Received: {text[:80]!r}.")
    return text


def _in_code(name: str, variables: Mapping[str, str]) -> str:
    if VARIABLES[name] in _FOR_STRINGS:
        raise ValueError(f"The variable {name} must be in a string constant.")
    return _checked(name, variables[name])


def _in_string(name: str, variables: Mapping[str, str]) -> str:
    return quote_string(_checked(name, variables[name]))[1:-1]


def _checked(name: str, value: str) -> str:
    try:
        return VARIABLES[name](value)
    except ValueError as error:
        raise ValueError(f"The variable {name} has an invalid value. {error}") from None


def _identifier(value: str, *, max_parts: int) -> str:
    return quote_identifier(*parse_identifier(value, max_parts=max_parts))


def _matching(pattern: str, rule: str) -> Callable[[str], str]:
    """A function that returns a value unchanged, or raises ValueError unless it matches."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{rule}. Received: {value!r}.")
        return value

    return check


_positive_integer = _matching(r"[1-9][0-9]{0,8}", "A number must be an integer from 1 to 999999999")
_api_provider = _matching("|".join(_API_PROVIDERS), f"A provider must be one of {', '.join(_API_PROVIDERS)}")
# Snowflake requires https; local SQL calls a service on this machine over http.
_https_url = _matching(
    r"(?:https://|http://(?:127\.0\.0\.1|localhost)[:/])[!-~]+",
    "A URL must begin with https:// and must not contain spaces",
)
_file_name = _matching(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]*", "A file name must consist of letters, digits, _, - and dots"
)


def _text(value: str) -> str:
    """Any text; it may be a secret, so error messages do not show it."""
    if not value or "\0" in value:
        raise ValueError("A text must not be empty or contain NUL.")
    return value


_FOR_STRINGS = (_https_url, _file_name, _text)
_NAME = partial(_identifier, max_parts=1)
_QUALIFIED_NAME = partial(_identifier, max_parts=3)

VARIABLES: Mapping[str, Callable[[str], str]] = {
    "allowed_prefix": _https_url,
    "api_key": _text,
    "api_provider": _api_provider,
    "aws_role_arn": _text,
    "azure_application_id": _text,
    "azure_tenant_id": _text,
    "caller_role": _NAME,
    "code_stage": _QUALIFIED_NAME,
    "database": _NAME,
    "files": _text,
    "function": _NAME,
    "google_audience": _text,
    "integration": _NAME,
    "max_batch_rows": _positive_integer,
    "network": _file_name,
    "owner_role": _NAME,
    "schema": _NAME,
    "service": _QUALIFIED_NAME,
    "service_role": _NAME,
    "stage": _QUALIFIED_NAME,
    "url": _https_url,
    "warehouse": _NAME,
}
"""For each variable a function that returns the value quoted for SQL, or raises ValueError."""
