"""Check the way to Snowflake and back: logins, stages, the function, and the gateway that it calls."""

import asyncio
import json
from collections.abc import Callable
from contextlib import ExitStack
from http import HTTPStatus
from urllib.parse import urlsplit

from app.cli.doctor.service import TIMEOUT_SECONDS, check_certificate, check_date_header
from app.client import ClientError
from app.client.client import Service
from app.client.transport import NoReply, Reply, Request, send_once
from app.findings import Finding, Findings, check_session
from app.images.allowlist import HTTPS_PORT
from app.images.fetcher import create_fetcher
from app.names import quote_string
from app.provisioning.user_session import StatementFailed, UserSession
from app.settings import Settings
from app.snowflake.self_check import SelfCheck
from app.snowflake.session import SnowflakeSession
from app.snowflake.stage import StageReader

_WHO = "SELECT CURRENT_USER(), CURRENT_ROLE(), CURRENT_WAREHOUSE(), CURRENT_TIMESTAMP()"
# The service answers NULL with NULL, without fetching or classifying anything.
_ROW = {"data": [[0, None]]}
_UNREACHED = "Check the host name, and that this machine's network allows the connection."


def check_service_login(findings: Findings, settings: Settings) -> None:
    """Log in with these settings, and sign and fetch a file of each stage, as the service does."""
    findings.extend(asyncio.run(_check_as_service(settings)))


async def _check_as_service(settings: Settings) -> list[Finding]:
    fetcher, session = create_fetcher(settings), SnowflakeSession(settings)
    async with fetcher, session:
        return await SelfCheck(settings, session, StageReader(settings, session, fetcher)).run()


def check_own_login(findings: Findings, open_user_session: Callable[[], UserSession], function: str) -> None:
    """Log in with the user's connection and look for the function."""
    user_session = _log_in(findings, "your login", open_user_session)
    if user_session is None:
        return
    advice = "Create it with: ext-classify register"
    with user_session, findings.expecting("function", advice, StatementFailed):
        rows = user_session.rows(f"SHOW USER FUNCTIONS LIKE {quote_string(function)} IN ACCOUNT")
        if rows:
            places = dict.fromkeys(f"{row['catalog_name']}.{row['schema_name']}" for row in rows)
            findings.ok("function", f"{function} is in {', '.join(places)}")
        else:
            findings.note("function", f"function {function} not found", advice)


def check_gateway(findings: Findings, url: str, api_key: str | None) -> None:
    """Send a NULL row to the gateway, as Snowflake does."""
    try:
        service = Service(url, api_key)
    except ClientError as error:
        advice = "Pass the URL that the external function calls. It ends in /classify."
        findings.wrong("gateway", str(error), advice)
        return
    parts = urlsplit(url)
    if parts.scheme == "http":
        advice = "Set up a TLS certificate on the gateway."
        findings.note("gateway", "Snowflake only calls https URLs.", advice)
    elif not _has_certificate(findings, str(parts.hostname), parts.port or HTTPS_PORT):
        return
    headers = {"Content-Type": "application/json", **service.credentials}
    reply = send_once(Request("POST", url, headers, json.dumps(_ROW).encode()), TIMEOUT_SECONDS)
    if isinstance(reply, NoReply):
        findings.wrong("gateway", reply.reason, _UNREACHED)
        return
    check_date_header(findings, reply.headers.get("Date"), "the gateway's")
    _add_reply(findings, reply, has_key=api_key is not None)


def _log_in(findings: Findings, check: str, connect: Callable[[], UserSession]) -> UserSession | None:
    """Return the session, or None if the login fails."""
    with findings.expecting(check, "infra/docs/faq.md has causes of login errors.", ClientError, OSError):
        with ExitStack() as stack:
            user_session = stack.enter_context(connect())
            _, [row], _ = user_session.table(_WHO)
            check_session(findings, check, row, "Queries need a warehouse: set one in your connection.")
            stack.pop_all()  # keep the session open
        return user_session
    return None


def _has_certificate(findings: Findings, host: str, port: int) -> bool:
    check = "gateway's certificate"
    with findings.expecting(check, _UNREACHED, OSError, ValueError):
        check_certificate(findings, check, host, port)
        return True
    return False


def _add_reply(findings: Findings, reply: Reply, *, has_key: bool) -> None:
    status, said = reply.status, reply.body[:200].decode(errors="replace").strip()
    if status == HTTPStatus.OK and _is_answer(reply.body):
        findings.ok("gateway", "the gateway reaches the service, which answers a batch")
    elif status == HTTPStatus.OK:
        advice = "Check that the gateway forwards to /classify."
        findings.wrong("gateway", f"unexpected answer: {said}", advice)
    elif status == HTTPStatus.UNAUTHORIZED:
        key = "API key rejected" if has_key else "API key or token required"
        findings.note("gateway", f"401, {key}: {said}", "Pass a valid key with --api-key-file FILE.")
    elif status == HTTPStatus.FORBIDDEN:
        advice = (
            "Expected if the gateway admits only Snowflake's API integration: this machine is another caller."
        )
        findings.note("gateway", f"403: {said}", advice)
    elif status // 100 == 3:
        findings.wrong("gateway", f"{status}: the gateway redirects", "Snowflake does not follow redirects.")
    elif status == HTTPStatus.NOT_FOUND:
        advice = "Check that the URL contains the gateway's stage and ends in /classify."
        findings.wrong("gateway", f"404: {said}", advice)
    else:
        advice = "Check that the service runs, and that its network admits the gateway."
        findings.wrong("gateway", f"{status}: {said}", advice)


def _is_answer(body: bytes) -> bool:
    try:
        return bool(json.loads(body) == _ROW)
    except ValueError:
        return False
