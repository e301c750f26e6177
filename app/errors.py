"""The error families: errors of a row, which are values, and errors of a request, which are exceptions.

InputError (model.errors): one row cannot be classified. Its outcome carries the error, and the batch is
answered 200.
├── UnsupportedFormat, CorruptImage, ImageTooLarge   see model.errors
├── InvalidSource           the source is not a URL, a stage path, base64 or hex
├── InvalidBase64           the text is not valid base64
├── InvalidHex              the text is not valid hexadecimal
├── InvalidOptions          the row's options are not an object of known options
├── UrlNotAllowed           the URL is not on the allowlist
├── FileMissing             the storage service has no such file
├── UrlExpired              the signed URL has expired
├── AccessDenied            the storage service denies access to the URL
├── ClientSideEncrypted     the stage file is client-side encrypted
├── FetchFailed             the host answered with an error, or did not answer
├── FetchTimeout            the image did not arrive in time
├── ScopedUrlNotReadable    a scoped URL, which only the user who created it can read
├── WrongAccount            a stage file of another account
├── StageNotAllowed         the stage is not in the service's settings
├── StageNotAuthorized      the stage does not exist, or the service's role may not read it
├── SnowflakeNotConfigured  the service has no Snowflake account
├── SnowflakeLoginFailed    the service cannot log in to Snowflake
├── SnowflakeUnavailable    Snowflake does not answer in time
├── SnowflakeRefused        Snowflake rejects the statement
├── WarehouseUnavailable    no warehouse can run the statement
├── PredictionFailed        the network returned something other than probabilities
├── ClassifierDied          classifier processes crashed on this image
└── ClassifyTimeout         the image exceeds the CPU time limit

ServiceError: the whole request fails with an HTTP status. Snowflake retries on 429 and 5xx, and fails the
query on any other 4xx.
├── MalformedBody           400  the body contradicts its headers
├── Unauthorized            401  credentials are missing or invalid
├── BatchUnknown            404  a poll for a batch that is neither running nor cached
├── BodyTimeout             408  the body did not arrive in time
├── PayloadTooLarge         413  the body exceeds a limit on bytes, rows or files
├── AnswerTooLarge          413  the response exceeds Snowflake's limit
├── UnsupportedMediaType    415  not one of the three forms of request
├── Misdirected             421  the Host header names another host
├── InvalidBatch            422  valid JSON or multipart, but not rows or files, or an invalid query
├── Overloaded              429  the queue or the memory for bodies is full
├── IssuerUnavailable       503  the keys to verify tokens cannot be fetched
├── NoClassifier            503  no classifier process is ready
├── DeadlineExceeded        503  the request took too long
└── Stopped                 503  the service is shutting down
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from model.errors import InputError


class InvalidSource(InputError):
    code = "invalid_source"


class InvalidBase64(InputError):
    code = "invalid_base64"


class InvalidHex(InputError):
    code = "invalid_hex"


class InvalidOptions(InputError):
    code = "invalid_options"


class UrlNotAllowed(InputError):
    code = "url_not_allowed"


class FileMissing(InputError):
    code = "file_missing"


class UrlExpired(InputError):
    code = "url_expired"


class AccessDenied(InputError):
    code = "access_denied"


class ClientSideEncrypted(InputError):
    code = "client_side_encrypted"


class FetchFailed(InputError):
    code = "fetch_failed"


class FetchTimeout(InputError):
    code = "fetch_timeout"


class ScopedUrlNotReadable(InputError):
    code = "scoped_url_not_readable"


class WrongAccount(InputError):
    code = "wrong_account"


class StageNotAllowed(InputError):
    code = "stage_not_allowed"


class StageNotAuthorized(InputError):
    code = "stage_not_authorized"


class SnowflakeNotConfigured(InputError):
    code = "snowflake_not_configured"


class SnowflakeLoginFailed(InputError):
    code = "snowflake_login_failed"


class SnowflakeUnavailable(InputError):
    code = "snowflake_unavailable"


class SnowflakeRefused(InputError):
    code = "snowflake_refused"


class WarehouseUnavailable(InputError):
    code = "warehouse_unavailable"


class PredictionFailed(InputError):
    code = "prediction_failed"


class ClassifierDied(InputError):
    code = "classifier_died"


class ClassifyTimeout(InputError):
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
    status = 400
    code = "malformed_body"


class Unauthorized(ServiceError):
    """RFC 9110, section 15.5.2, requires WWW-Authenticate."""

    status = 401
    code = "unauthorized"
    headers = MappingProxyType({"www-authenticate": "Bearer"})


class BatchUnknown(ServiceError):
    status = 404
    code = "batch_unknown"


class BodyTimeout(ServiceError):
    """Closes the connection: the rest of the body would be parsed as a request."""

    status = 408
    code = "body_timeout"
    retryable = True
    headers = MappingProxyType({"connection": "close"})


class PayloadTooLarge(ServiceError):
    status = 413
    code = "payload_too_large"


class AnswerTooLarge(ServiceError):
    status = 413
    code = "answer_too_large"


class UnsupportedMediaType(ServiceError):
    status = 415
    code = "unsupported_media_type"


class Misdirected(ServiceError):
    """RFC 9110, section 15.5.20."""

    status = 421
    code = "misdirected"


class InvalidBatch(ServiceError):
    status = 422
    code = "invalid_batch"


class Overloaded(ServiceError):
    """`retry_after_seconds`: RFC 9110, section 10.2.3."""

    status = 429
    code = "overloaded"
    retryable = True

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.headers = MappingProxyType({"retry-after": str(retry_after_seconds)})


class IssuerUnavailable(ServiceError):
    status = 503
    code = "issuer_unavailable"
    retryable = True


class NoClassifier(ServiceError):
    status = 503
    code = "no_classifier"
    retryable = True
    headers = MappingProxyType({"retry-after": "5"})


class DeadlineExceeded(ServiceError):
    """Closes the connection: part of the request may be unread."""

    status = 503
    code = "deadline_exceeded"
    retryable = True
    headers = MappingProxyType({"connection": "close", "retry-after": "1"})


class Stopped(ServiceError):
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


class Incomplete(CommandError):
    """Part of the work failed. The exit code is 3, because argparse uses 2 for usage errors."""

    exit_code = 3
