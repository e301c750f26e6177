"""Whether the service could start here: its settings, network, cores, keys and port."""

import time

from pydantic import ValidationError

from app.api_keys import ApiKeys
from app.client import Client, ClientError
from app.command_line import CommandError, describe_settings_faults
from app.doctor.finding import Findings
from app.listening import refuse_taken_port
from app.settings import Settings, unknown_variables
from model.artifact import load_artifact
from model.cores import usable_cores
from model.errors import ModelError
from model.runtime import open_classifier

_WHERE = "README, Settings, says what each may be."


def check_settings(findings: Findings) -> Settings | None:
    """None where they would not let the service start."""
    if misspelt := unknown_variables():
        findings.note("settings", f"No setting is named {', '.join(misspelt)}.", f"Misspelt? {_WHERE}")
    try:
        settings = Settings()
    except ValidationError as error:
        findings.wrong("settings", describe_settings_faults(error), _WHERE)
        return None
    findings.ok("settings", f"{_who_may_call(settings)}, on {settings.host}:{settings.port}")
    return settings


def check_network(findings: Findings, settings: Settings) -> str | None:
    """Its version, if it would be served."""
    with findings.expecting("network", "ext-classify verify H5 says it of another one.", ModelError, OSError):
        began = time.perf_counter()
        artifact = load_artifact(settings.model_path)
        open_classifier(artifact, settings.engine, 1, settings.cache_dir)
        seconds = time.perf_counter() - began
        findings.ok(
            "network", f"{artifact.name} {artifact.version} is right about its golden image ({seconds:.1f} s)"
        )
        return artifact.version
    return None


def check_cores(findings: Findings, settings: Settings) -> None:
    cores = usable_cores()
    said = f"{cores} cores, {settings.classifiers} processes that classify"
    if settings.classifiers > cores:
        findings.note(
            "cores", said, "More processes than cores wait for each other: CLASSIFIERS is free to be less."
        )
    else:
        findings.ok("cores", said)


def check_keys(findings: Findings, settings: Settings) -> None:
    if settings.api_keys_file is None:
        return
    with findings.expecting("API keys", "ext-classify key NAME --file FILE makes one.", OSError):
        ApiKeys(settings.api_keys_file)
        findings.ok("API keys", f"{settings.api_keys_file} can be read")


def check_port(findings: Findings, settings: Settings, version: str | None) -> None:
    """Free, or held by a service of ours."""
    try:
        refuse_taken_port(settings.host, settings.port)
    except CommandError as taken:
        _check_holder(findings, settings, version, str(taken))
        return
    findings.ok("port", f"{settings.host}:{settings.port} is free")


def _check_holder(findings: Findings, settings: Settings, version: str | None, taken: str) -> None:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - it is asked here
    try:
        served = Client(f"http://{host}:{settings.port}").model_version()
    except ClientError:
        served = None
    if served is None:
        findings.wrong("port", taken, "EXT_CLASSIFY_PORT is free to be another one.")
    elif version is not None and served != version:
        findings.note(
            "port",
            f"ext-classify serves another network there, {served}",
            "SIGUSR1 lets it read its network anew; a new start reads other settings.",
        )
    else:
        findings.ok("port", f"ext-classify serves network {served} there")


def _who_may_call(settings: Settings) -> str:
    return f"callers by {', '.join(settings.auth)}" if settings.auth else "this machine may call"
