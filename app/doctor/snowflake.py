"""Whether Snowflake lets the service, or a person, in, and what they may do there."""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime

from app.client import ClientError
from app.doctor.finding import Findings
from app.doctor.surroundings import judge_clock
from app.settings import Settings
from app.snowflake import existing
from app.snowflake.console import Console, StatementFailed, connect_as_service
from app.snowflake.credentials import is_configured
from app.snowflake.identifier import parse_identifier, quote_identifier, quote_string

_WHO = "SELECT CURRENT_USER(), CURRENT_ROLE(), CURRENT_WAREHOUSE(), CURRENT_TIMESTAMP()"
# No file needs to be there for a URL to be signed.
_NO_FILE = "ext-classify-doctor"


def check_service_login(findings: Findings, settings: Settings) -> None:
    """As the service logs in, and whether it may read its stages."""
    if not is_configured(settings):
        findings.skipped("service's login", "no SNOWFLAKE_ACCOUNT is set, so rows name no staged files")
        return
    console = _log_in(findings, "service's login", lambda: connect_as_service(settings))
    if console is None:
        return
    with console:
        if not settings.snowflake_stages:
            findings.note(
                "stages", "any that its role may read", "SNOWFLAKE_STAGES can name those that rows may."
            )
        for stage in settings.snowflake_stages:
            _check_stage(findings, console, stage)


def check_own_login(findings: Findings, open_console: Callable[[], Console], function: str) -> None:
    """As a person's session does, and whether the function can be seen."""
    console = _log_in(findings, "your login", open_console)
    if console is None:
        return
    with console, findings.expecting("function", "ext-classify register sets it up.", StatementFailed):
        rows = console.rows(f"SHOW USER FUNCTIONS LIKE {quote_string(function)} IN ACCOUNT")
        if rows:
            places = dict.fromkeys(f"{row['catalog_name']}.{row['schema_name']}" for row in rows)
            where = ", ".join(places)
            findings.ok("function", f"{function} is in {where}")
        else:
            findings.note("function", f"no function {function} is to be seen", "ext-classify register …")


def _log_in(findings: Findings, check: str, connect: Callable[[], Console]) -> Console | None:
    """The session, or None where there is none."""
    with findings.expecting(check, "infra/faq.md says what Snowflake means by it.", ClientError, OSError):
        with ExitStack() as stack:
            console = stack.enter_context(connect())
            _tell_who(findings, check, console)
            stack.pop_all()  # it stays open
        return console
    return None


def _tell_who(findings: Findings, check: str, console: Console) -> None:
    """Raises ClientError."""
    _, [[user, role, warehouse, now]], _ = console.table(_WHO)
    said = f"as {user}, role {role or 'none'}, warehouse {warehouse or 'none'}"
    if warehouse is None:
        findings.note(check, said, "Signing URLs takes a warehouse: SNOWFLAKE_WAREHOUSE.")
    else:
        findings.ok(check, said)
    if isinstance(now, datetime):
        judge_clock(findings, now.timestamp(), "Snowflake's")


def _check_stage(findings: Findings, console: Console, stage: str) -> None:
    parts = parse_identifier(stage)
    name = quote_identifier(*parts)
    check = f"stage {name}"
    advice = "infra/snowflake/22_grant_service.sql lets the service's role read it."
    with findings.expecting(check, advice, ClientError):
        console.rows(f"SELECT GET_PRESIGNED_URL(@{name}, '{_NO_FILE}', 60)")
        if existing.is_encrypted(existing.describe_stage(console, parts)):
            findings.note(
                check,
                "It is encrypted by its clients: no URL of its files gives an image.",
                "The service downloads them one by one; a stage with SNOWFLAKE_SSE is faster.",
            )
        else:
            findings.ok(check, "the service may read it")
