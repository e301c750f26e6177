import re
from urllib.parse import unquote

import pytest
import sqlglot
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sqlglot.tokens import TokenType

from app.emulator import ACCOUNT_HOST, Name, Stage
from app.errors import InvalidSource, ScopedUrlNotReadable, StageNotAuthorized
from app.images.source import DOTTED, StageFile, parse_file_url, parse_stage_path, percent_decode
from app.names import (
    MAX_CHARACTERS,
    OwnersStage,
    parse_identifier,
    parse_location,
    quote_identifier,
    quote_string,
)

HOST = "https://org-steel.snowflakecomputing.com"
FILES = f"{HOST}/api/files"
QUERY_ID = "019260c2-00c0-f2f2-0000-4383001cf046"

LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
NAMES = st.text(LETTERS, min_size=1, max_size=MAX_CHARACTERS)
PATHS = st.text(LETTERS, min_size=1).filter(lambda path: path.strip("/"))


def is_quoted(name: str) -> bool:
    try:
        return name.startswith('"') and parse_identifier(name) != (name,)
    except ValueError:
        return False


@given(names=st.tuples(NAMES, NAMES, NAMES), path=PATHS)
@example(names=("DB", "PUBLIC", "IMAGES"), path="2026/july/a b#?%+&.png")
@example(names=('a"b', "ünïcode", "with space"), path="e\u0301/é.png")
@example(names=("a.b.c", "d/e", "50%"), path="/leading.png")
@example(names=('"', '"a', "%22"), path="%2e%2e/\\'\"")
@example(names=(QUERY_ID, "S", "T"), path="a.png")
def test_file_url_of_a_directory_table_names_its_file(names: Name, path: str) -> None:
    assume(not any(map(is_quoted, names)))  # a URL unquotes a name in double quotes
    stage = Stage(names, folder=None)  # type: ignore[arg-type]
    assert parse_file_url(stage.file_url(path)) == StageFile(names, path, ACCOUNT_HOST)


@given(names=st.lists(NAMES, min_size=1, max_size=3), path=PATHS)
@example(names=["%", "~", "%"], path="a.png")
@example(names=["~"], path="a.png")
@example(names=['"', "a.b", "c/d@"], path="'; DROP STAGE x --")
def test_quoted_stage_path_names_its_file(names: list[str], path: str) -> None:
    text = f"@{quote_identifier(*names)}/{path}"
    assert parse_location(text) == (tuple(names), path)
    if len(names) == 3:
        assert parse_stage_path(text) == StageFile(tuple(names), path)
    else:
        assert isinstance(parse_stage_path(text), StageNotAuthorized)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("@images/a.png", "@db.schema.images/a.png"),
        ("@steel.images/2026/a b.png", "@db.steel.images/2026/a b.png"),
        ('@"My stage"/a.png', '@db.schema."My stage"/a.png'),
        ("@images", "@db.schema.images"),
    ],
)
def test_stage_path_names_the_database_and_the_schema(text: str, full: str) -> None:
    refused = parse_stage_path(text)
    assert isinstance(refused, StageNotAuthorized)
    assert full in refused.message


@given(names=st.lists(NAMES, min_size=1, max_size=3), path=PATHS)
@example(names=["'; DROP STAGE images; --"], path="a.png")
@example(names=["S"], path="'; DROP STAGE images; --")
@example(names=["S"], path="\\'; DROP STAGE images; --")
@example(names=["\\"], path="\\")
def test_no_stage_or_path_breaks_out_of_its_constant(names: list[str], path: str) -> None:
    location = f"@{quote_identifier(*names)}/{path}"
    tokens = sqlglot.tokenize(f"LIST {quote_string(location)}", read="snowflake")
    assert [token.token_type for token in tokens[1:]] == [TokenType.STRING]
    assert tokens[1].text == location


@pytest.mark.parametrize(
    ("url", "stage", "path"),
    [
        (f"{FILES}/DB/S/IMAGES/a%2epng", ("DB", "S", "IMAGES"), "a.png"),
        (f"{FILES}/DB/S/IMAGES/2026%2fjuly%2fa%2epng", ("DB", "S", "IMAGES"), "2026/july/a.png"),
        (f"{FILES}/DB/S/IMAGES/2026/july/a.png", ("DB", "S", "IMAGES"), "2026/july/a.png"),
        (f"{FILES}/DB.S.IMAGES/july/a.png", ("DB", "S", "IMAGES"), "july/a.png"),
        (f"{FILES}/%22my db%22.S.%22a.b%22/a.png", ("my db", "S", "a.b"), "a.png"),
        (f"{FILES}/db/s/images/a.png", ("db", "s", "images"), "a.png"),
        (f"{FILES}/DB/S/%22my%20stage%22/a.png", ("DB", "S", "my stage"), "a.png"),
        (f"{FILES}/DB/S/%22say %22%22hi%22%22%22/a.png", ("DB", "S", 'say "hi"'), "a.png"),
        (f"{FILES}/DB/S/IMAGES/100%25.png", ("DB", "S", "IMAGES"), "100%.png"),
        (f"{FILES}/DB/S/IMAGES/100%.png", ("DB", "S", "IMAGES"), "100%.png"),
        (f"{FILES}/DB/S/IMAGES/%252e.png", ("DB", "S", "IMAGES"), "%2e.png"),
        (f"{FILES}/DB/S/IMAGES/a+b.png", ("DB", "S", "IMAGES"), "a+b.png"),
        (f"{FILES}/DB/S/IMAGES/caf\u00e9.png", ("DB", "S", "IMAGES"), "caf\u00e9.png"),
        (f"{FILES}/DB/S/IMAGES/cafe%cc%81.png", ("DB", "S", "IMAGES"), "cafe\u0301.png"),
        (f"{FILES}/DB/S/IMAGES//a.png", ("DB", "S", "IMAGES"), "/a.png"),
        (f"{FILES}/DB/S/IMAGES/{'d/' * 500}a.png", ("DB", "S", "IMAGES"), f"{'d/' * 500}a.png"),
        (f"{FILES}/{QUERY_ID}/S/IMAGES/a.png", (QUERY_ID, "S", "IMAGES"), "a.png"),
    ],
)
def test_file_url_is_decoded_once(url: str, stage: tuple[str, ...], path: str) -> None:
    assert parse_file_url(url) == StageFile(stage, path, "org-steel.snowflakecomputing.com")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://ab12345.snowflakecomputing.com", "ab12345.snowflakecomputing.com"),
        (
            "https://AB12345.eu-central-1.SnowflakeComputing.COM",
            "ab12345.eu-central-1.snowflakecomputing.com",
        ),
        ("HTTPS://a_b-c.snowflakecomputing.cn:443", "a_b-c.snowflakecomputing.cn"),
        ("https://a.privatelink.snowflakecomputing.com", "a.privatelink.snowflakecomputing.com"),
    ],
)
def test_file_url_keeps_its_host(url: str, host: str) -> None:
    assert parse_file_url(f"{url}/api/files/DB/S/T/a.png") == StageFile(("DB", "S", "T"), "a.png", host)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/api/files/DB/S/T/a.png",
        "https://snowflakecomputing.com.evil.example/api/files/DB/S/T/a.png",
        "https://a.privatelink.snowflakecomputing.com.evil.example/api/files/DB/S/T/a.png",
        "https://a.privatelink.evilsnowflakecomputing.com/api/files/DB/S/T/a.png",
        "https://a.privatelink.snowflakecomputing.org/api/files/DB/S/T/a.png",
        "https://evilsnowflakecomputing.com/api/files/DB/S/T/a.png",
        "https://a.snowflakecomputing.com@evil.example/api/files/DB/S/T/a.png",
        "https://a.snowflakecomputing.com:8443/api/files/DB/S/T/a.png",
        "http://a.snowflakecomputing.com/api/files/DB/S/T/a.png",
        "https://a.snowflakecomputing.com/api/v2/DB/S/T/a.png",
        "https://bucket.s3.amazonaws.com/api/files/DB/S/T/a.png",
    ],
)
def test_other_urls_are_not_stage_files(url: str) -> None:
    assert parse_file_url(url) is None


@pytest.mark.parametrize(
    "host",
    [HOST, "https://local.snowflakecomputing.com", "https://a.us-east-1.privatelink.snowflakecomputing.cn"],
)
@pytest.mark.parametrize("rest", [f"{QUERY_ID}/bXlfZGF0YWJhc2U", f"{QUERY_ID.upper()}/12345/bXlfZGF0"])
def test_scoped_url_is_recognized(host: str, rest: str) -> None:
    assert isinstance(parse_file_url(f"{host}/api/files/{rest}"), ScopedUrlNotReadable)


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "DB",
        "DB/S/T",
        "DB/S/T/",
        "DB/S/T//",
        "DB//T/a.png",
        "DB.S.T",
        "DB/S/T/a?.png",
        "DB/S/T/a#1.png",
        "DB/S/T?/a.png",
        "DB/S/T/%00.png",
        "DB/S/%00/a.png",
        "DB/S/T/%ff.png",
        "DB/S/T/%ed%a0%80.png",
        "DB/S/T/\ud800.png",
        f"DB/S/{'T' * 256}/a.png",
    ],
)
def test_invalid_file_url_is_rejected(rest: str) -> None:
    assert isinstance(parse_file_url(f"{FILES}/{rest}"), InvalidSource)


PERCENT_ENCODED = st.lists(
    st.sampled_from(
        ["%", "%4", "%41", "%e9", "%c3%a9", "%3d", "%3D", "=", "==", "\n", "\r", "_", "+", "é", "\0", "D"]
    )
    | st.text(max_size=2)
).map("".join)


@pytest.mark.slow
@given(PERCENT_ENCODED)
def test_percent_decoding_equals_urllib_s(text: str) -> None:
    try:
        decoded = unquote(text, errors="strict")
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 - the message is the codec's
            percent_decode(text)
    else:
        assert percent_decode(text) == decoded


@pytest.mark.parametrize("text", ["%zz" * 257, "%" * 257, "%41\n" * 257])
def test_many_percent_signs_without_an_escape_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be percent-encoded\. Received: 257 %"):
        percent_decode(text)
    assert percent_decode(text[: len(text) // 257 * 256]) == unquote(text[: len(text) // 257 * 256])
    assert isinstance(parse_file_url(f"{FILES}/DB/S/T/{text}"), InvalidSource)


@given(st.lists(st.sampled_from(["%22", "%2", '"', ".", "a", "%2e", " "]), max_size=14).map("".join))
@example("%22a.b%22.c.d")
@example("a.%22b%22%22.%22.c")
def test_dotted_stage_has_three_parts(text: str) -> None:
    parts = re.findall(r'(?:%22.*?%22(?!%22)|"[^"]*"|[^."])+', text)
    match = DOTTED.fullmatch(text)
    assert (match is not None) == (len(parts) == 3 and ".".join(parts) == text)
    assert match is None or list(match.groups()) == parts


@pytest.mark.parametrize("name", ["a" * 255, '"' + "b" * 255 + '"', '"' + '""' * 255 + '"'])
@pytest.mark.parametrize("place", ["@{}.s.t/a.png", "@d.{}.t/a.png", "@d.s.{}/a.png", "@d.s.%{}/a.png"])
def test_name_has_at_most_255_characters(name: str, place: str) -> None:
    parsed = parse_stage_path(place.format(name))
    assert isinstance(parsed, StageNotAuthorized if "%" in place else StageFile)
    longer = name + "a" if name[0] == "a" else name[:-1] + 'b"'
    assert isinstance(parse_stage_path(place.format(longer)), InvalidSource)


@pytest.mark.parametrize(
    ("text", "stage", "path"),
    [
        ("@db.s.images/2026/07/a.png", ("DB", "S", "IMAGES"), "2026/07/a.png"),
        ('@"My db".s."a.b/c"/a.png', ("My db", "S", "a.b/c"), "a.png"),
        ('@db.s."say ""hi"""/a.png', ("DB", "S", 'say "hi"'), "a.png"),
        ('@db.s."50%"/100%25.png', ("DB", "S", "50%"), "100%25.png"),
        ("@db.s._1$/a b#?.png", ("DB", "S", "_1$"), "a b#?.png"),
        ("@db.s.images//a.png", ("DB", "S", "IMAGES"), "/a.png"),
        ("@db.s.images/a\nb.png", ("DB", "S", "IMAGES"), "a\nb.png"),
        ("@db.s.images", None, ""),
        ("@db.s.images/", None, ""),
        ("@db.s.images//", None, ""),
        ("@", None, ""),
        ("@/a.png", None, ""),
        ("@a.b.c.d/a.png", None, ""),
        ("@1stage/a.png", None, ""),
        ("@my stage/a.png", None, ""),
        ("@bücher/a.png", None, ""),
        ('@"unfinished/a.png', None, ""),
        ('@""/a.png', None, ""),
        ("@db.s.images/a\0.png", None, ""),
        ('@"a\0"/a.png', None, ""),
        ("@db.s.images/\ud800.png", None, ""),
        (f"@{'a' * 256}/a.png", None, ""),
    ],
)
def test_stage_path_is_parsed_like_sql(text: str, stage: tuple[str, ...] | None, path: str) -> None:
    parsed = parse_stage_path(text)
    if stage is None:
        assert isinstance(parsed, InvalidSource)
    else:
        assert parsed == StageFile(stage, path)


@pytest.mark.parametrize("text", ["@~/a.png", "@%t/a.png", "@db.s.%t/a.png", '@s.%"my table"/a.png'])
def test_stage_of_a_user_or_table_is_rejected(text: str) -> None:
    assert isinstance(parse_stage_path(text), StageNotAuthorized)
    with pytest.raises(OwnersStage):
        parse_location(text)


@pytest.mark.parametrize("text", ["@~a/b", "@db.~/a.png", "@%/a.png", "@%~/a.png"])
def test_invalid_stage_path_is_rejected(text: str) -> None:
    assert isinstance(parse_stage_path(text), InvalidSource)


def test_location_may_have_no_path() -> None:
    assert parse_location("@db.s.images") == (("DB", "S", "IMAGES"), "")
