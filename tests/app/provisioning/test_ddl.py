"""The SQL files: no value of a variable can change the structure of a statement."""

import re

import pytest
import sqlglot
from hypothesis import given
from hypothesis import strategies as st
from sqlglot.tokens import Token, TokenType

from app.names import quote_identifier
from app.provisioning.ddl import (
    VARIABLES,
    file_names,
    load,
    load_with_fingerprint,
    split_and_fill,
    variables_of,
)

PLAIN = {
    "allowed_prefix": "https://gateway/prod/",
    "api_key": "key",
    "api_provider": "aws_api_gateway",
    "aws_role_arn": "arn:aws:iam::1:role/snowflake",
    "azure_application_id": "application",
    "azure_tenant_id": "tenant",
    "caller_role": "caller",
    "code_stage": "code",
    "database": "db",
    "files": "/folder",
    "function": "ext_classify",
    "google_audience": "audience",
    "integration": "gateway",
    "max_batch_rows": "64",
    "network": "steel_defects",
    "owner_role": "owner",
    "schema": "sch",
    "service": "classifier",
    "service_role": "reader",
    "stage": "images",
    "url": "https://gateway/prod/classify",
    "warehouse": "wh",
}
IN_STRINGS = (
    "api_key",
    "aws_role_arn",
    "azure_application_id",
    "azure_tenant_id",
    "google_audience",
    "files",
)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=255)
HOSTILE = st.sampled_from(
    ["a; DROP TABLE t", "a'", "'", "\\", "\\'", "''", '"', '";--', "--", "/*", "*/", "//", "$$", "<% url %>"]
)
NAMES = TEXT.map(quote_identifier)


def statements(text: str, **variables: str) -> list[str]:
    return list(split_and_fill(text, variables))


def structure(name: str, variables: dict[str, str]) -> list[list[Token]]:
    return [sqlglot.tokenize(statement, dialect="snowflake") for statement in load(name, variables)]


def shape(tokens: list[Token]) -> list[tuple[TokenType, str]]:
    """The tokens without the content of names, strings and numbers: what an injection would change.

    Dotted names count as one name.
    """
    content = (TokenType.IDENTIFIER, TokenType.STRING, TokenType.NUMBER)
    shown = [(token.token_type, "" if token.token_type in content else token.text) for token in tokens]
    further_part = [(TokenType.DOT, "."), (TokenType.IDENTIFIER, "")]
    for place in reversed(range(1, len(shown) - 1)):
        if shown[place - 1] == further_part[1] and shown[place : place + 2] == further_part:
            del shown[place : place + 2]
    return shown


def test_every_variable_is_used_by_a_file() -> None:
    assert set().union(*map(variables_of, file_names())) == set(VARIABLES) == set(PLAIN)


@pytest.mark.parametrize("name", file_names())
def test_each_file_is_split_into_statements(name: str) -> None:
    for statement in load(name, PLAIN):
        tokens = sqlglot.tokenize(statement, dialect="snowflake")
        assert TokenType.SEMICOLON not in [token.token_type for token in tokens]
        assert "<%" not in statement
        assert "--" not in statement
        assert re.match(r"(ALTER|CREATE|DELETE|DESC|DROP|GRANT|INSERT|PUT|SELECT|USE)\s", statement)


@given(st.data(), st.sampled_from(file_names()))
def test_no_value_changes_the_structure_of_a_statement(data: st.DataObject, name: str) -> None:
    variables = dict(PLAIN)
    for variable in sorted(variables_of(name)):
        drawn = data.draw(st.one_of(NAMES, TEXT, HOSTILE, st.just(PLAIN[variable])), label=variable)
        try:
            load(name, variables | {variable: drawn})
        except ValueError:
            continue
        variables[variable] = drawn
    plain, filled = structure(name, PLAIN), structure(name, variables)
    assert [shape(tokens) for tokens in filled] == [shape(tokens) for tokens in plain]


@given(st.sampled_from(IN_STRINGS), st.one_of(TEXT, HOSTILE))
def test_string_constant_contains_exactly_the_value(variable: str, value: str) -> None:
    [statement] = statements(f"SELECT 'a<% {variable} %>b';", **{variable: value})
    [_, constant] = sqlglot.tokenize(statement, dialect="snowflake")
    assert (constant.token_type, constant.text) == (TokenType.STRING, f"a{value}b")


@given(st.lists(TEXT, min_size=1, max_size=3))
def test_name_in_a_string_constant_is_quoted(parts: list[str]) -> None:
    quoted = quote_identifier(*parts)
    [statement] = statements("SELECT '@<% code_stage %>/a.py';", code_stage=quoted)
    [_, constant] = sqlglot.tokenize(statement, dialect="snowflake")
    assert constant.text == f"@{quoted}/a.py"


def test_semicolons_inside_constants_do_not_split() -> None:
    text = """
    -- a comment; with 'quotes' and <% url %>
    SELECT 'a;''b\\';', "c;""d", $$e;'f$$; // g;
    /* h; */ SELECT 1 /* i */ + 2;
    """
    assert statements(text) == ["SELECT 'a;''b\\';', \"c;\"\"d\", $$e;'f$$", "SELECT 1   + 2"]


def test_names_are_folded_and_quoted() -> None:
    filled = statements("USE SCHEMA <% database %>.<%schema%>;", database="db", schema='"My schema"')
    assert filled == ['USE SCHEMA "DB"."My schema"']


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("SELECT 1", "must end with a semicolon"),
        ("SELECT 1; SELECT 2", "must end with a semicolon"),
        ("SELECT 'a;", "must be closed"),
        ('SELECT "a;', "must be closed"),
        ("SELECT $$a;", "must be closed"),
        ("SELECT /* a;", "must be closed"),
        ("SELECT <% a;", "must be closed"),
        ('SELECT "<% database %>";', "must not be in double quotes"),
        ("SELECT $$<% database %>$$;", "must not be in double quotes"),
        ("SELECT <% api_key %>;", "must be in a string constant"),
    ],
)
def test_invalid_sql_file_is_rejected(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        statements(text, **PLAIN)


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("database", "db.schema", "at most 1 parts"),
        ("database", "my-db", "must be Snowflake identifiers"),
        ("stage", "a.b.c.d", "at most 3 parts"),
        ("max_batch_rows", "0", "integer from 1"),
        ("max_batch_rows", "64 ", "integer from 1"),
        ("max_batch_rows", "٦٤", "integer from 1"),
        ("api_provider", "git_https_api", "must be one of aws_api_gateway"),
        ("url", "http://gateway/classify", "must begin with https://"),
        ("url", "https://gateway/a b", "must begin with https://"),
        ("network", "../network", "file name must"),
        ("files", "", "must not be empty"),
    ],
)
def test_invalid_value_is_rejected(variable: str, value: str, rule: str) -> None:
    [name, *_] = [name for name in file_names() if variable in variables_of(name)]
    with pytest.raises(ValueError, match=f"(?s)variable {variable} has an invalid value.*{rule}"):
        load(name, PLAIN | {variable: value})


def test_secret_is_not_in_the_error_message() -> None:
    with pytest.raises(ValueError, match="NUL") as failure:
        load("05_api_key.sql", PLAIN | {"api_key": "hush\0"})
    assert "hush" not in str(failure.value)


def test_missing_variable_is_named() -> None:
    with pytest.raises(ValueError, match=r"01_stage.sql needs the variables schema, stage\."):
        load("01_stage.sql", {"database": "db"})


def test_unknown_variable_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"Received: \['databse'\]"):
        load("01_stage.sql", PLAIN | {"databse": "db"})


@pytest.mark.parametrize("name", ["02_stage.sql", "../snowflake/01_stage.sql", "", "README.md"])
def test_unknown_file_is_rejected(name: str) -> None:
    with pytest.raises(ValueError, match=r"A file must be one of 01_stage\.sql"):
        load(name, PLAIN)


@pytest.mark.parametrize("name", ["11_external_functions.sql", "13_service_functions.sql"])
def test_comment_has_a_fingerprint_of_the_function(name: str) -> None:
    statements, mark = load_with_fingerprint(name, PLAIN)
    assert load_with_fingerprint(name, PLAIN) == (statements, mark)
    assert [statement.replace(f" {mark}'", "'") for statement in statements] == load(name, PLAIN)
    assert [statement.count(mark) for statement in statements] == [0, 1, 1]
    for variable in variables_of(name):
        changed = PLAIN | {variable: "99" if variable == "max_batch_rows" else PLAIN[variable] + "x"}
        assert load_with_fingerprint(name, changed)[1] != mark


def test_lines_have_no_trailing_blanks() -> None:
    lines = [line for name in file_names() for s in load(name, PLAIN) for line in s.splitlines()]
    assert [line for line in lines if line != line.rstrip()] == []
