"""Check that the service can start on this machine: settings, model, cores, API keys and port."""

import time

from pydantic import ValidationError

from app.api.auth import ApiKeys
from app.cli.command_line import describe_settings_faults
from app.cli.doctor.finding import Findings
from app.client import Client, ClientError
from app.errors import CommandError
from app.server.listening import refuse_taken_port
from app.settings import Settings, unknown_variables
from model.artifact import load_artifact
from model.cores import usable_cores
from model.engines import open_classifier
from model.errors import ModelError

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
    findings.ok("settings", f"{_describe_auth(settings)}, listening on {settings.host}:{settings.port}")
    return settings


def check_network(findings: Findings, settings: Settings) -> str | None:
    """Load the model and run its self-test. Return its version, or None if it fails."""
    with findings.expecting(
        "network", "Check another model with: ext-classify verify H5", ModelError, OSError
    ):
        began = time.perf_counter()
        artifact = load_artifact(settings.model_path)
        open_classifier(artifact, settings.engine, 1, settings.cache_dir)
        seconds = time.perf_counter() - began
        findings.ok("network", f"{artifact.name} {artifact.version} passes its self-test ({seconds:.1f} s)")
        return artifact.version
    return None


def check_cores(findings: Findings, settings: Settings) -> None:
    cores = usable_cores()
    said = f"{cores} cores, {settings.classifiers} classifier processes"
    if settings.classifiers > cores:
        findings.note("cores", said, "Processes compete for cores: set EXT_CLASSIFY_CLASSIFIERS lower.")
    else:
        findings.ok("cores", said)


def check_keys(findings: Findings, settings: Settings) -> None:
    if settings.api_keys_file is None:
        return
    with findings.expecting("API keys", "Create a key with: ext-classify key NAME --file FILE", OSError):
        ApiKeys(settings.api_keys_file)
        findings.ok("API keys", f"{settings.api_keys_file} is valid")


def check_port(findings: Findings, settings: Settings, version: str | None) -> None:
    """Check that the port is free, or in use by ext-classify."""
    try:
        refuse_taken_port(settings.host, settings.port)
    except CommandError as taken:
        _check_holder(findings, settings, version, str(taken))
        return
    findings.ok("port", f"{settings.host}:{settings.port} is free")


def _check_holder(findings: Findings, settings: Settings, version: str | None, taken: str) -> None:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - the client connects to loopback
    try:
        served = Client(f"http://{host}:{settings.port}").model_version()
    except ClientError:
        served = None
    if served is None:
        findings.wrong("port", taken, "Set EXT_CLASSIFY_PORT to a free port.")
    elif version is not None and served != version:
        findings.note(
            "port",
            f"ext-classify runs there with another model: {served}",
            "Reload the model with SIGUSR1. Changed settings require a restart.",
        )
    else:
        findings.ok("port", f"ext-classify runs there with model {served}")


def _describe_auth(settings: Settings) -> str:
    return f"auth: {', '.join(settings.auth) or 'off (loopback only)'}"
