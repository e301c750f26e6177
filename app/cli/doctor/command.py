"""ext-classify doctor: check settings, model, port, Redis, certificates, Snowflake and the gateway."""

import json
from dataclasses import asdict
from pathlib import Path

from app.cli.command_line import Add, add_json, read_api_key
from app.cli.doctor import questions, service, snowflake
from app.cli.sql import add_connection, open_session
from app.cli.terminal import Screen, open_screen
from app.errors import CommandError
from app.findings import Findings
from app.provisioning.user_session import has_default_connection

_STYLES = {"ok": "green", "note": "yellow", "wrong": "red", "skipped": "dim"}


def doctor(
    url: str | None,
    gateway: str | None,
    api_key_file: Path | None,
    function: str,
    stage: str | None,
    asks_snowflake: bool,
    as_json: bool,
    connection: str | None,
    local: bool,
    port: int,
) -> None:
    """Run all checks and print their findings. Raises CommandError if a check failed."""
    if asks_snowflake:
        with open_session(connection, local, port) as user_session:
            for answer in questions.ask(user_session, function, stage):
                print(answer, flush=True)
        return
    api_key = read_api_key(api_key_file)
    findings = Findings()
    if url is None and (settings := service.check_settings(findings)) is not None:
        url = service.check_service(findings, settings)
        if url is None:
            snowflake.check_service_login(findings, settings)
    if url is not None:
        service.ask_service(findings, url, api_key)
    if connection is not None or local or has_default_connection():
        snowflake.check_own_login(findings, lambda: open_session(connection, local, port), function)
    if gateway is not None:
        snowflake.check_gateway(findings, gateway, api_key)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        _show(open_screen(), findings)
    if findings.failed_checks:
        raise CommandError(f"Failed checks: {', '.join(findings.failed_checks)}.")


def add_commands(add: Add) -> None:
    command = add("doctor", doctor, "check settings, model, Snowflake and the gateway")
    flag = command.add_argument
    flag("--url", help="the running service, which checks itself (default: one on this environment's port)")
    gateway = "URL that the external function calls; doctor sends it a request as Snowflake does"
    flag("--gateway", metavar="URL", help=gateway)
    key = "file with a key of the service or gateway"
    flag("--api-key-file", type=Path, metavar="FILE", help=key)
    function = "function to look for, or to call (default %(default)s)"
    flag("--function", default="EXT_CLASSIFY", help=function)
    asks = "only ask the account what the documentation leaves open, and print text to paste into an issue"
    flag("--snowflake", action="store_true", dest="asks_snowflake", help=asks)
    flag("--stage", help="--snowflake: stage with an image (default: IMAGES in the function's schema)")
    add_json(command)
    add_connection(command)


def _show(screen: Screen, findings: Findings) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        screen.line(f"{finding.state:<8}{finding.check:<{width}}  {finding.said}", _STYLES[finding.state])
        if finding.advice:
            screen.line(" " * (8 + width + 2) + finding.advice)
