"""Whether a gateway leads to the service, asked as Snowflake asks, with a row that costs nothing."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException
from urllib.parse import urlsplit

from app.client import ClientError
from app.client.conversation import Service
from app.client.opening import opener_for
from app.doctor.finding import Findings
from app.doctor.surroundings import TIMEOUT_SECONDS, check_certificate, check_clock
from app.images.allowlist import HTTPS_PORT

# NULL in, NULL out: nothing is fetched or classified.
_ROW = {"data": [[0, None]]}
_UNREACHED = "Is the name right, and does this machine's network let it be reached?"
_REFUSED = (
    "It lets in whoever Snowflake's integration names, and this machine is somebody else: as it should be."
)


def check_gateway(findings: Findings, url: str, api_key: str | None) -> None:
    try:
        service = Service(url, api_key, patience_seconds=0)
    except ClientError as error:
        findings.wrong("gateway", str(error), "It is the one that the function calls, to its /classify.")
        return
    parts = urlsplit(url)
    if parts.scheme == "http":
        findings.note("gateway", "Snowflake calls https only.", "Give it a certificate.")
    elif not _has_certificate(findings, str(parts.hostname), parts.port or HTTPS_PORT):
        return
    with findings.expecting("gateway", _UNREACHED, OSError, HTTPException, ValueError):
        status, body, said_at = _ask(url, service.credentials)
        check_clock(findings, said_at, "the gateway's")
        _judge(findings, status, body, has_key=api_key is not None)


def _has_certificate(findings: Findings, host: str, port: int) -> bool:
    check = "gateway's certificate"
    with findings.expecting(
        check, "Is the name right, and can it be reached from here?", OSError, ValueError
    ):
        check_certificate(findings, check, host, port)
    return findings[-1].state != "wrong"


def _ask(url: str, credentials: Mapping[str, str]) -> tuple[int, bytes, str | None]:
    """Status, body and Date. Raises OSError, HTTPException or ValueError."""
    headers = {"Content-Type": "application/json", **credentials}
    request = urllib.request.Request(url, json.dumps(_ROW).encode(), headers)  # noqa: S310 - it is http
    try:
        with opener_for(url).open(request, timeout=TIMEOUT_SECONDS) as response:
            return response.status, response.read(), response.headers.get("Date")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers.get("Date")


def _judge(findings: Findings, status: int, body: bytes, *, has_key: bool) -> None:
    said = body[:200].decode(errors="replace").strip()
    if status == HTTPStatus.OK and _is_answer(body):
        findings.ok("gateway", "it leads to the service, which answers a batch")
    elif status == HTTPStatus.OK:
        findings.wrong("gateway", f"It answers with something else: {said}", "Does it lead to /classify?")
    elif status == HTTPStatus.UNAUTHORIZED:
        key = "It does not take this key" if has_key else "It wants a key or token"
        findings.note("gateway", f"{key}: {said}", "--api-key-file FILE holds one.")
    elif status == HTTPStatus.FORBIDDEN:
        findings.note("gateway", f"403: {said}", _REFUSED)
    elif status // 100 == 3:
        findings.wrong("gateway", f"{status}: It leads elsewhere.", "Snowflake follows no redirect.")
    elif status == HTTPStatus.NOT_FOUND:
        findings.wrong(
            "gateway", f"404: {said}", "Is it the URL of POST /classify, with the gateway's stage?"
        )
    else:
        advice = "It is reached, and does not reach the service: is that up, and let in by its network?"
        findings.wrong("gateway", f"{status}: {said}", advice)


def _is_answer(body: bytes) -> bool:
    try:
        return bool(json.loads(body) == _ROW)
    except ValueError:
        return False
