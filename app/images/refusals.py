"""What S3, Azure Blob Storage and Google Cloud Storage mean when they do not hand an image over."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

from app.errors import AccessDenied, ClientSideEncrypted, FileMissing, UrlExpired
from model.errors import InputError

MAX_REFUSAL_BYTES = 4096
# A signed URL has about ten.
_MAX_PARAMETERS = 64

# Written by Snowflake's clients beside what they encrypted (SNOWFLAKE_FULL, a stage's default).
_ENCRYPTION_HEADERS = (
    "x-amz-meta-x-amz-key",
    "x-amz-meta-x-amz-iv",
    "x-ms-meta-encryptiondata",
    "x-goog-meta-encryptiondata",
)
_CODE = re.compile(rb"<Code>\s*(\w+)\s*</Code>")
_MISSING_CODES = frozenset({b"NoSuchKey", b"NoSuchBucket", b"BlobNotFound", b"ContainerNotFound"})
# The word of S3, and of Azure on a signature and on a user delegation key.
_EXPIRED = re.compile(rb"Request has expired|Signature not valid in the specified (?:key )?time frame")


def refuse_encrypted(headers: Mapping[str, str]) -> None:
    """Raises ClientSideEncrypted if a storage says so in these headers, whose names ignore case."""
    if any(headers.get(name) for name in _ENCRYPTION_HEADERS):
        raise ClientSideEncrypted(
            "A stage file must not be encrypted by the client. Received: one that is; make the stage with "
            "ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE'), or pass the stage file's FILE_URL."
        )


def explain_refusal(status: int, query: str, body: bytes) -> InputError | None:
    """The error behind a status of 400 to 404, if a storage host means one.

    `query` is the URL's, as it was sent; `body` the first MAX_REFUSAL_BYTES of the answer.
    """
    code = _CODE.search(body)
    if status == 404 or (code and code[1] in _MISSING_CODES):
        return FileMissing(
            "A URL must lead to a file. Received: none there; check the path, and run "
            "ALTER STAGE ... REFRESH if a directory table still lists it."
        )
    if (code and code[1] == b"ExpiredToken") or _EXPIRED.search(body) or _is_over(query):
        return UrlExpired(
            "A signed URL must be valid when its image is fetched. Received: one whose time is over; pass a "
            "fresh GET_PRESIGNED_URL(@stage, relative_path, seconds) with more seconds, or the stage file's "
            "FILE_URL."
        )
    if status in {401, 403}:
        return AccessDenied(
            f"A URL must be one that its storage lets in. Received: {status}; pass a signed URL, "
            "unchanged, or have the storage's policy allow it. S3 says this of a missing file too, if the "
            "signer may not list the bucket."
        )
    return None


def _is_over(query: str) -> bool:
    try:
        parameters = parse_qsl(query, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        return False
    expiry = _expiry({name.lower(): value for name, value in parameters})
    return expiry is not None and expiry <= datetime.now(UTC)


def _expiry(parameters: Mapping[str, str]) -> datetime | None:
    """When a signed URL ends: Signature Version 4 of S3 and Google, a SAS of Azure, or Version 2."""
    try:
        for cloud in ("x-amz", "x-goog"):
            if f"{cloud}-date" in parameters:
                signed = datetime.strptime(parameters[f"{cloud}-date"], "%Y%m%dT%H%M%S%z")
                return signed + timedelta(seconds=int(parameters[f"{cloud}-expires"]))
        if "se" in parameters:
            end = datetime.fromisoformat(parameters["se"])
            return end if end.tzinfo else end.replace(tzinfo=UTC)
        return datetime.fromtimestamp(int(parameters["expires"]), UTC)
    except (KeyError, ValueError, OverflowError, OSError):  # not signed, or not in a form we know
        return None
