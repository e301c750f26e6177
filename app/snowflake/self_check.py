"""The running service checks its own way to Snowflake and to its stages' storage; GET /doctor returns it.

Only the service knows the settings that it was started with, and the address from which storage sees it.
`ext-classify doctor` reports its own checks in the same form.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from app.errors import AccessDenied, FileMissing, SnowflakeRefused, UrlNotAllowed
from app.images.source import StageFile
from app.names import directory_of, parse_identifier, quote_identifier
from app.settings import Settings
from app.snowflake.session import SnowflakeSession
from app.snowflake.stage import StageReader
from model.errors import InputError

# With a larger skew, tokens and signed URLs are not valid yet, or have expired.
MAX_SKEW_SECONDS = 30.0
_MAX_STAGES = 8
_NETWORK_ADVICE = (
    "Storage refuses the service. Where the account sets ENFORCE_NETWORK_RULES_FOR_INTERNAL_STAGES, allow "
    "the address from which the service leaves its network: see infra/docs/operations.md."
)
# Snowflake signs a URL whether or not the file exists.
_NO_FILE = "ext-classify-doctor"
_READ_ADVICE = "Grant the service's role access with infra/snowflake/22_grant_service.sql."
_LOGIN_ADVICE = (
    "See the log's line `Snowflake:`, and infra/docs/faq.md for causes of login errors. A programmatic "
    "access token of a TYPE=SERVICE user needs a network policy that allows the service's address."
)

State = Literal["ok", "note", "wrong", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One result of a check. `advice` says how to fix a problem."""

    check: str
    state: State
    said: str
    advice: str = ""


class Findings(list[Finding]):
    def ok(self, check: str, said: str) -> None:
        self.append(Finding(check, "ok", said))

    def note(self, check: str, said: str, advice: str) -> None:
        self.append(Finding(check, "note", said, advice))

    def wrong(self, check: str, said: str, advice: str) -> None:
        self.append(Finding(check, "wrong", said, advice))

    def skipped(self, check: str, said: str) -> None:
        self.append(Finding(check, "skipped", said))

    def expecting(self, check: str, advice: str, *errors: type[Exception]) -> "_Expecting":
        """Return a context manager that turns these errors into `wrong` findings."""
        return _Expecting(self, check, advice, errors)

    @property
    def failed_checks(self) -> list[str]:
        return list(dict.fromkeys(finding.check for finding in self if finding.state == "wrong"))


@dataclass(frozen=True)
class _Expecting:
    findings: Findings
    check: str
    advice: str
    errors: tuple[type[Exception], ...]

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, self.errors):
            return False
        self.findings.wrong(self.check, " ".join(str(error).split()) or type(error).__name__, self.advice)
        return True


def check_session(findings: Findings, check: str, row: Sequence[object], advice: str) -> None:
    """Note a session: `row` is (user, role, warehouse, now), and `advice` applies if it has no warehouse."""
    user, role, warehouse, now = row
    said = f"as {user}, role {role or 'none'}, warehouse {warehouse or 'none'}"
    if warehouse is None:
        findings.note(check, said, advice)
    else:
        findings.ok(check, said)
    if isinstance(now, datetime):
        check_clock(findings, now.timestamp(), "Snowflake's")


def check_clock(findings: Findings, their_seconds: float, whose: str) -> None:
    """Compare this machine's clock with `their_seconds`, the other clock's time since 1970."""
    skew_seconds = time.time() - their_seconds
    said = f"{abs(skew_seconds):.0f} s {'ahead of' if skew_seconds > 0 else 'behind'} {whose}"
    if abs(skew_seconds) > MAX_SKEW_SECONDS:
        advice = "Synchronise the clock with NTP: logins and signed URLs fail."
        findings.wrong("clock", f"this machine's clock is {said}", advice)
    else:
        findings.ok("clock", f"this machine's clock is {said}")


class SelfCheck:
    """Runs the checks, one run at a time: each logs in, signs and fetches."""

    def __init__(self, settings: Settings, session: SnowflakeSession, stages: StageReader) -> None:
        self._settings = settings
        self._session = session
        self._stages = stages
        self._turn = asyncio.Lock()

    async def run(self) -> list[Finding]:
        async with self._turn:
            findings = Findings()
            settings = self._settings
            auth = ", ".join(settings.auth) or "off (loopback only)"
            findings.ok("settings", f"auth: {auth}, listening on {settings.host}:{settings.port}")
            check_network_settings(findings, settings)
            if not settings.reads_stages:
                said = "EXT_CLASSIFY_SNOWFLAKE_ACCOUNT is not set, so rows cannot name staged files"
                findings.skipped("service's login", said)
            elif await self._log_in(findings):
                await self._check_stages(findings)
            return findings

    async def _log_in(self, findings: Findings) -> bool:
        check = "service's login"
        with findings.expecting(check, _LOGIN_ADVICE, InputError):
            statement = "SELECT CURRENT_USER(), CURRENT_ROLE(), CURRENT_WAREHOUSE(), CURRENT_TIMESTAMP()"
            [row] = await self._session.query(statement)
            advice = "Signing needs a warehouse: set EXT_CLASSIFY_SNOWFLAKE_WAREHOUSE."
            check_session(findings, check, row, advice)
            return True
        return False

    async def _check_stages(self, findings: Findings) -> None:
        named = self._settings.snowflake_stages
        if not named:
            advice = "Name some in EXT_CLASSIFY_SNOWFLAKE_STAGES: the service checks and reads only these."
            findings.note("stages", "all that its role can read", advice)
        for name in named[:_MAX_STAGES]:
            await self._check_stage(findings, parse_identifier(name))

    async def _check_stage(self, findings: Findings, stage: tuple[str, ...]) -> None:
        name = quote_identifier(*stage)
        check = f"stage {name}"
        with (
            findings.expecting(check, _READ_ADVICE, InputError),
            findings.expecting(check, _NETWORK_ADVICE, AccessDenied),
            findings.expecting(check, "Add the host to EXT_CLASSIFY_ALLOWED_URL_HOSTS.", UrlNotAllowed),
        ):
            path = await self._find_path(name)
            file = StageFile(stage, path or _NO_FILE)
            batch = self._stages.open_batch([file])
            try:
                content = await batch.fetch(file)
            except FileMissing:
                if path is not None:
                    raise
                findings.skipped(check, "the service may read it; its directory table lists no file to fetch")
                return
            if self._stages.is_signed(stage):
                findings.ok(check, f"the service signed and fetched a file of {len(content):,} bytes")
            else:
                advice = "A stage with SNOWFLAKE_SSE is faster: its files are fetched by signed URLs."
                findings.note(check, "the service downloads its files through the connector", advice)

    async def _find_path(self, name: str) -> str | None:
        """A path of the stage; None if the stage has no file, or no directory table."""
        statement = f"SELECT relative_path FROM {directory_of(name)} LIMIT 1"  # noqa: S608 - quoted
        with contextlib.suppress(SnowflakeRefused):
            for (path,) in await self._session.query(statement):
                return str(path)
        return None


def check_network_settings(findings: Findings, settings: Settings) -> None:
    """Note a proxy or CA that the fetcher and the Snowflake connector do not share."""
    names = {name.upper() for name, value in os.environ.items() if value}
    if "HTTPS_PROXY" in names and settings.fetch_proxy is None:
        advice = "Set EXT_CLASSIFY_FETCH_PROXY too, unless images' hosts are reached directly."
        findings.note(
            "proxy", "only the Snowflake connector obeys HTTPS_PROXY, images are fetched without", advice
        )
    elif settings.fetch_proxy is not None and "HTTPS_PROXY" not in names and settings.reads_stages:
        advice = "Set HTTPS_PROXY too, unless Snowflake is reached directly."
        findings.note("proxy", "EXT_CLASSIFY_FETCH_PROXY is for images only, not for logins", advice)
    elif settings.fetch_proxy is not None:
        findings.ok("proxy", "images are fetched through EXT_CLASSIFY_FETCH_PROXY")
    if len(names & {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}) == 1:
        advice = "Set SSL_CERT_FILE (images) and REQUESTS_CA_BUNDLE (Snowflake connector) to the same file."
        findings.note("certificates", "a CA is named for one of fetcher and connector only", advice)
