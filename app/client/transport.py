"""HTTP requests of the client and of commands. An error is a value, because most callers retry."""

import ssl
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from ipaddress import ip_address
from socket import EAI_NONAME, gaierror
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError

TIMEOUT_SECONDS = 60.0
# Concurrent requests above this number open connections that are not kept alive.
_KEPT_CONNECTIONS = 16


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
    """No response; `is_final` if a retry cannot help: an unknown host, an untrusted certificate."""

    reason: str
    is_final: bool = False


class Transport:
    """Connections to the host of `url`, which threads may share.

    They use the environment's proxy, except for this machine, and follow no redirects: a redirect must not
    forward the API key to another host.
    """

    def __init__(self, url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        # Per connect and per read: a large batch takes long over a slow connection.
        timeout = urllib3.Timeout(connect=timeout_seconds, read=timeout_seconds)
        self._connections = _connections(_proxy_for(url), timeout)

    def send(self, request: Request) -> Reply | NoReply:
        """The response, also if the server rejects the body before it has read all of it."""
        try:
            response = self._connections.request(
                request.method,
                request.url,
                body=request.body,
                headers=dict(request.headers),
                retries=False,
                redirect=False,
            )
        except (HTTPError, OSError, ValueError) as error:
            cause = _cause_of(error)
            return NoReply(str(cause) or type(cause).__name__, _is_final(error, cause))
        return Reply(response.status, response.data, response.headers)

    def close(self) -> None:
        self._connections.clear()


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


def _connections(proxy: str | None, timeout: urllib3.Timeout) -> urllib3.PoolManager:
    if proxy is None:
        return urllib3.PoolManager(maxsize=_KEPT_CONNECTIONS, timeout=timeout)
    user = urllib3.util.parse_url(proxy).auth
    credentials = None if user is None else urllib3.make_headers(proxy_basic_auth=unquote(user))
    return urllib3.ProxyManager(proxy, maxsize=_KEPT_CONNECTIONS, timeout=timeout, proxy_headers=credentials)


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
