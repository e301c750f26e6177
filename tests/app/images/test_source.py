import base64

import pytest

from app.errors import InvalidBase64, InvalidSource
from app.images.source import Base64Text, Url, parse_source
from model.errors import ImageTooLarge
from model.image_limits import ImageLimits

LIMITS = ImageLimits(max_image_bytes=100)


def test_null_is_null() -> None:
    assert parse_source(None) is None


@pytest.mark.parametrize(
    "text", ["https://a/b", "http://a", "file:///etc/passwd", "data:image/png;base64,AA", "S3://b/k"]
)
def test_text_with_a_scheme_is_a_url(text: str) -> None:
    assert parse_source(text) == Url(text)


def test_other_text_is_base64() -> None:
    assert parse_source("QUJD") == Base64Text("QUJD")


@pytest.mark.parametrize("value", ["", " \n", "@stage/a.png", 0, 1.5, True, [], {}])
def test_what_is_neither_is_invalid(value: object) -> None:
    assert isinstance(parse_source(value), InvalidSource)


@pytest.mark.parametrize("text", ["QUJD", "QUI=", "QQ==", "QU\r\nJD\n", " QUJD "])
def test_base64_is_decoded(text: str) -> None:
    assert Base64Text(text).decode(LIMITS) == base64.b64decode(text)


@pytest.mark.parametrize(
    "text", ["A", "QUJ", "QQ=", "QQ==QQ==", "QU*D", "QUJD=", "QÜJD", "\ud800", "QU-_", "Q" * 81]
)
def test_other_text_is_invalid_base64(text: str) -> None:
    with pytest.raises(InvalidBase64):
        Base64Text(text).decode(LIMITS)


@pytest.mark.parametrize("size", [99, 100])
def test_image_up_to_the_limit_is_decoded(size: int) -> None:
    assert len(Base64Text(base64.b64encode(bytes(size)).decode()).decode(LIMITS)) == size


def test_larger_image_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageTooLarge):
        Base64Text(base64.b64encode(bytes(110)).decode()).decode(LIMITS)
