"""Explains the error responses of S3, Azure Blob Storage and Google Cloud Storage."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

from app.errors import AccessDenied, ClientSideEncrypted, FileMissing, UrlExpired
from model.errors import InputError

MAX_REFUSAL_BYTES = 4096
# A signed URL has about ten query parameters.
_MAX_PARAMETERS = 64

# Metadata that Snowflake's clients add to files they encrypt (SNOWFLAKE_FULL, a stage's default).
_ENCRYPTION_HEADERS = (
    "x-amz-meta-x-amz-key",
    "x-amz-meta-x-amz-iv",
    "x-ms-meta-encryptiondata",
    "x-goog-meta-encryptiondata",
)
_CODE = re.compile(rb"<Code>\s*(\w+)\s*</Code>")
_MISSING_CODES = frozenset({b"NoSuchKey", b"NoSuchBucket", b"BlobNotFound", b"ContainerNotFound"})
# Messages of S3, and of Azure for a signature and for a user delegation key.
_EXPIRED = re.compile(rb"Request has expired|Signature not valid in the specified (?:key )?time frame")


def refuse_encrypted(headers: Mapping[str, str]) -> None:
    """Raises ClientSideEncrypted if these case-insensitive response headers mark an encrypted file."""
    if any(headers.get(name) for name in _ENCRYPTION_HEADERS):
        raise ClientSideEncrypted(
            "A stage file must not be client-side encrypted. Received: an encrypted file; create the stage "
            "with ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE'), or pass the stage file's FILE_URL."
        )


def explain_refusal(status: int, query: str, body: bytes) -> InputError | None:
    """The error behind a status of 400 to 404, or None if a storage service gives no known reason.

    `query` is the URL's query string as sent, `body` the first MAX_REFUSAL_BYTES of the response.
    """
    code = _CODE.search(body)
    if status == 404 or (code and code[1] in _MISSING_CODES):
        return FileMissing(
            "A URL must point to an existing file. Received: not found; check the path, and run "
            "ALTER STAGE ... REFRESH if a directory table still lists it."
        )
    if (code and code[1] == b"ExpiredToken") or _EXPIRED.search(body) or _is_expired(query):
        return UrlExpired(
            "A signed URL must be valid when its image is fetched. Received: an expired URL; pass a "
            "new GET_PRESIGNED_URL(@stage, relative_path, seconds) with more seconds, or the stage file's "
            "FILE_URL."
        )
    if status in {401, 403}:
        return AccessDenied(
            f"The storage service must allow access to the URL. Received: {status}; pass a signed URL, "
            "unchanged, or change the storage's access policy. S3 also answers this for a missing file if "
            "the signer may not list the bucket."
        )
    return None


def _is_expired(query: str) -> bool:
    try:
        parameters = parse_qsl(query, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        return False
    expiry = _expiry({name.lower(): value for name, value in parameters})
    return expiry is not None and expiry <= datetime.now(UTC)


def _expiry(parameters: Mapping[str, str]) -> datetime | None:
    """When a signed URL expires: Signature Version 4 of S3 and Google, an Azure SAS, or Version 2."""
    try:
        for cloud in ("x-amz", "x-goog"):
            if f"{cloud}-date" in parameters:
                signed = datetime.strptime(parameters[f"{cloud}-date"], "%Y%m%dT%H%M%S%z")
                return signed + timedelta(seconds=int(parameters[f"{cloud}-expires"]))
        if "se" in parameters:
            end = datetime.fromisoformat(parameters["se"])
            return end if end.tzinfo else end.replace(tzinfo=UTC)
        return datetime.fromtimestamp(int(parameters["expires"]), UTC)
    except (KeyError, ValueError, OverflowError, OSError):  # unsigned, or an unknown format
        return None
