"""Check that a gateway reaches the service: send a NULL row as Snowflake does."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException
from urllib.parse import urlsplit

from app.cli.doctor.finding import Findings
from app.cli.doctor.surroundings import TIMEOUT_SECONDS, check_certificate, check_clock
from app.client import ClientError
from app.client.blocking import opener_for
from app.client.conversation import Service
from app.images.allowlist import HTTPS_PORT

# The service answers NULL with NULL, without fetching or classifying anything.
_ROW = {"data": [[0, None]]}
_UNREACHED = "Check the host name, and that this machine's network allows the connection."
_REFUSED = (
    "Expected: the gateway admits only Snowflake's API integration, and this machine is another caller."
)


def check_gateway(findings: Findings, url: str, api_key: str | None) -> None:
    try:
        service = Service(url, api_key, patience_seconds=0)
    except ClientError as error:
        findings.wrong(
            "gateway", str(error), "Pass the URL that the external function calls. It ends in /classify."
        )
        return
    parts = urlsplit(url)
    if parts.scheme == "http":
        findings.note(
            "gateway", "Snowflake only calls https URLs.", "Set up a TLS certificate on the gateway."
        )
    elif not _has_certificate(findings, str(parts.hostname), parts.port or HTTPS_PORT):
        return
    with findings.expecting("gateway", _UNREACHED, OSError, HTTPException, ValueError):
        status, body, date_header = _post_null_row(url, service.credentials)
        check_clock(findings, date_header, "the gateway's")
        _add_result(findings, status, body, has_key=api_key is not None)


def _has_certificate(findings: Findings, host: str, port: int) -> bool:
    check = "gateway's certificate"
    with findings.expecting(check, _UNREACHED, OSError, ValueError):
        check_certificate(findings, check, host, port)
    return findings[-1].state != "wrong"


def _post_null_row(url: str, credentials: Mapping[str, str]) -> tuple[int, bytes, str | None]:
    """POST the NULL row. Return status, body and Date header. Raises OSError, HTTPException or ValueError."""
    headers = {"Content-Type": "application/json", **credentials}
    request = urllib.request.Request(url, json.dumps(_ROW).encode(), headers)  # noqa: S310 - http or https
    try:
        with opener_for(url).open(request, timeout=TIMEOUT_SECONDS) as response:
            return response.status, response.read(), response.headers.get("Date")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers.get("Date")


def _add_result(findings: Findings, status: int, body: bytes, *, has_key: bool) -> None:
    said = body[:200].decode(errors="replace").strip()
    if status == HTTPStatus.OK and _is_answer(body):
        findings.ok("gateway", "the gateway reaches the service, which answers a batch")
    elif status == HTTPStatus.OK:
        findings.wrong(
            "gateway", f"unexpected answer: {said}", "Check that the gateway forwards to /classify."
        )
    elif status == HTTPStatus.UNAUTHORIZED:
        key = "API key rejected" if has_key else "API key or token required"
        findings.note("gateway", f"401, {key}: {said}", "Pass a valid key with --api-key-file FILE.")
    elif status == HTTPStatus.FORBIDDEN:
        findings.note("gateway", f"403: {said}", _REFUSED)
    elif status // 100 == 3:
        findings.wrong("gateway", f"{status}: the gateway redirects", "Snowflake does not follow redirects.")
    elif status == HTTPStatus.NOT_FOUND:
        findings.wrong(
            "gateway",
            f"404: {said}",
            "Check that the URL contains the gateway's stage and ends in /classify.",
        )
    else:
        advice = "Check that the service runs, and that its network admits the gateway."
        findings.wrong("gateway", f"{status}: {said}", advice)


def _is_answer(body: bytes) -> bool:
    try:
        return bool(json.loads(body) == _ROW)
    except ValueError:
        return False
