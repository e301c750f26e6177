"""The error families: errors of a row, which are values, and errors of a request, which are exceptions.

InputError (model.errors): one row cannot be classified. Its outcome carries the error, and the batch is
answered 200.

ServiceError: the whole request fails with an HTTP status. Snowflake retries on 429 and 5xx, and fails the
query on any other 4xx.

The first line of each docstring is the meaning that infra/docs/reference/errors.md gives.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from model.errors import InputError


class InvalidSource(InputError, code="invalid_source"):
    """The source is not a string, is empty, or is a file URL or stage path that names no file."""


class InvalidBase64(InputError, code="invalid_base64"):
    """The text is not the base64 of RFC 4648, section 4."""


class InvalidHex(InputError, code="invalid_hex"):
    """The text begins like an image in hexadecimal, but does not continue so."""


class InvalidOptions(InputError, code="invalid_options"):
    """The row's third column must be `{"evidence": true}`, `{"evidence": false}` or NULL."""


class UrlNotAllowed(InputError, code="url_not_allowed"):
    """The service may not fetch from this scheme, host, port or address; see `ALLOWED_URL_HOSTS`."""


class FileMissing(InputError, code="file_missing"):
    """The store has no such file. A directory table may still list it: refresh the stage."""


class UrlExpired(InputError, code="url_expired"):
    """The signed URL has expired. Pass a new one, or the directory table's `file_url`."""


class AccessDenied(InputError, code="access_denied"):
    """The store denies access to the URL."""


class ClientSideEncrypted(InputError, code="client_side_encrypted"):
    """The stage lacks SNOWFLAKE_SSE, so a pre-signed URL leads to ciphertext. Pass its `file_url`."""


class FetchFailed(InputError, code="fetch_failed"):
    """The host answered with another status than 200, or not at all."""


class FetchTimeout(InputError, code="fetch_timeout"):
    """The image did not arrive within `FETCH_TIMEOUT_SECONDS`."""


class ScopedUrlNotReadable(InputError, code="scoped_url_not_readable"):
    """Only the user who created a scoped URL can read it. Pass `file_url`."""


class WrongAccount(InputError, code="wrong_account"):
    """The file URL belongs to another account than `SNOWFLAKE_ACCOUNT`."""


class StageNotAllowed(InputError, code="stage_not_allowed"):
    """`SNOWFLAKE_STAGES` does not list the stage, or it is the 17th stage of one batch."""


class StageNotAuthorized(InputError, code="stage_not_authorized"):
    """The stage does not exist, or the service's role lacks READ on it; Snowflake does not say which."""


class SnowflakeNotConfigured(InputError, code="snowflake_not_configured"):
    """The row names a staged file, and the service has no `SNOWFLAKE_ACCOUNT` to read stages from."""


class SnowflakeLoginFailed(InputError, code="snowflake_login_failed"):
    """Snowflake rejects the service's login."""


class SnowflakeUnavailable(InputError, code="snowflake_unavailable"):
    """Snowflake does not answer within `SNOWFLAKE_TIMEOUT_SECONDS`."""


class SnowflakeRefused(InputError, code="snowflake_refused"):
    """Snowflake rejects the statement that signs the URLs."""


class WarehouseUnavailable(InputError, code="warehouse_unavailable"):
    """The service's user has no warehouse, or its warehouse is suspended and does not resume."""


class PredictionFailed(InputError, code="prediction_failed"):
    """The network returned NaN or infinity."""


class ClassifierDied(InputError, code="classifier_died"):
    """Three classifier processes crashed while they handled this image."""


class ClassifyTimeout(InputError, code="classify_timeout"):
    """The image takes more CPU time than `MAX_IMAGE_CPU_SECONDS`."""


class ServiceError(Exception):
    """The whole request fails. `code` is stable and meant for programs, the message is meant for people."""

    status: ClassVar[int]
    code: ClassVar[str]
    retryable: ClassVar[bool] = False
    headers: Mapping[str, str] = MappingProxyType({})

    def __init_subclass__(cls, status: int | None = None, code: str | None = None) -> None:
        cls.status = cls.status if status is None else status
        cls.code = cls.code if code is None else code

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class MalformedBody(ServiceError, status=400, code="malformed_body"):
    """The body is not JSON, multipart or compressed as its headers say."""


class Unauthorized(ServiceError, status=401, code="unauthorized"):
    """Credentials are missing or invalid.

    RFC 9110, section 15.5.2, requires WWW-Authenticate.
    """

    headers = MappingProxyType({"www-authenticate": "Bearer"})


class BatchUnknown(ServiceError, status=404, code="batch_unknown"):
    """No batch with this id is running or cached."""


class BodyTimeout(ServiceError, status=408, code="body_timeout"):
    """The body did not arrive within `BODY_TIMEOUT_SECONDS`.

    Closes the connection: the rest of the body would be parsed as a request.
    """

    headers = MappingProxyType({"connection": "close"})


class PayloadTooLarge(ServiceError, status=413, code="payload_too_large"):
    """The body exceeds a limit on bytes, rows or files."""


class AnswerTooLarge(ServiceError, status=413, code="answer_too_large"):
    """The response exceeds 10 MB, Snowflake's limit, or 64 MB without a batch id. Lower MAX_BATCH_ROWS."""


class UnsupportedMediaType(ServiceError, status=415, code="unsupported_media_type"):
    """The Content-Type or Content-Encoding is not one of the three forms of request."""


class Misdirected(ServiceError, status=421, code="misdirected"):
    """The Host header names another host, which a service on loopback without AUTH rejects.

    RFC 9110, section 15.5.20.
    """


class InvalidBatch(ServiceError, status=422, code="invalid_batch"):
    """The JSON or multipart body is valid, but holds no rows or files, or the query is invalid."""


class Overloaded(ServiceError, status=429, code="overloaded"):
    """The queue, or the memory for bodies, is full.

    `retry_after_seconds`: RFC 9110, section 10.2.3.
    """

    retryable = True

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.headers = MappingProxyType({"retry-after": str(retry_after_seconds)})


class IssuerUnavailable(ServiceError, status=503, code="issuer_unavailable"):
    """The keys to verify tokens cannot be fetched from `JWT_JWKS_URL`."""

    retryable = True


class NoClassifier(ServiceError, status=503, code="no_classifier"):
    """No classifier process is ready."""

    retryable = True
    headers = MappingProxyType({"retry-after": "5"})


class DeadlineExceeded(ServiceError, status=503, code="deadline_exceeded"):
    """The request took longer than `REQUEST_TIMEOUT_SECONDS`.

    Closes the connection: part of the request may be unread.
    """

    retryable = True
    headers = MappingProxyType({"connection": "close", "retry-after": "1"})


class Stopped(ServiceError, status=503, code="stopped"):
    """The service is shutting down and cannot finish the request."""

    retryable = True
    headers = MappingProxyType({"connection": "close"})


class TracesUnavailable(OSError):
    """OpenTelemetry is not installed or not configured; the message says what to do."""


class ApiKeysUnreadable(OSError):
    """The file of API keys is unreadable or invalid; the message names the line."""


class CommandError(Exception):
    """The command failed; the message gives the reason in one line."""

    exit_code = 1


class UsageError(CommandError):
    """Arguments that the command does not accept. It prints its usage and exits with 2, as argparse does."""

    exit_code = 2


class Incomplete(CommandError):
    """Part of the work failed. The exit code is 3."""

    exit_code = 3
