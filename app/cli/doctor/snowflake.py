"""Check logins to Snowflake, of the service and of the user, and what they can access."""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime

from app.cli.doctor.finding import Findings
from app.cli.doctor.surroundings import judge_clock
from app.client import ClientError
from app.names import parse_identifier, quote_identifier, quote_string
from app.provisioning import existing
from app.provisioning.console import Console, StatementFailed, connect_as_service
from app.settings import Settings

_WHO = "SELECT CURRENT_USER(), CURRENT_ROLE(), CURRENT_WAREHOUSE(), CURRENT_TIMESTAMP()"
# Snowflake signs a URL whether or not the file exists.
_NO_FILE = "ext-classify-doctor"


def check_service_login(findings: Findings, settings: Settings) -> None:
    """Log in with the service's credentials and check that it can read its stages."""
    if not settings.reads_stages:
        findings.skipped("service's login", "SNOWFLAKE_ACCOUNT is not set, so rows cannot name staged files")
        return
    console = _log_in(findings, "service's login", lambda: connect_as_service(settings))
    if console is None:
        return
    with console:
        if not settings.snowflake_stages:
            findings.note("stages", "all that its role can read", "Restrict them with SNOWFLAKE_STAGES.")
        for stage in settings.snowflake_stages:
            _check_stage(findings, console, stage)


def check_own_login(findings: Findings, open_console: Callable[[], Console], function: str) -> None:
    """Log in with the user's connection and look for the function."""
    console = _log_in(findings, "your login", open_console)
    if console is None:
        return
    with console, findings.expecting("function", "Create it with: ext-classify register", StatementFailed):
        rows = console.rows(f"SHOW USER FUNCTIONS LIKE {quote_string(function)} IN ACCOUNT")
        if rows:
            places = dict.fromkeys(f"{row['catalog_name']}.{row['schema_name']}" for row in rows)
            where = ", ".join(places)
            findings.ok("function", f"{function} is in {where}")
        else:
            findings.note(
                "function", f"function {function} not found", "Create it with: ext-classify register"
            )


def _log_in(findings: Findings, check: str, connect: Callable[[], Console]) -> Console | None:
    """Return the session, or None if the login fails."""
    with findings.expecting(check, "See infra/faq.md for the causes of login errors.", ClientError, OSError):
        with ExitStack() as stack:
            console = stack.enter_context(connect())
            _add_session(findings, check, console)
            stack.pop_all()  # keep the session open
        return console
    return None


def _add_session(findings: Findings, check: str, console: Console) -> None:
    """Add findings on the session's user, role, warehouse and clock. Raises ClientError."""
    _, [[user, role, warehouse, now]], _ = console.table(_WHO)
    said = f"as {user}, role {role or 'none'}, warehouse {warehouse or 'none'}"
    if warehouse is None:
        findings.note(check, said, "Signing URLs needs a warehouse: set SNOWFLAKE_WAREHOUSE.")
    else:
        findings.ok(check, said)
    if isinstance(now, datetime):
        judge_clock(findings, now.timestamp(), "Snowflake's")


def _check_stage(findings: Findings, console: Console, stage: str) -> None:
    parts = parse_identifier(stage)
    name = quote_identifier(*parts)
    check = f"stage {name}"
    advice = "Grant the service's role access with infra/snowflake/22_grant_service.sql."
    with findings.expecting(check, advice, ClientError):
        console.rows(f"SELECT GET_PRESIGNED_URL(@{name}, '{_NO_FILE}', 60)")
        if existing.is_encrypted(existing.describe_stage(console, parts)):
            findings.note(
                check,
                "client-side encryption: the service cannot fetch its files by URL",
                "The service downloads each file through Snowflake. A stage with SNOWFLAKE_SSE is faster.",
            )
        else:
            findings.ok(check, "the service can read it")
