"""The flags of `register`: which each provider requires and which it accepts."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.cli.sql import LOCAL_PORT, connect_locally
from app.client import ClientError
from app.provisioning.console import Console, connect_as_service, open_console
from app.provisioning.ddl import VARIABLES
from app.provisioning.registration import Registration
from app.settings import Settings, is_inside_spcs


def add_connection(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--connection",
        metavar="NAME",
        help="connection in connections.toml (default: its default connection)",
    )
    command.add_argument(
        "--local", action="store_true", help="connect to the local server of `ext-classify sql --serve`"
    )
    command.add_argument(
        "--port", type=int, default=LOCAL_PORT, help="port of the local server (default %(default)s)"
    )


def open_session(connection: str | None, local: bool, port: int) -> Console:
    """Open a session. Raises ClientError.

    Inside Snowpark Container Services without a named connection, it logs in with the container's token.
    """
    if local:
        return connect_locally(port)
    if connection is None and is_inside_spcs():
        return connect_as_service(Settings())
    return open_console(connection)


DEFAULT_INTEGRATION = "ext_classify_api"
DEFAULT_API_PROVIDER = "aws_api_gateway"

# Flags by the SQL variable that they set.
_FLAGS = {
    "database": "--database",
    "url": "--url",
    "allowed_prefix": "--allowed-prefix",
    "api_provider": "--api-provider",
    "aws_role_arn": "--role-arn",
    "azure_tenant_id": "--tenant-id",
    "azure_application_id": "--application-id",
    "google_audience": "--audience",
    "api_key": "--api-key-file",
    "integration": "--integration",
    "service": "--service",
    "owner_role": "--owner-role",
    "caller_role": "--caller-role",
    "service_role": "--service-role",
    "warehouse": "--warehouse",
}
# Required and optional variables of each provider's integration.
_IDENTITY = {
    "aws": ["aws_role_arn"],
    "azure": ["azure_tenant_id", "azure_application_id"],
    "google": ["google_audience"],
    "spcs": [],
}
_OPTIONAL = {"aws": ["api_provider", "api_key"], "azure": ["api_key"], "google": [], "spcs": []}
_GRANTS = ["caller_role", "service_role", "warehouse"]


def read_flags(given: Mapping[str, Any], defaults: Mapping[str, str]) -> Registration:
    """`given` holds the flags' values, None if absent. Raises ClientError with messages that name flags."""
    variables = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    provider, makes_integration = variables.pop("provider"), variables.pop("makes_integration")
    if key_file := variables.pop("api_key_file", None):
        variables["api_key"] = _read_key(key_file)
    _check_combination(provider, variables.keys(), makes_integration=makes_integration)
    _check_values(variables)
    if provider == "aws":
        variables.setdefault("api_provider", DEFAULT_API_PROVIDER)
    if provider != "spcs":
        variables.setdefault("integration", DEFAULT_INTEGRATION)
        variables.setdefault("allowed_prefix", variables["url"])
    return Registration(provider, variables, makes_integration)


def _check_combination(provider: str, given: Any, *, makes_integration: bool) -> None:
    is_external = provider != "spcs"
    if not makes_integration and (not is_external or "owner_role" in given):
        against = "--provider spcs" if not is_external else "--owner-role"
        raise ClientError(f"--no-integration and {against} cannot be combined.")
    optional = [*_IDENTITY[provider], *_OPTIONAL[provider], "allowed_prefix"] if makes_integration else []
    needed = ["database", "url", *(_IDENTITY[provider] if makes_integration else [])]
    allowed = [*needed, *optional, "integration"]
    if not is_external:
        needed = allowed = ["database", "service"]
    if "owner_role" in given:
        needed = [name for name in needed if name != "database"]
    what = f"--provider {provider}" + ("" if makes_integration else " with --no-integration")
    _reject(what, "needs", [name for name in needed if name not in given])
    own = [*allowed, "owner_role", *_GRANTS]
    _reject(what, "does not accept", [name for name in _FLAGS if name in given and name not in own])
    if "owner_role" in given:
        _reject("--owner-role", "cannot be combined with", [name for name in _GRANTS if name in given])
    if "warehouse" in given and "service_role" not in given:
        raise ClientError("--warehouse needs --service-role.")


def _reject(what: str, verb: str, names: list[str]) -> None:
    if names:
        raise ClientError(f"{what} {verb} {', '.join(_FLAGS[name] for name in names)}.")


def _check_values(variables: Mapping[str, str]) -> None:
    """Check values here, because errors from the SQL files name variables, not flags."""
    for name, value in variables.items():
        try:
            VARIABLES[name](value)
        except ValueError as error:
            flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
            raise ClientError(f"Invalid value for {flag}. {error}") from None


def _read_key(path: Path) -> str:
    key = path.read_text(encoding="utf-8").strip()
    if not key:
        raise ClientError(f"The file of --api-key-file must hold the key. Received: {path}, which is empty.")
    return key
