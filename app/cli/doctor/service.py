"""Check what the service needs: settings, model, cores, API keys, port, Redis, token issuer, image hosts."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from pydantic import ValidationError

from app.api.auth import ApiKeys
from app.cli.command_line import describe_settings_faults, refuse_taken_port
from app.client import Client, ClientError
from app.client.client import Service
from app.client.transport import NoReply, Request, send_once
from app.errors import CommandError, UrlNotAllowed
from app.findings import Finding, Findings, check_clock
from app.images.allowlist import HTTPS_PORT, Allowlist
from app.settings import Settings, unknown_variables
from model.artifact import load_artifact
from model.defaults import usable_cores
from model.engines import open_classifier
from model.errors import ModelError

TIMEOUT_SECONDS = 10.0
EXPIRES_SOON_DAYS = 21
# The service logs in, signs and fetches meanwhile.
_ASK_SECONDS = 60.0
_SEE_SETTINGS = "See Settings in the README."


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
    with findings.expecting("network", advice, ModelError, OSError):
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
    unreachable = "Check the host name, and that this machine's network allows the connection."
    private = "Set EXT_CLASSIFY_ALLOW_PRIVATE_ADDRESSES=true if this is your own object store."
    with (
        findings.expecting(check, unreachable, OSError, ValueError),
        findings.expecting(check, private, UrlNotAllowed),
    ):
        for address in _addresses(host, port):
            allowlist.check_address(address)
        check_certificate(findings, check, host, port)


def _addresses(host: str, port: int) -> Iterator[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return (str(address[0]) for *_, address in found)


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
