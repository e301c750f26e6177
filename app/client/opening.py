"""How the blocking client sends HTTP: proxies, redirects, responses before the end of the request."""

import http.client
import ssl
import urllib.request
from contextlib import suppress
from socket import EAI_NONAME, gaierror
from typing import Any

from app.client.conversation import is_loopback


def opener_for(url: str) -> urllib.request.OpenerDirector:
    """An opener that uses the environment's proxy, except for this machine, and follows no redirects.

    A redirect must not forward the API key to another host: the caller gets the redirect as the response.
    """
    proxies = urllib.request.ProxyHandler({} if is_loopback(url) else None)
    return urllib.request.build_opener(proxies, _NoRedirects, _Handler, _SecureHandler)


def is_final(error: Exception) -> bool:
    """Whether a retry would fail the same way."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, gaierror):
        return reason.errno == EAI_NONAME
    return isinstance(reason, ssl.SSLCertVerificationError | http.client.InvalidURL | ValueError)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Return None, so that urllib raises the redirect as an HTTPError."""


class _EarlyResponseConnection(http.client.HTTPConnection):
    """Reads the response even if the server rejects the body and closes before it has read all of it."""

    def send(self, data: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            super().send(data)


class _EarlyResponseHTTPSConnection(_EarlyResponseConnection, http.client.HTTPSConnection):
    pass


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_EarlyResponseConnection, request)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_EarlyResponseHTTPSConnection, request)
