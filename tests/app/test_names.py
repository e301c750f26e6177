"""Names and string constants, against Snowflake's grammar and sqlglot's parser."""

import pytest
import sqlglot
from hypothesis import given
from hypothesis import strategies as st
from sqlglot import expressions as exp

from app.names import parse_identifier, quote_identifier, quote_string

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=255)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("images", ("IMAGES",)),
        ("_a$1", ("_A$1",)),
        ('db.schema."St age"', ("DB", "SCHEMA", "St age")),
        ('"db"."a.b"."c""d"', ("db", "a.b", 'c"d')),
        ('"Größe"', ("Größe",)),
        ('"""quoted"""', ('"quoted"',)),
        ('"a\nb"', ("a\nb",)),
        ("x" * 255, ("X" * 255,)),
    ],
)
def test_names_are_parsed_as_snowflake_stores_them(text: str, parts: tuple[str, ...]) -> None:
    assert parse_identifier(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "1a",
        "$a",
        "a b",
        " a",
        "a ",
        "a\n",
        "a-b",
        "größe",
        "\u212a",  # the Kelvin sign, which folds to k
        '""',
        '"a',
        'a"',
        '"a"b',
        '"a""',
        'a"b"',
        "a;b",
        "a--b",
        "a/*b*/",
        "@a",
        "a.b.c.d",
        '"a\0"',
        "x" * 256,
        "'a'",
        "identifier('a')",
    ],
)
def test_invalid_name_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"must .*Received: "):
        parse_identifier(text)


def test_name_with_too_many_parts_is_rejected() -> None:
    assert parse_identifier("db", max_parts=1) == ("DB",)
    with pytest.raises(ValueError, match="at most 1 parts"):
        parse_identifier("db.schema", max_parts=1)


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 256])
def test_unstorable_name_is_rejected(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 255 characters"):
        quote_identifier("db", name)


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_quoted_names_round_trip(names: list[str]) -> None:
    assert parse_identifier(quote_identifier(*names)) == tuple(names)


@given(NAMES)
def test_sqlglot_parses_a_quoted_name_identically(name: str) -> None:
    column = sqlglot.parse_one(f"SELECT {quote_identifier(name)}", dialect="snowflake").find(exp.Identifier)
    assert column is not None
    assert (column.this, column.quoted) == (name, True)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_sqlglot_parses_a_string_constant_identically(text: str) -> None:
    tokens = sqlglot.tokenize(quote_string(text), dialect="snowflake")
    assert [(token.token_type.name, token.text) for token in tokens] == [("STRING", text)]


def test_string_constant_with_nul_is_rejected() -> None:
    with pytest.raises(ValueError, match="NUL"):
        quote_string("a\0b")
