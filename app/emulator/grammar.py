"""Reads statements that fakesnow does not support, token by token."""

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import sqlglot
from sqlglot import Token, TokenType
from sqlglot.errors import TokenError

from app.emulator.errors import (
    empty_statement,
    invalid,
    no_such_variable,
    several_statements,
    syntax_error,
    unsupported,
)
from app.names import MAX_PARTS, parse_identifier, quote_identifier, quote_string

# sqlglot warns about every statement that it does not parse itself.
logging.getLogger("sqlglot").setLevel(logging.ERROR)

# Functions whose first argument is an unquoted stage, such as @images.
STAGE_FUNCTIONS = frozenset({"GET_PRESIGNED_URL", "BUILD_STAGE_FILE_URL", "BUILD_SCOPED_FILE_URL"})
_STRINGS = frozenset({TokenType.STRING, TokenType.RAW_STRING, TokenType.HEREDOC_STRING})
_COMMANDS = frozenset({TokenType.COMMAND, TokenType.EXECUTE})
# Never keywords, whatever their text.
_LITERALS = _STRINGS | {TokenType.IDENTIFIER}
_OPENING = frozenset({TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE})
_CLOSING = frozenset({TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE})
_ENDS_OF_COLUMN = frozenset(
    {
        TokenType.COMMA,
        TokenType.FROM,
        TokenType.WHERE,
        TokenType.ORDER_BY,
        TokenType.LIMIT,
        TokenType.UNION,
        TokenType.SEMICOLON,
    }
)

_Item = TypeVar("_Item")


class Tokens:
    """The tokens of one statement, consumed from left to right."""

    def __init__(self, sql: str) -> None:
        self.sql = sql
        tokens = _tokenize(sql)
        if tokens and tokens[0].token_type in _COMMANDS:  # the rest is a single token
            self.sql = sql[tokens[0].end + 1 :]
            tokens[1:] = _tokenize(self.sql)
        self._tokens = _one_statement(tokens)
        self._next = 0

    @property
    def at_end(self) -> bool:
        return self._next >= len(self._tokens)

    def words(self, count: int) -> tuple[str, ...]:
        """The next words in upper case, without consuming them; "" for a string or a quoted name."""
        tokens = self._tokens[self._next : self._next + count]
        return tuple("" if token.token_type in _LITERALS else token.text.upper() for token in tokens)

    def take(self, *words: str) -> bool:
        """Consume these words if they come next; return whether they did."""
        if self.words(len(words)) != words:
            return False
        self._next += len(words)
        return True

    def require(self, *words: str) -> None:
        if not self.take(*words):
            raise self.unexpected(f"expected {' '.join(words)}")

    def require_end(self) -> None:
        if not self.at_end:
            raise self.unexpected("expected the end")

    def take_if_not_exists(self, *, replace: bool) -> bool:
        """Consume IF NOT EXISTS if it comes next. Raises ProgrammingError for a CREATE OR REPLACE."""
        keep = self.take("IF", "NOT", "EXISTS")
        if keep and replace:
            raise invalid("options IF NOT EXISTS and OR REPLACE are incompatible.")
        return keep

    def take_token(self) -> Token:
        if self.at_end:
            raise syntax_error("unexpected end of the statement")
        self._next += 1
        return self._tokens[self._next - 1]

    def take_name(self, *, max_parts: int = MAX_PARTS) -> tuple[str, ...]:
        """Consume a name; return its parts in the form that Snowflake stores."""
        parts = [self._take_part()]
        while self.take("."):
            parts.append(self._take_part())
        return _parse_name(".".join(parts), max_parts)

    def take_string(self) -> str:
        token = self.take_token()
        if token.token_type is TokenType.PLACEHOLDER:
            raise unsupported("a bind variable in this statement")
        if token.token_type not in _STRINGS:
            self._next -= 1
            raise self.unexpected("expected a string")
        return token.text

    def take_value(self) -> Any:
        """Consume a word, a number, a string, a list of strings, or nested options."""
        if not self.take("("):
            return self.take_token().text
        values: list[Any] = []
        options: dict[str, Any] = {}
        while not self.take(")"):
            token = self.take_token()
            if self.take("="):
                key = token.text if token.token_type in _STRINGS else token.text.upper()
                options[key] = self.take_value()
            else:
                values.append(token.text)
            self.take(",")
        if options and values:
            raise syntax_error("a list must hold either values or options, not both")
        return options or values

    def take_list(self, take_item: Callable[[], _Item]) -> list[_Item]:
        """Consume a list in parentheses, with commas between its items."""
        self.require("(")
        if self.take(")"):
            return []
        items = [take_item()]
        while not self.take(")"):
            self.require(",")
            items.append(take_item())
        return items

    def take_options(self, known: Collection[str]) -> dict[str, Any]:
        """Consume `NAME = value` pairs up to the end. Raises ProgrammingError for a name not in `known`."""
        options: dict[str, Any] = {}
        while not self.at_end:
            options |= self.take_option(known)
            self.take(",")
        return options

    def take_option(self, known: Collection[str]) -> dict[str, Any]:
        """Consume `NAME = value`. Raises ProgrammingError for a name not in `known`."""
        name = self.take_token().text.upper()
        if name not in known:
            self._next -= 1
            raise self.unexpected(f"expected one of {', '.join(sorted(known))}")
        self.require("=")
        return {name: self.take_value()}

    def take_text(self, word: str = "") -> str:
        """Consume and return the text before this word, or all that is left."""
        start = end = self.take_token()
        while not self.at_end and not (word and self.words(1) == (word,)):
            end = self.take_token()
        return self.sql[start.start : end.end + 1]

    def take_pattern(self) -> re.Pattern[str]:
        """Consume `LIKE '<pattern>'` if it comes next: % matches any text, _ one character."""
        return like_pattern(self.take_string() if self.take("LIKE") else "%")

    def take_location(self) -> str:
        """Consume a stage location, `@name/path`, in quotes or up to the next blank."""
        token = self.take_token()
        if token.token_type not in _STRINGS and token.text != "@":
            self._next -= 1
            raise self.unexpected("expected a stage")
        return self._take_to_blank(token)

    def take_file_url(self) -> str:
        """Consume a `file://` URL, in quotes or up to the next blank."""
        return self._take_to_blank(self.take_token())

    def unexpected(self, hint: str) -> Exception:
        got = f"'{self._tokens[self._next].text}'" if not self.at_end else "end of the statement"
        return syntax_error(f"syntax error, unexpected {got}; {hint}")

    def _take_to_blank(self, token: Token) -> str:
        if token.token_type in _STRINGS:
            return token.text
        end = token.end
        while not self.at_end and self._tokens[self._next].start == end + 1:
            end = self.take_token().end
        return self.sql[token.start : end + 1]

    def _take_part(self) -> str:
        token = self.take_token()
        if token.token_type is TokenType.IDENTIFIER:
            return '"' + token.text.replace('"', '""') + '"'
        return token.text


def _parse_name(text: str, max_parts: int) -> tuple[str, ...]:
    try:
        return parse_identifier(text, max_parts=max_parts)
    except ValueError as error:
        raise syntax_error(str(error)) from None


def like_pattern(text: str) -> re.Pattern[str]:
    """The pattern of a LIKE that ignores case."""
    special = {"%": ".*", "_": "."}
    expression = "".join(
        re.escape(part[1:]) if part.startswith("\\") else special.get(part, re.escape(part))
        for part in re.findall(r"\\.|.", text, re.DOTALL)
    )
    return re.compile(expression, re.IGNORECASE | re.DOTALL)


def _tokenize(sql: str) -> list[Token]:
    try:
        return list(sqlglot.tokenize(sql, read="snowflake"))
    except TokenError:
        raise syntax_error("a string, a quoted name or a comment must be closed") from None


def _one_statement(tokens: Sequence[Token]) -> list[Token]:
    """The tokens without trailing semicolons. Raises ProgrammingError for no or several statements."""
    kept = list(tokens)
    while kept and kept[-1].token_type is TokenType.SEMICOLON:
        kept.pop()
    if not kept:
        raise empty_statement()
    if count := sum(token.token_type is TokenType.SEMICOLON for token in kept):
        if kept[0].text.upper() == "DECLARE" or (
            kept[0].token_type is TokenType.BEGIN and kept[1].token_type is not TokenType.SEMICOLON
        ):
            raise unsupported("Snowflake Scripting")
        raise several_statements(count + 1)
    return kept


def split_statements(text: str) -> tuple[list[str], str]:
    """The statements that end with a semicolon, and the unfinished text after them, "" if blank."""
    try:
        tokens = sqlglot.tokenize(text, read="snowflake")
    except TokenError:  # a string continues on the next line
        return [], text
    statements: list[str] = []
    start, is_empty = 0, True
    for token in tokens:
        if token.token_type is not TokenType.SEMICOLON:
            is_empty = False
            continue
        statements += [] if is_empty else [text[start : token.start].strip()]
        start, is_empty = token.end + 1, True
    return statements, "" if is_empty else text[start:]


def quote_stage_arguments(sql: str) -> str:
    """Quote the stage in `GET_PRESIGNED_URL(@stage, …)`, so that sqlglot can parse the statement."""
    tokens = _tokenize(sql)
    pieces: list[str] = []
    done = 0
    for index, token in enumerate(tokens[2:], 2):
        if (
            token.token_type is not TokenType.PARAMETER
            or tokens[index - 1].token_type is not TokenType.L_PAREN
        ):
            continue
        if tokens[index - 2].text.upper() not in STAGE_FUNCTIONS:
            continue
        end = index
        while end + 1 < len(tokens) and tokens[end + 1].start == tokens[end].end + 1:
            if tokens[end + 1].token_type in {TokenType.COMMA, TokenType.R_PAREN}:
                break
            end += 1
        pieces += [sql[done : token.start], quote_string(sql[token.start : tokens[end].end + 1])]
        done = tokens[end].end + 1
    return "".join([*pieces, sql[done:]])


def inline_immediate(sql: str, variables: Mapping[str, str]) -> str:
    """The statement that an EXECUTE IMMEDIATE '<statement>' holds, and any other as it is."""
    tokens = Tokens(sql)
    if not tokens.take("EXECUTE", "IMMEDIATE"):
        return sql
    tokens = Tokens(inline_variables(tokens.take_text(), variables))
    statement = tokens.take_string()
    if not tokens.at_end:
        raise unsupported("USING of EXECUTE IMMEDIATE")
    return statement


def inline_variables(sql: str, variables: Mapping[str, str]) -> str:
    """The statement with each `$name` replaced. Raises ProgrammingError for an unknown variable."""
    if "$" not in sql:
        return sql
    pieces, done = [], 0
    for token, name in pairwise(_tokenize(sql)):
        is_variable = sql[token.start : name.start] == "$" and token.token_type is TokenType.PARAMETER
        if not is_variable or name.token_type is TokenType.NUMBER:
            continue
        if name.text.upper() not in variables:
            raise no_such_variable(f"${name.text.upper()}")
        pieces += [sql[done : token.start], variables[name.text.upper()]]
        done = name.end + 1
    return "".join([*pieces, sql[done:]])


def inline_binds(sql: str, constants: Sequence[str]) -> str:
    """The statement with each `?` replaced."""
    pieces, done, left = [], 0, list(constants)
    for token in _tokenize(sql):
        if token.token_type is TokenType.PLACEHOLDER and left:
            pieces += [sql[done : token.start], left.pop(0)]
            done = token.end + 1
    return "".join([*pieces, sql[done:]])


def inline_identifiers(sql: str) -> str:
    """The statement with the name in the place of each IDENTIFIER('<name>')."""
    tokens = _tokenize(sql) if "IDENTIFIER" in sql.upper() else []
    pieces, done = [], 0
    for word, opening, text, closing in zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False):
        if (word.text.upper(), opening.text, closing.text) != ("IDENTIFIER", "(", ")"):
            continue
        if word.token_type not in _LITERALS and text.token_type in _STRINGS:
            pieces += [sql[done : word.start], quote_identifier(*_parse_name(text.text, MAX_PARTS))]
            done = closing.end + 1
    return "".join([*pieces, sql[done:]])


def column_texts(sql: str) -> list[str]:
    """The source text of each selected column, which Snowflake uses as the name of an unnamed column."""
    texts: list[str] = []
    depth, start = 0, None
    tokens = _tokenize(sql)
    for index, token in enumerate(tokens):
        depth += (token.token_type in _OPENING) - (token.token_type in _CLOSING)
        if depth == 0 and start is None and token.token_type is TokenType.SELECT:
            start = token.end + 1
        elif depth == 0 and start is not None and token.token_type in _ENDS_OF_COLUMN:
            texts.append(_column_text(sql[start : tokens[index - 1].end + 1]))
            start = token.end + 1
            if token.token_type is not TokenType.COMMA:
                return texts
    return [*texts, _column_text(sql[start : tokens[-1].end + 1])] if start is not None else []


def _column_text(text: str) -> str:
    return re.sub(r"^\s*(?:(?:DISTINCT|ALL|TOP\s+\d+)\s+)?", "", text, flags=re.IGNORECASE).strip()
