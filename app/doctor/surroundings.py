"""What the service leans on outside Snowflake: Redis, the issuer of tokens, the hosts of images."""

import asyncio
import importlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http.client import HTTPException

from app.client.opening import opener_for
from app.doctor.finding import Findings
from app.errors import UrlNotAllowed
from app.images.allowlist import HTTPS_PORT, Allowlist
from app.settings import Settings

TIMEOUT_SECONDS = 10.0
# Tokens and signed URLs are not valid yet, or no longer, for a clock that is wrong by minutes.
MOST_SKEW_SECONDS = 30.0
SOON_DAYS = 21


def check_redis(findings: Findings, settings: Settings) -> None:
    if settings.redis_url is None:
        return
    advice = "Until it answers, each instance remembers for itself."
    ping = importlib.import_module("app.redis_store").ping  # whoever has none need not wait for it
    with findings.expecting("Redis", advice, OSError, ValueError):
        seconds = asyncio.run(ping(settings.redis_url.get_secret_value()))
        findings.ok("Redis", f"it answers in {seconds * 1000:.0f} ms")


def check_issuer(findings: Findings, settings: Settings) -> None:
    url = settings.jwt_jwks_url
    if "jwt" not in settings.auth or url is None:
        return
    advice = "JWT_JWKS_URL is where the issuer has its keys; nobody is let in without them."
    faults = (OSError, HTTPException, ValueError, KeyError, TypeError)
    with findings.expecting("issuer of tokens", advice, *faults):
        with opener_for(url).open(url, timeout=TIMEOUT_SECONDS) as response:
            keys = json.load(response)["keys"]
            said_at = response.headers.get("Date")
        findings.ok("issuer of tokens", f"it has {len(keys)} keys")
        check_clock(findings, said_at, "the issuer's")


def check_hosts(findings: Findings, settings: Settings) -> None:
    """Those of ALLOWED_URL_HOSTS that are one host each."""
    allowlist = Allowlist(settings.allowed_url_hosts, settings.allow_private_addresses)
    for pattern in settings.allowed_url_hosts:
        host, _, port = str(pattern).partition("/")[0].partition(":")
        if host.startswith("."):
            findings.skipped("host of images", f"{pattern} stands for many hosts")
            continue
        check = f"host of images {host}"
        advice = "Is the name right, and does this machine's network let it be reached?"
        private = "EXT_CLASSIFY_ALLOW_PRIVATE_ADDRESSES=true, if this is a store of your own."
        with (
            findings.expecting(check, advice, OSError, ValueError),
            findings.expecting(check, private, UrlNotAllowed),
        ):
            for address in _addresses(host, int(port or HTTPS_PORT)):
                allowlist.check_address(address)
            check_certificate(findings, check, host, int(port or HTTPS_PORT))


def check_certificate(findings: Findings, check: str, host: str, port: int) -> None:
    """Raises OSError where there is no connection, or no trust."""
    context = ssl.create_default_context()
    with (
        socket.create_connection((host, port), TIMEOUT_SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=host) as secured,
    ):
        certificate = secured.getpeercert() or {}
    ends_at = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (ends_at - time.time()) / 86400
    if days < SOON_DAYS:
        findings.note(check, f"Its certificate ends in {days:.0f} days.", "Whoever runs it is to renew it.")
    else:
        findings.ok(check, "it answers, by a certificate that this machine trusts")


def check_clock(findings: Findings, said_at: str | None, whose: str) -> None:
    """By the Date of an answer (RFC 9110, section 6.6.1)."""
    if said_at is None:
        return
    try:
        judge_clock(findings, parsedate_to_datetime(said_at).timestamp(), whose)
    except ValueError:
        return


def judge_clock(findings: Findings, their_seconds: float, whose: str) -> None:
    """`their_seconds` since 1970, just now."""
    skew_seconds = time.time() - their_seconds
    said = f"{abs(skew_seconds):.0f} s {'ahead of' if skew_seconds > 0 else 'behind'} {whose}"
    if abs(skew_seconds) > MOST_SKEW_SECONDS:
        findings.wrong(
            "clock", f"This machine's clock is {said}.", "Let it keep time (NTP): logins and URLs fail."
        )
    else:
        findings.ok("clock", said)


def _addresses(host: str, port: int) -> Iterator[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return (str(address[0]) for *_, address in found)
