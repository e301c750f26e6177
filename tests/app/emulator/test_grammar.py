"""The tokenizer: names, strings, options, stage locations, and splitting of statements."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snowflake.connector.errors import ProgrammingError

from app.emulator.grammar import Tokens, column_texts, quote_stage_arguments, split_statements
from app.names import quote_identifier, quote_string

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


def failure(sql: str) -> ProgrammingError:
    with pytest.raises(ProgrammingError) as caught:
        Tokens(sql)
    return caught.value


@given(st.lists(names, min_size=1, max_size=3))
def test_quoted_name_keeps_its_text(parts: list[str]) -> None:
    tokens = Tokens(f"{quote_identifier(*parts)} rest")
    assert tokens.take_name() == tuple(parts)
    assert tokens.take("REST")


@given(names)
def test_quoted_string_keeps_its_text(text: str) -> None:
    assert Tokens(quote_string(text)).take_string() == text


def test_unquoted_name_becomes_upper_case() -> None:
    assert Tokens("db.Schema_1.t$").take_name() == ("DB", "SCHEMA_1", "T$")


@pytest.mark.parametrize("text", ["'CREATE'", '"CREATE"'])
def test_literal_is_not_a_keyword(text: str) -> None:
    assert not Tokens(text).take("CREATE")


@pytest.mark.parametrize("sql", ["create", "Create ", "/* x */ CREATE -- y", "CREATE;", "CREATE ; ;\n"])
def test_keyword_ignores_case_and_comments(sql: str) -> None:
    tokens = Tokens(sql)
    assert tokens.take("CREATE")
    tokens.require_end()


@pytest.mark.parametrize("sql", ["", " ", ";", "-- nothing", "/* nothing */ ;"])
def test_empty_statement_is_an_error(sql: str) -> None:
    assert failure(sql).errno == 900


@pytest.mark.parametrize(("sql", "count"), [("a; b", 2), ("a; b;", 2), ("a;b;c", 3)])
def test_several_statements_are_an_error(sql: str, count: int) -> None:
    error = failure(sql)
    assert error.errno == 8
    assert f"Actual statement count {count} did not match" in str(error)


def test_semicolon_in_a_string_does_not_end_the_statement() -> None:
    assert Tokens("'a;b'").take_string() == "a;b"


def test_unfinished_string_is_an_error() -> None:
    assert failure("SELECT 'a").errno == 1003


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("word", "word"),
        ("'string'", "string"),
        ("12", "12"),
        ("'('", "("),
        ("')'", ")"),
        ("(',', ')', '=')", [",", ")", "="]),
        ("()", []),
        ("('a' = 'b', 'c' = ')')", {"a": "b", "c": ")"}),
        ("(enable = true)", {"ENABLE": "true"}),
        ("(a = (b = 'c'))", {"A": {"B": "c"}}),
    ],
)
def test_value_is_a_word_a_string_a_list_or_options(text: str, value: object) -> None:
    tokens = Tokens(text)
    assert tokens.take_value() == value
    tokens.require_end()


@pytest.mark.parametrize("text", ["('a', 'b' = 'c')", "('a'"])
def test_mixed_or_unclosed_list_is_an_error(text: str) -> None:
    with pytest.raises(ProgrammingError):
        Tokens(text).take_value()


def test_unknown_option_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ProgrammingError, match="COMMENT, URL"):
        Tokens("COMENT = 'x'").take_options({"COMMENT": "", "URL": ""})


@pytest.mark.parametrize("word", ["LIST", "REMOVE", "RM"])
@pytest.mark.parametrize(
    "location",
    [
        "@stage",
        "@db.schema.stage/a/b.png",
        '@"My stage"/a-b.c_d',
        "@~/x",
        "@%table",
        "@s/2026/07/",
        "'@s/a b'",
    ],
)
def test_location_keeps_its_text(word: str, location: str) -> None:
    tokens = Tokens(f"{word} {location} -- all of it\n;")
    assert tokens.take(word)
    assert tokens.take_location() == location.strip("'")
    tokens.require_end()


def test_location_ends_at_a_blank() -> None:
    tokens = Tokens("@stage/a PATTERN = 'x'")
    assert tokens.take_location() == "@stage/a"
    assert tokens.take("PATTERN")


@pytest.mark.parametrize(
    ("sql", "quoted"),
    [
        ("SELECT GET_PRESIGNED_URL(@s, 'a')", "SELECT GET_PRESIGNED_URL('@s', 'a')"),
        ('SELECT get_presigned_url ( @db.s."o\'k" , x)', "SELECT get_presigned_url ( '@db.s.\"o''k\"' , x)"),
        ('SELECT BUILD_STAGE_FILE_URL(@"a),(b",x)', "SELECT BUILD_STAGE_FILE_URL('@\"a),(b\"',x)"),
        (
            "SELECT 'é', BUILD_SCOPED_FILE_URL(@s,x), BUILD_SCOPED_FILE_URL(@t,y)",
            "SELECT 'é', BUILD_SCOPED_FILE_URL('@s',x), BUILD_SCOPED_FILE_URL('@t',y)",
        ),
        ("SELECT other(@s, 'a'), 'GET_PRESIGNED_URL(@s)'", "SELECT other(@s, 'a'), 'GET_PRESIGNED_URL(@s)'"),
        ("SELECT 1", "SELECT 1"),
    ],
)
def test_stages_are_quoted_in_url_functions(sql: str, quoted: str) -> None:
    assert quote_stage_arguments(sql) == quoted


@pytest.mark.parametrize(
    ("sql", "texts"),
    [
        ("SELECT a", ["a"]),
        ("SELECT f(a, b), c::int , 'x,y' FROM t", ["f(a, b)", "c::int", "'x,y'"]),
        ("WITH x AS (SELECT a, b FROM t) SELECT f(a):b FROM x WHERE 1=1", ["f(a):b"]),
        ("SELECT [a, b], {'c': d} LIMIT 1;", ["[a, b]", "{'c': d}"]),
        ("SELECT a UNION SELECT b, c", ["a"]),
        ("SELECT a;", ["a"]),
        ("DROP TABLE t", []),
    ],
)
def test_column_texts_are_the_source_of_each_column(sql: str, texts: list[str]) -> None:
    assert column_texts(sql) == texts


@pytest.mark.parametrize(
    ("text", "statements", "rest"),
    [
        ("SELECT 1", [], "SELECT 1"),
        ("SELECT 1; SELECT 2;", ["SELECT 1", "SELECT 2"], ""),
        ("SELECT ';' -- ;\n, 2; -- done", ["SELECT ';' -- ;\n, 2"], ""),
        ("SELECT 1; SELECT 'open;", [], "SELECT 1; SELECT 'open;"),
        ("; -- nothing\n;", [], ""),
        ("REMOVE @s; LIST @s", ["REMOVE @s"], " LIST @s"),
    ],
)
def test_statements_are_split_at_semicolons(text: str, statements: list[str], rest: str) -> None:
    assert split_statements(text) == (statements, rest)


def test_error_names_the_unexpected_and_the_expected_token() -> None:
    with pytest.raises(ProgrammingError, match=re.escape("unexpected 'b'; expected the end")):
        Tokens("b").require_end()
    tokens = Tokens("a")
    assert tokens.take("A")
    with pytest.raises(ProgrammingError, match="unexpected end of the statement; expected AS"):
        tokens.require("AS")
