"""The head of an HTTP/1.1 request (RFC 9112, section 2 to 6), parsed by llhttp."""

from urllib.parse import unquote

import httptools

from app.server.request_body import BodyFraming, ChunkedBody, LengthBody
from app.server.request_errors import (
    BadRequest,
    HeadTooLarge,
    TargetTooLong,
    UnknownTransferCoding,
    UnsupportedVersion,
)

# A gateway sends a few kilobytes; Snowflake's context headers are at most eight, encoded twice.
MAX_HEAD_BYTES = 64 * 1024
# A signed S3 URL has about 2 kB, and none is ever the target of a request to this service.
MAX_TARGET_BYTES = 8 * 1024
# Every header lookup scans the list.
MAX_HEADERS = 256

# RFC 3986, section 3.2.2, with an optional port.
_HOST_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()*+,;=:[]"


class RequestHead:
    """A request line and header fields, fed piece by piece."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        """Names in lower case."""
        self.method = ""
        self.http_version = "1.1"
        self.keep_alive = False
        self.is_complete = False
        self._line = b""
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        """Parse the next piece of the head, which must not reach beyond its end. Raises BadRequest."""
        if self._parser is None:
            return
        if b"\n" not in self._line:
            self._line += data.partition(b"\n")[0] + (b"\n" if b"\n" in data else b"")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # RFC 9110, section 7.8: a server may ignore Upgrade
        except httptools.HttpParserError as error:
            self.drop()
            if len(self.headers) == MAX_HEADERS:
                raise HeadTooLarge(
                    f"A request must have at most {MAX_HEADERS} headers. Received: more."
                ) from None
            reason = str(error) if type(error) is httptools.HttpParserError else "an invalid target"
            raise BadRequest(f"A request must be HTTP/1.1 (RFC 9112). Received: {reason}.") from None

    def finish(self) -> None:
        """Check the whole head. Raises BadRequest."""
        self.drop()
        if not self.is_complete:
            raise BadRequest("A request must be HTTP/1.1 (RFC 9112). Received: no end of its headers.")
        if len(self.target) > MAX_TARGET_BYTES:
            raise TargetTooLong(
                f"A request's target must have at most {MAX_TARGET_BYTES} bytes. "
                f"Received: {len(self.target)}."
            )
        if not self._line.endswith((b" HTTP/1.1\r\n", b" HTTP/1.0\r\n")):
            raise UnsupportedVersion("A request must be HTTP/1.1 or HTTP/1.0.")
        self._check_host()

    def drop(self) -> None:
        """Let the parser go, which refers to this head: only the garbage collector would free both."""
        self._parser = None

    def body(self) -> "BodyFraming | None":
        """How the body is framed; None if there is none. Raises BadRequest (RFC 9112, section 6)."""
        lengths = [value for name, value in self.headers if name == b"content-length"]
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings:
            if lengths:
                raise BadRequest(
                    "A request must not have both Content-Length and Transfer-Encoding (RFC 9112, 6.1)."
                )
            if self.http_version != "1.1":
                raise BadRequest("An HTTP/1.0 request must not have a Transfer-Encoding.")
            if [coding.lower() for coding in codings] != [b"chunked"]:
                raise UnknownTransferCoding("A request's Transfer-Encoding must be chunked.")
            return ChunkedBody()
        # llhttp has refused all but one field of decimal digits below 2**64; zeros before them are free.
        length = int(lengths[0].lstrip(b"0") or b"0") if lengths else 0
        return LengthBody(length) if length else None

    def path_and_query(self) -> tuple[str, bytes, bytes]:
        """The decoded path, the path as sent, and the query. Raises BadRequest."""
        try:
            url = httptools.parse_url(self.target)
            raw_path: bytes = url.path or b"/"
            path = raw_path.decode("ascii")
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            raise BadRequest(
                "A request's target must be a path or an http URL (RFC 9112, section 3.2)."
            ) from None
        return unquote(path) if "%" in path else path, raw_path, url.query or b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) == MAX_HEADERS:
            raise HeadTooLarge("too many headers")  # ends the parser, which reports its own error
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is not None:
            self.method = parser.get_method().decode("ascii")
            self.http_version = parser.get_http_version()
            self.keep_alive = self.http_version != "1.0" and parser.should_keep_alive()
            self.is_complete = True

    def _check_host(self) -> None:
        """RFC 9112, section 3.2: exactly one, or none before HTTP/1.1. Proxies may route by either of two."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) != 1 and not (not hosts and self.http_version == "1.0"):
            raise BadRequest(f"A request must have one Host header (RFC 9112). Received: {len(hosts)}.")
        if hosts and hosts[0].translate(None, _HOST_BYTES):
            raise BadRequest("A Host must be a host name or address, with an optional port.")
