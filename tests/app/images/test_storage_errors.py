import re
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest

from app.errors import AccessDenied, FileMissing, UrlExpired
from app.images.http import explain_refusal

# Error bodies of S3, Azure Blob Storage and Google Cloud Storage, with shortened identifiers.
S3_EXPIRED = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AccessDenied</Code><Message>Request has expired</Message><X-Amz-Expires>60</X-Amz-Expires>
<Expires>2026-01-01T00:01:00Z</Expires><ServerTime>2026-01-01T00:02:00Z</ServerTime></Error>"""
S3_TOKEN_EXPIRED = (
    b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)
S3_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
S3_CHANGED = (
    b"<Error><Code>SignatureDoesNotMatch</Code><Message>The request signature we calculated</Message></Error>"
)
S3_NO_KEY = b"<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>"
AZURE_EXPIRED = (
    b"\xef\xbb\xbf<Error><Code>AuthenticationFailed</Code><Message>Server failed to authenticate the request."
    b"</Message><AuthenticationErrorDetail>Signature not valid in the specified time frame: Start [Thu, 01"
    b" Jan 2026 00:00:00 GMT]</AuthenticationErrorDetail></Error>"
)
AZURE_KEY_EXPIRED = AZURE_EXPIRED.replace(b"time frame", b"key time frame")
AZURE_CHANGED = (
    b"<Error><Code>AuthenticationFailed</Code><AuthenticationErrorDetail>Signature did not match."
    b"</AuthenticationErrorDetail></Error>"
)
AZURE_NO_BLOB = b"<Error><Code>BlobNotFound</Code></Error>"
GOOGLE_EXPIRED = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>ExpiredToken</Code><Message>Invalid argument."
    b"</Message><Details>The provided token has expired.</Details></Error>"
)
GOOGLE_BAD = b"<Error><Code>InvalidArgument</Code><Message>Invalid argument.</Message></Error>"


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (403, S3_EXPIRED, UrlExpired),
        (400, S3_TOKEN_EXPIRED, UrlExpired),
        (403, S3_TOKEN_EXPIRED, UrlExpired),
        (403, AZURE_EXPIRED, UrlExpired),
        (403, AZURE_KEY_EXPIRED, UrlExpired),
        (400, GOOGLE_EXPIRED, UrlExpired),
        (403, S3_DENIED, AccessDenied),
        (403, S3_CHANGED, AccessDenied),
        (403, AZURE_CHANGED, AccessDenied),
        (401, b"", AccessDenied),
        (403, b"\xff\x00 no XML", AccessDenied),
        (404, b"", FileMissing),
        (404, S3_NO_KEY, FileMissing),
        (404, AZURE_NO_BLOB, FileMissing),
        (404, S3_EXPIRED, FileMissing),
        (400, S3_NO_KEY, FileMissing),
    ],
)
def test_storage_response_determines_the_error(status: int, body: bytes, error: type) -> None:
    assert type(explain_refusal(status, "", body)) is error


@pytest.mark.parametrize("body", [b"", GOOGLE_BAD])
def test_other_bad_request_is_not_explained(body: bytes) -> None:
    assert explain_refusal(400, "", body) is None


def signed(cloud: str, age: timedelta, life: timedelta) -> str:
    """The query of a URL that was signed `age` ago and is valid for `life`."""
    start = datetime.now(UTC) - age
    end = start + life
    compact, seconds = start.strftime("%Y%m%dT%H%M%SZ"), str(int(life.total_seconds()))
    return urlencode({
        "s3": {"X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Date": compact, "X-Amz-Expires": seconds},
        "s3 in lower case": {"x-amz-date": compact, "x-amz-expires": seconds},
        "s3 version 2": {"AWSAccessKeyId": "a", "Signature": "b", "Expires": str(int(end.timestamp()))},
        "google": {"X-Goog-Date": compact, "X-Goog-Expires": seconds, "X-Goog-Signature": "a"},
        "google version 2": {"GoogleAccessId": "a", "Expires": str(int(end.timestamp()))},
        "azure": {"sv": "2024-11-04", "se": end.strftime("%Y-%m-%dT%H:%M:%SZ"), "sig": "a"},
        "azure by the minute": {"se": end.strftime("%Y-%m-%dT%H:%MZ")},
        "azure by the day": {"se": end.strftime("%Y-%m-%d")},
    }[cloud])  # fmt: skip


CLOUDS = ["s3", "s3 in lower case", "s3 version 2", "google", "google version 2"]
CLOUDS += ["azure", "azure by the minute", "azure by the day"]


@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize("cloud", CLOUDS)
def test_expired_url_is_reported_as_expired(cloud: str, status: int) -> None:
    query = signed(cloud, age=timedelta(days=3), life=timedelta(days=1))
    assert isinstance(explain_refusal(status, query, b""), UrlExpired)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_valid_url_is_reported_as_denied(cloud: str) -> None:
    query = signed(cloud, age=timedelta(hours=1), life=timedelta(days=3))
    assert isinstance(explain_refusal(403, query, b""), AccessDenied)


def test_missing_file_takes_precedence_over_an_expired_url() -> None:
    query = signed("s3", age=timedelta(days=3), life=timedelta(days=1))
    assert isinstance(explain_refusal(404, query, b""), FileMissing)


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Date=20200101T000000Z",
        "X-Amz-Date=yesterday&X-Amz-Expires=60",
        "X-Amz-Date=20200101T000000Z&X-Amz-Expires=soon",
        "X-Amz-Date=20200101T000000Z&X-Amz-Expires=" + "9" * 30,
        "X-Amz-Date=20200101T000000Z&X-Amz-Expires=" + "9" * 5000,
        "Expires=never",
        "Expires=" + "9" * 18,
        "se=soon",
        "se=%ff",
        "Expires",
        "&&==",
    ],
)
def test_unreadable_expiry_is_not_reported_as_expired(query: str) -> None:
    assert isinstance(explain_refusal(403, query, b""), AccessDenied)


@pytest.mark.parametrize(
    ("status", "body", "fix"),
    [
        (404, b"", r"ALTER STAGE \.\.\. REFRESH"),
        (403, S3_EXPIRED, "GET_PRESIGNED_URL.*more seconds.*FILE_URL"),
        (403, S3_DENIED, "signed URL.*missing file"),
    ],
)
def test_message_has_the_fix_and_quotes_nothing_of_the_storage_response(
    status: int, body: bytes, fix: str
) -> None:
    error = explain_refusal(status, "X-Amz-Signature=secret", body)
    assert error is not None
    assert re.search(fix, error.message)
    assert "secret" not in error.message
    assert "<" not in error.message
    assert not error.retryable


def test_query_with_too_many_parameters_is_not_parsed() -> None:
    over = "X-Amz-Date=20200101T000000Z&X-Amz-Expires=60"
    assert isinstance(explain_refusal(403, f"{over}{'&a=' * 62}", b""), UrlExpired)
    assert isinstance(explain_refusal(403, f"{over}{'&a=' * 63}", b""), AccessDenied)
