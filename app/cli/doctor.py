"""ext-classify doctor: check the service, what it connects to, and the way to Snowflake and back."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import asdict
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from app.api.auth import ApiKeys
from app.cli import snowflake_questions
from app.cli.command_line import (
    Add,
    add_json,
    describe_settings_faults,
    read_api_key,
    refuse_taken_port,
)
from app.cli.sql import add_connection, open_session
from app.cli.terminal import Screen, open_screen
from app.client import Client, ClientError, NoReply, Reply, Request, Service, send_once
from app.errors import CommandError, UrlNotAllowed
from app.images.allowlist import HTTPS_PORT, Allowlist, create_fetcher
from app.names import quote_string
from app.provisioning.user_session import StatementFailed, UserSession, has_default_connection
from app.settings import Settings, unknown_variables
from app.snowflake.self_check import Finding, Findings, SelfCheck, check_clock, check_session
from app.snowflake.session import SnowflakeSession
from app.snowflake.stage import StageReader
from model.artifact import load_artifact
from model.defaults import usable_cores
from model.engines import open_classifier
from model.errors import ModelError
from model.native_log import without_native_log

TIMEOUT_SECONDS = 10.0
EXPIRES_SOON_DAYS = 21
# The service logs in, signs and fetches meanwhile.
_ASK_SECONDS = 60.0
_SEE_SETTINGS = "See Settings in the README."
_WHO = "SELECT CURRENT_USER(), CURRENT_ROLE(), CURRENT_WAREHOUSE(), CURRENT_TIMESTAMP()"
# The service answers NULL with NULL, without fetching or classifying anything.
_ROW = {"data": [[0, None]]}
_UNREACHED = "Check the host name, and that this machine's network allows the connection."
_GATEWAY_ADVICE = {
    200: "The service must answer: check that the gateway forwards to /classify.",
    300: "Snowflake does not follow redirects.",
    401: "Pass a valid API key with --api-key-file FILE.",
    403: "Expected if the gateway admits only Snowflake's API integration: this machine is another caller.",
    404: "Check that the URL contains the gateway's stage and ends in /classify.",
    500: "Check that the service runs, and that its network admits the gateway.",
}
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
            for answer in snowflake_questions.ask(user_session, function, stage):
                print(answer, flush=True)
        return
    api_key = read_api_key(api_key_file)
    findings = Findings()
    if url is None and (settings := check_settings(findings)) is not None:
        url = check_service(findings, settings)
        if url is None:
            check_service_login(findings, settings)
    if url is not None:
        ask_service(findings, url, api_key)
    if connection is not None or local or has_default_connection():
        check_own_login(findings, lambda: open_session(connection, local, port), function)
    if gateway is not None:
        check_gateway(findings, gateway, api_key)
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


def check_settings(findings: Findings) -> Settings | None:
    """Return the settings, or None if they are invalid."""
    if misspelt := unknown_variables():
        findings.note("settings", f"unknown: {', '.join(misspelt)}", f"Check the spelling. {_SEE_SETTINGS}")
    try:
        settings = Settings()
    except ValidationError as error:
        findings.wrong("settings", describe_settings_faults(error), _SEE_SETTINGS)
        return None
    return settings


def check_service(findings: Findings, settings: Settings) -> str | None:
    """Return the URL of the service that already runs on the port, if there is one."""
    version = _check_model(findings, settings)
    _check_cores(findings, settings)
    _check_keys(findings, settings)
    running_url = _check_port(findings, settings, version)
    _check_redis(findings, settings)
    _check_issuer(findings, settings)
    _check_hosts(findings, settings)
    return running_url


def ask_service(findings: Findings, url: str, api_key: str | None) -> None:
    """Add what the running service finds out about its own settings, login, stages and storage."""
    check = "running service"
    try:
        service = Service(url, api_key)
    except ClientError as error:
        findings.wrong(check, str(error), "Pass the URL of the service itself.")
        return
    reply = send_once(Request("GET", service.url_of("/doctor"), service.credentials), _ASK_SECONDS)
    if isinstance(reply, NoReply):
        findings.wrong(check, f"{url} does not answer: {reply.reason}", "Check that it runs there.")
    elif reply.status == HTTPStatus.UNAUTHORIZED and api_key is not None:
        findings.wrong(
            check, f"{url} rejects the API key", "Pass a key that is in the service's file of keys."
        )
    elif reply.status == HTTPStatus.UNAUTHORIZED:
        advice = "Pass a key of the service with --api-key-file FILE, or run doctor inside its container."
        findings.note(check, f"{url} requires authentication, so it was not asked", advice)
    elif reply.status != HTTPStatus.OK:
        findings.note(check, f"{url}/doctor answered {reply.status}", "Ask a service of this version.")
    else:
        with findings.expecting(check, "Is this the URL of ext-classify?", ValueError, KeyError, TypeError):
            found = json.loads(reply.body)
            findings.ok(check, f"{url}, version {found['version']}, model {found['model']['version']}")
            findings.extend(Finding(**each) for each in found["findings"])


def _check_model(findings: Findings, settings: Settings) -> str | None:
    """Load the model and run its self-test. Return its version, or None if it fails."""
    advice = "Check another model with: ext-classify verify H5"
    with findings.expecting("network", advice, ModelError, OSError), without_native_log():
        began = time.perf_counter()
        artifact = load_artifact(settings.model_path)
        open_classifier(artifact, settings.engine, 1, settings.cache_dir)
        seconds = time.perf_counter() - began
        findings.ok("network", f"{artifact.name} {artifact.version} passes its self-test ({seconds:.1f} s)")
        return artifact.version
    return None


def _check_cores(findings: Findings, settings: Settings) -> None:
    cores = usable_cores()
    said = f"{cores} cores, {settings.classifiers} classifier processes"
    if settings.classifiers > cores:
        findings.note("cores", said, "Processes compete for cores: set EXT_CLASSIFY_CLASSIFIERS lower.")
    else:
        findings.ok("cores", said)


def _check_keys(findings: Findings, settings: Settings) -> None:
    if settings.api_keys_file is None:
        return
    with findings.expecting("API keys", "Create a key with: ext-classify key NAME --file FILE", OSError):
        ApiKeys(settings.api_keys_file)
        findings.ok("API keys", f"{settings.api_keys_file} is valid")


def _check_port(findings: Findings, settings: Settings, version: str | None) -> str | None:
    """Check that the port is free, or in use by ext-classify, whose URL is returned."""
    try:
        refuse_taken_port(settings.host, settings.port)
    except CommandError as taken:
        return _check_port_user(findings, settings, version, str(taken))
    findings.ok("port", f"{settings.host}:{settings.port} is free")
    return None


def _check_port_user(findings: Findings, settings: Settings, version: str | None, taken: str) -> str | None:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - the client connects to loopback
    url = f"http://{host}:{settings.port}"
    try:
        with Client(url) as client:
            served = client.model_version()
    except ClientError:
        served = None
    if served is None:
        findings.wrong("port", taken, "Set EXT_CLASSIFY_PORT to a free port.")
        return None
    if version is not None and served != version:
        findings.note(
            "port",
            f"ext-classify already runs there, with another model: {served}",
            "Reload the model with SIGUSR1. Changed settings require a restart.",
        )
    else:
        findings.ok("port", f"ext-classify already runs there, with model {served}")
    return url


def _check_redis(findings: Findings, settings: Settings) -> None:
    if settings.redis_url is None:
        return
    advice = "While Redis does not answer, each instance caches outcomes in its own memory."
    from app.batches.redis_store import ping  # noqa: PLC0415 - Redis is optional

    with findings.expecting("Redis", advice, OSError, ValueError):
        seconds = asyncio.run(ping(settings.redis_url.get_secret_value()))
        findings.ok("Redis", f"answers in {seconds * 1000:.0f} ms")


def _check_issuer(findings: Findings, settings: Settings) -> None:
    url = settings.jwt_jwks_url
    if "jwt" not in settings.auth or url is None:
        return
    check = "issuer of tokens"
    advice = "EXT_CLASSIFY_JWT_JWKS_URL must serve the issuer's keys: without them, it rejects every token."
    with findings.expecting(check, advice, ValueError, KeyError, TypeError):
        reply = send_once(Request("GET", url), TIMEOUT_SECONDS)
        if isinstance(reply, NoReply) or reply.status != HTTPStatus.OK:
            said = reply.reason if isinstance(reply, NoReply) else f"status {reply.status}"
            findings.wrong(check, said, advice)
            return
        findings.ok(check, f"{len(json.loads(reply.body)['keys'])} keys")
        check_date_header(findings, reply.headers.get("Date"), "the issuer's")


def _check_hosts(findings: Findings, settings: Settings) -> None:
    """Check the entries of EXT_CLASSIFY_ALLOWED_URL_HOSTS that name a single host."""
    allowlist = Allowlist(settings.allowed_url_hosts, settings.allow_private_addresses)
    for pattern in settings.allowed_url_hosts:
        host, _, port = str(pattern).partition("/")[0].partition(":")
        if host.startswith("."):
            findings.skipped("host of images", f"{pattern} matches many hosts")
        else:
            _check_host(findings, allowlist, host, int(port or HTTPS_PORT))


def _check_host(findings: Findings, allowlist: Allowlist, host: str, port: int) -> None:
    check = f"host of images {host}"
    private = "Set EXT_CLASSIFY_ALLOW_PRIVATE_ADDRESSES=true if this is your own object store."
    with (
        findings.expecting(check, _UNREACHED, OSError, ValueError),
        findings.expecting(check, private, UrlNotAllowed),
    ):
        for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            allowlist.check_address(str(address[0]))
        check_certificate(findings, check, host, port)


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


def check_service_login(findings: Findings, settings: Settings) -> None:
    """Log in with these settings, and sign and fetch a file of each stage, as the service does."""

    async def check() -> list[Finding]:
        fetcher, session = create_fetcher(settings), SnowflakeSession(settings)
        async with fetcher, session:
            return await SelfCheck(settings, session, StageReader(settings, session, fetcher)).run()

    findings.extend(asyncio.run(check()))


def check_own_login(findings: Findings, open_user_session: Callable[[], UserSession], function: str) -> None:
    """Log in with the user's connection and look for the function."""
    login, advice = "infra/docs/faq.md has causes of login errors.", "Create it with: ext-classify register"
    with (
        findings.expecting("your login", login, ClientError, OSError),
        open_user_session() as user_session,
    ):
        _, [row], _ = user_session.table(_WHO)
        check_session(findings, "your login", row, "Queries need a warehouse: set one in your connection.")
        with findings.expecting("function", advice, StatementFailed):
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
    _add_reply(findings, reply)


def _has_certificate(findings: Findings, host: str, port: int) -> bool:
    check = "gateway's certificate"
    with findings.expecting(check, _UNREACHED, OSError, ValueError):
        check_certificate(findings, check, host, port)
        return True
    return False


def _add_reply(findings: Findings, reply: Reply) -> None:
    status, said = reply.status, reply.body[:200].decode(errors="replace").strip()
    if status == HTTPStatus.OK and _is_answer(reply.body):
        findings.ok("gateway", "the gateway reaches the service, which answers a batch")
        return
    note = findings.note if status in (401, 403) else findings.wrong
    advice = _GATEWAY_ADVICE.get(300 if status // 100 == 3 else status, _GATEWAY_ADVICE[500])
    note("gateway", f"{status}: {said}", advice)


def _is_answer(body: bytes) -> bool:
    try:
        return bool(json.loads(body) == _ROW)
    except ValueError:
        return False
