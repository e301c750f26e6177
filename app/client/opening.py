"""How HTTP requests of this program's own leave it."""

import http.client
import ssl
import urllib.request
from contextlib import suppress
from socket import EAI_NONAME, gaierror
from typing import Any

from app.client.conversation import is_loopback


def opener_for(url: str) -> urllib.request.OpenerDirector:
    """By whatever proxy the environment names, but for this machine; it follows no redirect.

    A key must not follow one to somebody else: the redirect itself is the answer.
    """
    proxies = urllib.request.ProxyHandler({} if is_loopback(url) else None)
    return urllib.request.build_opener(proxies, _NoRedirects, _Handler, _SecureHandler)


def is_final(error: Exception) -> bool:
    """Whether it would be no different another time."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, gaierror):
        return reason.errno == EAI_NONAME
    return isinstance(reason, ssl.SSLCertVerificationError | http.client.InvalidURL | ValueError)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None follows none."""


class _HearingOut(http.client.HTTPConnection):
    """A server that refuses a body need not read it to its end: its answer is there all the same."""

    def send(self, data: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            super().send(data)


class _SecurelyHearingOut(_HearingOut, http.client.HTTPSConnection):
    pass


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HearingOut, request)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecurelyHearingOut, request)
