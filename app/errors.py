"""The two failure channels, drawn first.

A row failure is a value, and the batch answers 200 (model.errors.InputError):
├── model.errors: unsupported_format, corrupt_image, image_too_large
├── InvalidSource       the row's source is neither a URL nor base64 text
├── InvalidBase64       the text does not decode
├── InvalidOptions      the row's options are not an object of known options
├── UrlNotAllowed       nothing is fetched from there
├── FetchFailed         the host answered with an error, or not at all
├── FetchTimeout        the host took too long
└── PredictionFailed    the network answered with something other than probabilities

A request failure is an exception, mapped once to a status (ServiceError). To Snowflake the status is an
instruction: 429 and 5xx mean "send again", other 4xx mean "the query fails".
├── MalformedBody           400  the body is not what its headers say
├── PayloadTooLarge         413  a limit on bytes or rows is exceeded
├── UnsupportedMediaType    415  none of the three forms of request
└── InvalidBatch            422  well-formed, but no batch of rows, no files, or an unknown query value
"""

from typing import ClassVar

from model.errors import InputError


class InvalidSource(InputError):
    code = "invalid_source"


class InvalidBase64(InputError):
    code = "invalid_base64"


class InvalidOptions(InputError):
    code = "invalid_options"


class UrlNotAllowed(InputError):
    code = "url_not_allowed"


class FetchFailed(InputError):
    code = "fetch_failed"


class FetchTimeout(InputError):
    code = "fetch_timeout"


class PredictionFailed(InputError):
    code = "prediction_failed"


class ServiceError(Exception):
    """A whole request that cannot be answered; `code` is stable, the message is for people."""

    status: ClassVar[int]
    code: ClassVar[str]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class MalformedBody(ServiceError):
    status = 400
    code = "malformed_body"


class PayloadTooLarge(ServiceError):
    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(ServiceError):
    status = 415
    code = "unsupported_media_type"


class InvalidBatch(ServiceError):
    status = 422
    code = "invalid_batch"
