"""Checks of certificates and clocks, which other checks include."""

import socket
import ssl
import time
from email.utils import parsedate_to_datetime

from app.findings import Findings, check_clock

TIMEOUT_SECONDS = 10.0
EXPIRES_SOON_DAYS = 21


def check_certificate(findings: Findings, check: str, host: str, port: int) -> None:
    """Check expiry and trust. Raises OSError if the connection or the verification fails."""
    context = ssl.create_default_context()
    with (
        socket.create_connection((host, port), TIMEOUT_SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=host) as secured,
    ):
        certificate = secured.getpeercert() or {}
    days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86400
    if days < EXPIRES_SOON_DAYS:
        findings.note(check, f"the certificate expires in {days:.0f} days", "Renew the certificate.")
    else:
        findings.ok(check, "the certificate is trusted")


def check_date_header(findings: Findings, date_header: str | None, whose: str) -> None:
    """Compare this machine's clock with a Date header (RFC 9110, section 6.6.1), if it is valid."""
    try:
        their_seconds = parsedate_to_datetime(date_header or "").timestamp()
    except ValueError:
        return
    check_clock(findings, their_seconds, whose)
