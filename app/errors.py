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


class InvalidSource(InputError):
    """The source is not a string, is empty, or is a file URL or stage path that names no file."""

    code = "invalid_source"


class InvalidBase64(InputError):
    """The text is not the base64 of RFC 4648, section 4."""

    code = "invalid_base64"


class InvalidHex(InputError):
    """The text begins like an image in hexadecimal, but does not continue so."""

    code = "invalid_hex"


class InvalidOptions(InputError):
    """The row's third column must be `{"evidence": true}`, `{"evidence": false}` or NULL."""

    code = "invalid_options"


class UrlNotAllowed(InputError):
    """The service may not fetch from this scheme, host, port or address; see `ALLOWED_URL_HOSTS`."""

    code = "url_not_allowed"


class FileMissing(InputError):
    """The store has no such file. A directory table may still list it: refresh the stage."""

    code = "file_missing"


class UrlExpired(InputError):
    """The signed URL has expired. Pass a new one, or the directory table's `file_url`."""

    code = "url_expired"


class AccessDenied(InputError):
    """The store denies access to the URL."""

    code = "access_denied"


class ClientSideEncrypted(InputError):
    """The stage lacks SNOWFLAKE_SSE, so a pre-signed URL leads to ciphertext. Pass its `file_url`."""

    code = "client_side_encrypted"


class FetchFailed(InputError):
    """The host answered with another status than 200, or not at all."""

    code = "fetch_failed"


class FetchTimeout(InputError):
    """The image did not arrive within `FETCH_TIMEOUT_SECONDS`."""

    code = "fetch_timeout"


class ScopedUrlNotReadable(InputError):
    """Only the user who created a scoped URL can read it. Pass `file_url`."""

    code = "scoped_url_not_readable"


class WrongAccount(InputError):
    """The file URL belongs to another account than `SNOWFLAKE_ACCOUNT`."""

    code = "wrong_account"


class StageNotAllowed(InputError):
    """`SNOWFLAKE_STAGES` does not list the stage, or it is the 17th stage of one batch."""

    code = "stage_not_allowed"


class StageNotAuthorized(InputError):
    """The stage does not exist, or the service's role lacks READ on it; Snowflake does not say which."""

    code = "stage_not_authorized"


class SnowflakeNotConfigured(InputError):
    """The row names a staged file, and the service has no `SNOWFLAKE_ACCOUNT` to read stages from."""

    code = "snowflake_not_configured"


class SnowflakeLoginFailed(InputError):
    """Snowflake rejects the service's login."""

    code = "snowflake_login_failed"


class SnowflakeUnavailable(InputError):
    """Snowflake does not answer within `SNOWFLAKE_TIMEOUT_SECONDS`."""

    code = "snowflake_unavailable"


class SnowflakeRefused(InputError):
    """Snowflake rejects the statement that signs the URLs."""

    code = "snowflake_refused"


class WarehouseUnavailable(InputError):
    """The service's user has no warehouse, or its warehouse is suspended and does not resume."""

    code = "warehouse_unavailable"


class PredictionFailed(InputError):
    """The network returned NaN or infinity."""

    code = "prediction_failed"


class ClassifierDied(InputError):
    """Three classifier processes crashed while they handled this image."""

    code = "classifier_died"


class ClassifyTimeout(InputError):
    """The image takes more CPU time than `MAX_IMAGE_CPU_SECONDS`."""

    code = "classify_timeout"


class ServiceError(Exception):
    """The whole request fails. `code` is stable and meant for programs, the message is meant for people."""

    status: ClassVar[int]
    code: ClassVar[str]
    retryable: ClassVar[bool] = False
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class MalformedBody(ServiceError):
    """The body is not JSON, multipart or compressed as its headers say."""

    status = 400
    code = "malformed_body"


class Unauthorized(ServiceError):
    """Credentials are missing or invalid.

    RFC 9110, section 15.5.2, requires WWW-Authenticate.
    """

    status = 401
    code = "unauthorized"
    headers = MappingProxyType({"www-authenticate": "Bearer"})


class BatchUnknown(ServiceError):
    """No batch with this id is running or cached."""

    status = 404
    code = "batch_unknown"


class BodyTimeout(ServiceError):
    """The body did not arrive within `BODY_TIMEOUT_SECONDS`.

    Closes the connection: the rest of the body would be parsed as a request.
    """

    status = 408
    code = "body_timeout"
    headers = MappingProxyType({"connection": "close"})


class PayloadTooLarge(ServiceError):
    """The body exceeds a limit on bytes, rows or files."""

    status = 413
    code = "payload_too_large"


class AnswerTooLarge(ServiceError):
    """The response exceeds 10 MB, Snowflake's limit, or 64 MB without a batch id. Lower MAX_BATCH_ROWS."""

    status = 413
    code = "answer_too_large"


class UnsupportedMediaType(ServiceError):
    """The Content-Type or Content-Encoding is not one of the three forms of request."""

    status = 415
    code = "unsupported_media_type"


class Misdirected(ServiceError):
    """The Host header names another host, which a service on loopback without AUTH rejects.

    RFC 9110, section 15.5.20.
    """

    status = 421
    code = "misdirected"


class InvalidBatch(ServiceError):
    """The JSON or multipart body is valid, but holds no rows or files, or the query is invalid."""

    status = 422
    code = "invalid_batch"


class Overloaded(ServiceError):
    """The queue, or the memory for bodies, is full.

    `retry_after_seconds`: RFC 9110, section 10.2.3.
    """

    status = 429
    code = "overloaded"
    retryable = True

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.headers = MappingProxyType({"retry-after": str(retry_after_seconds)})


class IssuerUnavailable(ServiceError):
    """The keys to verify tokens cannot be fetched from `JWT_JWKS_URL`."""

    status = 503
    code = "issuer_unavailable"
    retryable = True


class NoClassifier(ServiceError):
    """No classifier process is ready."""

    status = 503
    code = "no_classifier"
    retryable = True
    headers = MappingProxyType({"retry-after": "5"})


class DeadlineExceeded(ServiceError):
    """The request took longer than `REQUEST_TIMEOUT_SECONDS`.

    Closes the connection: part of the request may be unread.
    """

    status = 503
    code = "deadline_exceeded"
    retryable = True
    headers = MappingProxyType({"connection": "close", "retry-after": "1"})


class Stopped(ServiceError):
    """The service is shutting down and cannot finish the request."""

    status = 503
    code = "stopped"
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
