"""The two failure channels, drawn first.

A row failure is a value, and the batch answers 200 (model.errors.InputError):
├── model.errors: unsupported_format, corrupt_image, image_too_large
├── InvalidSource       the row's source names no image, in none of the ways there are
├── InvalidBase64       the text does not decode
├── InvalidHex          the same, of hexadecimal text
├── InvalidOptions      the row's options are not an object of known options
├── UrlNotAllowed       nothing is fetched from there
├── FileMissing         the storage has no such file
├── UrlExpired          the time of a signed URL is over
├── AccessDenied        the storage lets nobody in with this URL
├── ClientSideEncrypted the storage has ciphertext only
├── FetchFailed         the host answered with an error, or not at all
├── FetchTimeout        the host took too long
├── ScopedUrlNotReadable    a URL that only the user who made it can read
├── WrongAccount            a staged file of another account than the service's
├── StageNotAllowed         a stage that is not on the service's list
├── StageNotAuthorized      no such stage, or none that the service's role may read
├── SnowflakeNotConfigured  the service has no account to read stages from
├── SnowflakeLoginFailed    Snowflake does not let the service in
├── SnowflakeUnavailable    Snowflake does not answer, or not in time
├── SnowflakeRefused        Snowflake does not carry out the statement
├── WarehouseUnavailable    no warehouse runs the service's statement
├── PredictionFailed    the network answered with something other than probabilities
├── ClassifierDied      the process that classified the image died over it, and so did others
└── ClassifyTimeout     the image takes more time than any may

A request failure is an exception, mapped once to a status (ServiceError). To Snowflake the status is an
instruction: 429 and 5xx mean "send again", other 4xx mean "the query fails".
├── MalformedBody           400  the body is not what its headers say
├── PayloadTooLarge         413  a limit on bytes or rows is exceeded
├── AnswerTooLarge          413  Snowflake would not take the answer, for all the evidence in it
├── UnsupportedMediaType    415  none of the three forms of request
├── InvalidBatch            422  well-formed, but no batch of rows, no files, or an unknown query value
├── Unauthorized            401  whoever calls has not said who it is, or not so that it can be believed
├── BatchUnknown            404  asked for the answer to a batch that is neither running nor remembered
├── BodyTimeout             408  the body did not arrive in time
├── Overloaded              429  others fill the time or the memory that there is: send it again, later
├── IssuerUnavailable       503  the keys to verify tokens with cannot be read now
├── NoClassifier            503  no classifier process is ready: send it again, later
├── DeadlineExceeded        503  the request took longer than any may: send it again
└── Stopped                 503  the service ends before it could answer: send it again, elsewhere
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
    """A whole request that cannot be answered; `code` is stable, the message is for people."""

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


class PayloadTooLarge(ServiceError):
    status = 413
    code = "payload_too_large"


class AnswerTooLarge(ServiceError):
    status = 413
    code = "answer_too_large"


class UnsupportedMediaType(ServiceError):
    status = 415
    code = "unsupported_media_type"


class InvalidBatch(ServiceError):
    status = 422
    code = "invalid_batch"


class BatchUnknown(ServiceError):
    status = 404
    code = "batch_unknown"


class BodyTimeout(ServiceError):
    """The connection is of no more use: what is still to come of the body would be taken for a request."""

    status = 408
    code = "body_timeout"
    retryable = True
    headers = MappingProxyType({"connection": "close"})


class Overloaded(ServiceError):
    """`retry_after_seconds`: RFC 9110, section 10.2.3."""

    status = 429
    code = "overloaded"
    retryable = True

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.headers = MappingProxyType({"retry-after": str(retry_after_seconds)})


class Stopped(ServiceError):
    status = 503
    code = "stopped"
    retryable = True
    headers = MappingProxyType({"connection": "close"})


class Unauthorized(ServiceError):
    """RFC 9110, section 15.5.2: it must say how to do better."""

    status = 401
    code = "unauthorized"
    headers = MappingProxyType({"www-authenticate": "Bearer"})


class Misdirected(ServiceError):
    """RFC 9110, section 15.5.20: not for this service."""

    status = 421
    code = "misdirected"


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
    """The connection is closed, for a part of the request may not have been read."""

    status = 503
    code = "deadline_exceeded"
    retryable = True
    headers = MappingProxyType({"connection": "close", "retry-after": "1"})


class TracesUnavailable(OSError):
    """What sends traces is not installed, or set wrongly; the message says what to do."""


class ApiKeysUnreadable(OSError):
    """The file of API keys; the message says where it is wrong."""


class CommandError(Exception):
    """The command failed; the message gives the reason in one line."""

    exit_code = 1


class Incomplete(CommandError):
    """Part of the work failed. The exit code is 3, because argparse uses 2 for usage errors."""

    exit_code = 3
