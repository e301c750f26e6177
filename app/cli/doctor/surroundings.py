"""Check the services outside Snowflake that this one needs: Redis, the token issuer, image hosts."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http.client import HTTPException

from app.cli.doctor.finding import Findings
from app.client.blocking import opener_for
from app.errors import UrlNotAllowed
from app.images.allowlist import HTTPS_PORT, Allowlist
from app.settings import Settings

TIMEOUT_SECONDS = 10.0
# With a larger skew, tokens and signed URLs are not valid yet, or have expired.
MOST_SKEW_SECONDS = 30.0
SOON_DAYS = 21


def check_redis(findings: Findings, settings: Settings) -> None:
    if settings.redis_url is None:
        return
    advice = "Until Redis answers, each instance caches outcomes in its own memory."
    from app.batches.redis_store import ping  # noqa: PLC0415 - Redis is optional

    with findings.expecting("Redis", advice, OSError, ValueError):
        seconds = asyncio.run(ping(settings.redis_url.get_secret_value()))
        findings.ok("Redis", f"answers in {seconds * 1000:.0f} ms")


def check_issuer(findings: Findings, settings: Settings) -> None:
    url = settings.jwt_jwks_url
    if "jwt" not in settings.auth or url is None:
        return
    advice = "JWT_JWKS_URL must serve the issuer's keys; without them, the service rejects every token."
    faults = (OSError, HTTPException, ValueError, KeyError, TypeError)
    with findings.expecting("issuer of tokens", advice, *faults):
        with opener_for(url).open(url, timeout=TIMEOUT_SECONDS) as response:
            keys = json.load(response)["keys"]
            date_header = response.headers.get("Date")
        findings.ok("issuer of tokens", f"{len(keys)} keys")
        check_clock(findings, date_header, "the issuer's")


def check_hosts(findings: Findings, settings: Settings) -> None:
    """Check the entries of ALLOWED_URL_HOSTS that name a single host."""
    allowlist = Allowlist(settings.allowed_url_hosts, settings.allow_private_addresses)
    for pattern in settings.allowed_url_hosts:
        host, _, port = str(pattern).partition("/")[0].partition(":")
        if host.startswith("."):
            findings.skipped("host of images", f"{pattern} matches many hosts")
            continue
        check = f"host of images {host}"
        advice = "Check the host name, and that this machine's network allows the connection."
        private = "Set EXT_CLASSIFY_ALLOW_PRIVATE_ADDRESSES=true if this is your own object store."
        with (
            findings.expecting(check, advice, OSError, ValueError),
            findings.expecting(check, private, UrlNotAllowed),
        ):
            for address in _addresses(host, int(port or HTTPS_PORT)):
                allowlist.check_address(address)
            check_certificate(findings, check, host, int(port or HTTPS_PORT))


def check_certificate(findings: Findings, check: str, host: str, port: int) -> None:
    """Check expiry and trust. Raises OSError if the connection or the verification fails."""
    context = ssl.create_default_context()
    with (
        socket.create_connection((host, port), TIMEOUT_SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=host) as secured,
    ):
        certificate = secured.getpeercert() or {}
    ends_at = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (ends_at - time.time()) / 86400
    if days < SOON_DAYS:
        findings.note(check, f"certificate expires in {days:.0f} days", "Renew the certificate.")
    else:
        findings.ok(check, "answers with a trusted certificate")


def check_clock(findings: Findings, date_header: str | None, whose: str) -> None:
    """Compare this machine's clock with a Date header (RFC 9110, section 6.6.1)."""
    if date_header is None:
        return
    try:
        judge_clock(findings, parsedate_to_datetime(date_header).timestamp(), whose)
    except ValueError:
        return


def judge_clock(findings: Findings, their_seconds: float, whose: str) -> None:
    """Compare this machine's clock with `their_seconds`, the other clock's time since 1970."""
    skew_seconds = time.time() - their_seconds
    said = f"{abs(skew_seconds):.0f} s {'ahead of' if skew_seconds > 0 else 'behind'} {whose}"
    if abs(skew_seconds) > MOST_SKEW_SECONDS:
        findings.wrong(
            "clock",
            f"this machine's clock is {said}",
            "Synchronise it with NTP: logins and signed URLs fail.",
        )
    else:
        findings.ok("clock", said)


def _addresses(host: str, port: int) -> Iterator[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return (str(address[0]) for *_, address in found)
