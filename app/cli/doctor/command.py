"""ext-classify doctor: check settings, model, port, Redis, certificates, Snowflake and the gateway."""

import json
from dataclasses import asdict
from pathlib import Path

from app.cli.command_line import Add, add_json, read_api_key
from app.cli.doctor.finding import Finding, Findings
from app.cli.doctor.gateway import check_gateway
from app.cli.doctor.machine import check_cores, check_keys, check_network, check_port, check_settings
from app.cli.doctor.snowflake import check_own_login, check_service_login
from app.cli.doctor.surroundings import check_hosts, check_issuer, check_redis
from app.cli.snowflake_flags import add_connection, open_session
from app.cli.terminal import Screen, open_screen
from app.errors import CommandError

_STYLES = {"ok": "green", "note": "yellow", "wrong": "red", "skipped": "dim"}


def doctor(
    gateway: str | None,
    api_key_file: Path | None,
    function: str,
    as_json: bool,
    connection: str | None,
    local: bool,
    port: int,
) -> None:
    """Run all checks and print their findings. Raises CommandError if a check failed."""
    api_key = read_api_key(api_key_file)
    findings = Findings()
    settings = check_settings(findings)
    if settings is not None:
        version = check_network(findings, settings)
        check_cores(findings, settings)
        check_keys(findings, settings)
        check_port(findings, settings, version)
        check_redis(findings, settings)
        check_issuer(findings, settings)
        check_hosts(findings, settings)
        check_service_login(findings, settings)
    if connection is not None or local:
        check_own_login(findings, lambda: open_session(connection, local, port), function)
    if gateway is not None:
        check_gateway(findings, gateway, api_key)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        _show(open_screen(as_json=as_json), findings)
    if not findings.passed:
        wrong = [finding.check for finding in findings if finding.state == "wrong"]
        raise CommandError(f"Failed checks: {', '.join(dict.fromkeys(wrong))}.")


def add_commands(add: Add) -> None:
    command = add("doctor", doctor, "check settings, model, Snowflake and the gateway")
    command.add_argument(
        "--gateway",
        metavar="URL",
        help="URL that the external function calls; doctor sends it a request as Snowflake does",
    )
    command.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with the gateway's API key")
    command.add_argument(
        "--function", default="EXT_CLASSIFY", help="function to look for (default %(default)s)"
    )
    add_json(command)
    add_connection(command)


def _show(screen: Screen, findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        screen.line(f"{finding.state:<8}{finding.check:<{width}}  {finding.said}", _STYLES[finding.state])
        if finding.advice and finding.state != "ok":
            screen.line(" " * (8 + width + 2) + finding.advice)
