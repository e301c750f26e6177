"""Names and string constants, against Snowflake's grammar and another parser of it."""

import pytest
import sqlglot
from hypothesis import given
from hypothesis import strategies as st
from sqlglot import expressions as exp

from app.snowflake.identifier import parse_identifier, quote_identifier, quote_string

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
def test_names_are_read_as_snowflake_stores_them(text: str, parts: tuple[str, ...]) -> None:
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
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must .*Received: "):
        parse_identifier(text)


def test_a_name_of_too_many_parts_is_refused() -> None:
    assert parse_identifier("db", max_parts=1) == ("DB",)
    with pytest.raises(ValueError, match="at most 1 parts"):
        parse_identifier("db.schema", max_parts=1)


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 256])
def test_what_snowflake_cannot_store_is_not_quoted(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 255 characters"):
        quote_identifier("db", name)


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_quoted_names_are_read_back(names: list[str]) -> None:
    assert parse_identifier(quote_identifier(*names)) == tuple(names)


@given(NAMES)
def test_another_parser_reads_a_quoted_name_alike(name: str) -> None:
    column = sqlglot.parse_one(f"SELECT {quote_identifier(name)}", dialect="snowflake").find(exp.Identifier)
    assert column is not None
    assert (column.this, column.quoted) == (name, True)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_another_parser_reads_a_string_constant_alike(text: str) -> None:
    tokens = sqlglot.tokenize(quote_string(text), dialect="snowflake")
    assert [(token.token_type.name, token.text) for token in tokens] == [("STRING", text)]


def test_a_string_constant_with_a_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="no NUL"):
        quote_string("a\0b")
