"""HTTP requests of the client and of commands. An error is a value, because most callers retry."""

import ssl
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from ipaddress import ip_address
from socket import EAI_NONAME, gaierror
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError

TIMEOUT_SECONDS = 60.0
# More than the threads of a caller: above this number, urllib3 logs a warning for each connection.
_KEPT_CONNECTIONS = 1000
# The timeout applies to each piece of a body, because a large batch takes long over a slow connection.
_PIECE_BYTES = 64 * 1024
# What a request fails with if the server closes the connection before it responds.
_CLOSED = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, ssl.SSLEOFError)


@dataclass(frozen=True)
class Request:
    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    """Their names match in any case."""


@dataclass(frozen=True)
class NoReply:
    """No response; `is_final` if a retry cannot help: unknown host, untrusted certificate, invalid proxy."""

    reason: str
    is_final: bool = False
    is_closed: bool = False
    """Whether the server closed the connection."""
    status: None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Transport:
    """Connections to the host of `url`, which threads may share.

    They use the environment's proxy, except for this machine, and follow no redirects: a redirect must not
    forward the API key to another host.
    """

    def __init__(self, url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._url = url
        self._timeout = urllib3.Timeout(connect=timeout_seconds, read=timeout_seconds)
        self._connections = _connections(url, self._timeout)

    def send(self, request: Request) -> Reply | NoReply:
        """The response, also if the server rejects the body before it has read all of it.

        If the server closes the connection without a response, the request is repeated once over a new one: a
        server may close a kept-alive connection at the moment of its reuse.
        """
        reply = _send(self._connections, request)
        if isinstance(reply, NoReply) and reply.is_closed:
            new = _connections(self._url, self._timeout)
            reply = _send(new, request)
            _close(new)
        return reply

    def close(self) -> None:
        _close(self._connections)


def send_once(request: Request, timeout_seconds: float = TIMEOUT_SECONDS) -> Reply | NoReply:
    """Send one request over a connection of its own."""
    with closing(Transport(request.url, timeout_seconds)) as transport:
        return transport.send(request)


def is_loopback(url: str) -> bool:
    """Whether `url` points to this machine, which is reached without a proxy."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _connections(url: str, timeout: urllib3.Timeout) -> urllib3.PoolManager | NoReply:
    """Connections through the proxy, if one applies; NoReply if urllib3 does not accept the proxy's URL."""
    proxy = _proxy_for(url)
    options: Any = {"maxsize": _KEPT_CONNECTIONS, "timeout": timeout, "blocksize": _PIECE_BYTES}
    if proxy is None:
        return urllib3.PoolManager(**options)
    try:
        user = urllib3.util.parse_url(proxy).auth
        credentials = None if user is None else urllib3.make_headers(proxy_basic_auth=unquote(user))
        return urllib3.ProxyManager(proxy, proxy_headers=credentials, **options)
    except (HTTPError, ValueError):
        # The message leaves out the proxy's URL, which may hold a password.
        rule = f"{urlsplit(url).scheme}_proxy must be an http:// or https:// URL with a valid host and port"
        return NoReply(rule, is_final=True)


def _send(connections: urllib3.PoolManager | NoReply, request: Request) -> Reply | NoReply:
    if isinstance(connections, NoReply):
        return connections
    headers = dict(request.headers)
    if request.body is not None:
        headers["Content-Length"] = str(len(request.body))
    try:
        response = connections.request(
            request.method,
            request.url,
            body=None if request.body is None else BytesIO(request.body),
            headers=headers,
            retries=False,
            redirect=False,
        )
    except (HTTPError, OSError, ValueError) as error:
        cause = _cause_of(error)
        is_closed = isinstance(cause, _CLOSED)
        said = cause.strerror if isinstance(cause, OSError) else None  # without its errno
        reason = said or str(cause) or type(cause).__name__
        return NoReply(reason, _is_final(error, cause), is_closed)
    return Reply(response.status, response.data, response.headers)


def _close(connections: urllib3.PoolManager | NoReply) -> None:
    if not isinstance(connections, NoReply):
        connections.clear()


def _proxy_for(url: str) -> str | None:
    parts = urlsplit(url)
    if is_loopback(url) or proxy_bypass(parts.netloc):
        return None
    proxy = getproxies().get(parts.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _cause_of(error: BaseException) -> BaseException:
    """The error that urllib3 wraps, whose message is shorter."""
    wrapped = error.__cause__ or next((one for one in error.args if isinstance(one, Exception)), None)
    return error if wrapped is None else _cause_of(wrapped)


def _is_final(error: BaseException, cause: BaseException) -> bool:
    """Whether a retry would fail the same way: invalid URL, unknown host, untrusted certificate."""
    if isinstance(cause, gaierror):
        return cause.errno == EAI_NONAME
    return isinstance(error, ValueError) or isinstance(cause, ssl.SSLCertVerificationError)
