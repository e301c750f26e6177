import base64
import io
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from app.errors import (
    InvalidBase64,
    InvalidHex,
    InvalidSource,
    ScopedUrlNotReadable,
    StageNotAuthorized,
    UrlNotAllowed,
)
from app.images.source import (
    DEFAULT_LIMITS,
    MAX_REFERENCE_CHARACTERS,
    Base64Text,
    HexText,
    LongText,
    StageFile,
    Url,
    max_text_characters,
    parse_source,
)
from model.errors import ImageTooLarge, InputError
from model.image_limits import ImageLimits

LIMITS = ImageLimits(max_image_bytes=100)
FILES = "https://a.snowflakecomputing.com/api/files"
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
# The first bytes of each format, including BigTIFF and both byte orders of TIFF.
MAGICS = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"RIFF"]
MAGICS += [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]


def image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((20, 20)).save(file, kind)
    return file.getvalue()


def test_null_is_none() -> None:
    assert parse_source(None) is None


@pytest.mark.parametrize(
    "text",
    [
        "https://a/b",
        "http://a",
        "file:///etc/passwd",
        "S3://b/k",
        "https://a.snowflakecomputing.com/oauth/authorize",
    ],
)
def test_text_with_a_scheme_is_a_url(text: str) -> None:
    assert parse_source(text) == Url(text)


def test_blanks_around_a_reference_are_stripped() -> None:
    assert parse_source(" https://a/b\n") == Url("https://a/b")
    assert parse_source("\t@d.s.t/a b.png ") == StageFile(("D", "S", "T"), "a b.png")


def test_file_url_and_stage_path_are_stage_files() -> None:
    stage = ("DB", "S", "T")
    assert parse_source(f"{FILES}/DB/S/T/a%2epng") == StageFile(stage, "a.png", "a.snowflakecomputing.com")
    assert parse_source("@db.s.t/a.png") == StageFile(stage, "a.png")


def test_scoped_urls_and_user_stages_are_rejected() -> None:
    scoped = f"{FILES}/019260c2-00c0-f2f2-0000-4383001cf046/bXlfZGF0"
    assert isinstance(parse_source(scoped), ScopedUrlNotReadable)
    assert isinstance(parse_source("@~/a.png"), StageNotAuthorized)


@pytest.mark.parametrize("value", ["", " \n", "@", "@d.s.t", f"{FILES}/DB/S/T", 0, 1.5, True, [], {}])
def test_other_values_are_invalid(value: object) -> None:
    assert isinstance(parse_source(value), InvalidSource)


@pytest.mark.parametrize("blanks", ["", " \n\t", " " * 2000])
@pytest.mark.parametrize(
    ("begin", "error", "name"),
    [
        ("https://a/", UrlNotAllowed, "URL"),
        (f"{FILES}/", UrlNotAllowed, "URL"),
        ("@d.s.a/", InvalidSource, "stage path"),
    ],
)
def test_reference_has_at_most_8192_characters(
    begin: str, error: type[InputError], name: str, blanks: str
) -> None:
    text = blanks + begin + "é" * (MAX_REFERENCE_CHARACTERS - len(blanks) - len(begin))
    assert isinstance(parse_source(text), Url | StageFile | InvalidSource)
    for value in (f"{text}é", LongText(f"{text}é".encode(), len(text) + 1)):
        refused = parse_source(value)
        assert type(refused) is error
        assert refused.message == f"A {name} must have at most 8192 characters. Received: 8193."


def test_long_text_is_parsed_like_its_string() -> None:
    for text in ("@db.s.t/a.png", " https://a/b\n", "QUJD", "", " \n", "QUJD" * 10_000, "\u00a0" * 9000):
        assert repr(parse_source(LongText(text.encode(), len(text)))) == repr(parse_source(text))


@pytest.mark.parametrize("head", ["", "89504E470D0A1A0A", "FFD8FFE000104A46", " \n"])
@pytest.mark.parametrize("is_kept", [True, False])
def test_too_large_text_is_rejected_without_decoding(head: str, is_kept: bool) -> None:
    text = head + "A" * 10_000
    characters = max_text_characters(LIMITS) + 1
    long = LongText(text.encode(), len(text) if is_kept else characters)
    refused = parse_source(long, LIMITS)
    assert isinstance(refused, ImageTooLarge)
    assert refused.message.startswith(
        "An image must have at most 100 bytes (EXT_CLASSIFY_MAX_IMAGE_BYTES). Received: "
    )


@pytest.mark.parametrize("kind", [Base64Text, HexText])
def test_text_beyond_the_maximum_length_is_always_too_large_an_image(
    kind: type[Base64Text | HexText],
) -> None:
    for max_bytes in range(5, 200):
        characters = max_text_characters(ImageLimits(max_image_bytes=max_bytes)) + 1
        assert kind.image_bytes(characters) > max_bytes


def test_other_text_is_base64() -> None:
    assert parse_source("QUJD") == Base64Text(b"QUJD")


@pytest.mark.parametrize("text", [b"QUJD", b"QUI=", b"QQ==", b"QU\r\nJD\n", b" QUJD "])
def test_base64_is_decoded(text: bytes) -> None:
    assert Base64Text(text).decode(LIMITS) == base64.b64decode(text)


CONTENT = bytes(range(150, 247))  # its base64 has + and /
PLAIN, FOR_URLS = base64.b64encode(CONTENT).decode(), base64.urlsafe_b64encode(CONTENT).decode()
DATA_URLS = [
    f"data:image/png;base64,{PLAIN}",
    f"data:;base64,{PLAIN}",
    f"DATA:Image/JPEG;BASE64,{PLAIN}",
    f"data:image/png;name=a.png;charset=utf-8;base64,{PLAIN}",
    f"data:image/png; base64, {PLAIN}",
    f" data:image/png;base64,\n{PLAIN[:76]}\r\n{PLAIN[76:]}\n",
    f"data:application/octet-stream;base64,{FOR_URLS.rstrip('=')}",
    f"data:image/png;base64,{quote(PLAIN, safe='')}",
    f"data:image/png;base64,{quote(PLAIN[:40] + chr(10) + PLAIN[40:])}",
    f"data:image/png;base64,{''.join(f'%{byte:02x}' for byte in PLAIN.encode())}",
]


@pytest.mark.parametrize("text", DATA_URLS)
@pytest.mark.parametrize("blanks", ["", " " * 8200])
def test_data_url_of_base64_is_its_content(text: str, blanks: str) -> None:
    for value in (text + blanks, LongText((text + blanks).encode(), len(text + blanks))):
        source = parse_source(value)
        assert isinstance(source, Base64Text)
        assert source.decode(DEFAULT_LIMITS) == CONTENT


@pytest.mark.parametrize(
    "text",
    [
        "data:",
        "data:image/png",
        "data:,a",
        "data:image/svg+xml,<svg/>",
        "data:base64,QUJD",
        "data:image/png;base64",
    ],
)
@pytest.mark.parametrize("blanks", ["", " " * 8200])
def test_other_data_url_is_invalid(text: str, blanks: str) -> None:
    assert isinstance(parse_source(text + blanks), InvalidSource)


@pytest.mark.parametrize(
    "text", ["data:image/png;base64,QU%4", "data:;base64,Q%zzJD", "data:;base64,QUJ!", "data:;base64,QUJDR"]
)
def test_data_url_of_other_text_is_not_decoded(text: str) -> None:
    source = parse_source(text)
    assert isinstance(source, Base64Text)
    with pytest.raises(InvalidBase64):
        source.decode(DEFAULT_LIMITS)


def test_data_url_of_too_large_an_image_is_refused() -> None:
    text = f"data:image/png;base64,{'A' * 140}"
    assert isinstance(parse_source(text, LIMITS), ImageTooLarge)
    with pytest.raises(ImageTooLarge):
        Base64Text(text.encode()).decode(LIMITS)


@pytest.mark.parametrize(
    "text", ["A", "QUJ", "QQ=", "QQ==QQ==", "QU*D", "QUJD=", "QÜJD", "\ud800", "QU-_", "Q" * 81]
)
def test_other_text_is_invalid_base64(text: str) -> None:
    source = parse_source(text)
    assert isinstance(source, Base64Text)
    with pytest.raises(InvalidBase64, match=rf"Received: {len(text)} characters"):
        source.decode(LIMITS)


@pytest.mark.parametrize("size", [99, 100])
def test_image_up_to_the_limit_is_decoded(size: int) -> None:
    assert len(Base64Text(base64.b64encode(bytes(size))).decode(LIMITS)) == size
    assert len(HexText(bytes(size).hex().encode()).decode(LIMITS)) == size


def test_too_large_image_is_rejected_before_decoding() -> None:
    with pytest.raises(ImageTooLarge):
        Base64Text(base64.b64encode(bytes(110))).decode(LIMITS)
    with pytest.raises(ImageTooLarge):
        HexText(b"zz" * 101).decode(LIMITS)


@pytest.mark.parametrize("kind", FORMATS)
def test_hex_of_an_image_is_decoded(kind: str) -> None:
    data = image(kind)
    for text in (data.hex(), data.hex().upper(), f" {data.hex()}\n", data.hex("\n", -40)):
        source = parse_source(text)
        assert isinstance(source, HexText)
        assert source.decode(ImageLimits()) == data


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "change", [lambda text: text[:-1], lambda text: f"{text}g0", lambda text: f"{text}-"]
)
def test_hex_with_other_characters_is_invalid(kind: str, change: Callable[[str], str]) -> None:
    source = parse_source(change(image(kind).hex()))
    assert isinstance(source, HexText)
    with pytest.raises(InvalidHex):
        source.decode(ImageLimits())


@given(magic=st.sampled_from(MAGICS), rest=st.binary(min_size=8))
@example(magic=b"BM", rest=base64.b64decode("89504E470D0A1A0A"))
def test_base64_of_an_image_is_never_parsed_as_hex(magic: bytes, rest: bytes) -> None:
    text = base64.b64encode(magic + rest).decode()
    assert parse_source(text) == Base64Text(text.encode())
    assert isinstance(parse_source((magic + rest).hex()), HexText)


@pytest.mark.parametrize("text", ["DEADBEEF", "89504E47", "424D0000", b"GIF89a".hex(), "FFD8FF"])
def test_hex_of_other_bytes_is_parsed_as_base64(text: str) -> None:
    assert parse_source(text) == Base64Text(text.encode())
