"""What is wrong with a request before the application sees it; the connection answers and closes."""


class BadRequest(Exception):
    """A request that cannot be framed; the connection is of no further use."""

    status = 400
    code = "malformed_request"
    retryable = False
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class HeadTooLarge(BadRequest):
    status = 431
    code = "head_too_large"


class TrailersTooLarge(BadRequest):
    status = 431
    code = "trailers_too_large"


class TargetTooLong(BadRequest):
    status = 414
    code = "uri_too_long"


class FramingTooLarge(BadRequest):
    status = 413
    code = "payload_too_large"


class UnknownTransferCoding(BadRequest):
    """RFC 9112, section 6.1."""

    status = 501
    code = "unknown_transfer_coding"


class UnsupportedVersion(BadRequest):
    status = 505
    code = "http_version_not_supported"


class HeadTimeout(BadRequest):
    status = 408
    code = "head_timeout"


class ConnectionOverload(BadRequest):
    status = 503
    code = "overloaded"
    retryable = True
    headers = ((b"retry-after", b"1"),)
