"""Sets up the function in Snowflake; idempotent: what already matches is unchanged."""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.client import ClientError
from app.names import quote_identifier, quote_string
from app.provisioning import existing
from app.provisioning.console import Console, StatementFailed
from app.provisioning.ddl import load
from app.provisioning.registration import PROVIDERS, SIGNATURES, About, Registration
from app.provisioning.trust import describe_trust

__all__ = ["PROVIDERS", "Registration", "register", "unregister", "verify"]


def register(console: Console, registration: Registration) -> Iterator[str]:
    """Yield a line per object as it is set up, and the trust policies for the cloud provider.

    Raises ClientError, also at the end for grants that a replacement dropped and that could not be restored.
    """
    lost: list[str] = []
    for about, statement in list(
        registration.steps()
    ):  # list(): invalid variables are found before any change
        yield from _execute(console, registration, about, statement, lost)
    if lost:
        raise ClientError(f"These grants could not be restored: {'; '.join(lost)}.")


def verify(console: Console, registration: Registration, sample: Path) -> Iterator[tuple[str, Any]]:
    """Yield the function's results for a sample's bytes, then for a file of the stage, if it has one."""
    text = base64.b64encode(sample.read_bytes()).decode()
    yield sample.name, _call(console, registration, quote_string(text))
    stage = quote_identifier(*registration.stage)
    console.rows(f"ALTER STAGE {stage} REFRESH")
    files = console.rows(f"SELECT relative_path, file_url FROM DIRECTORY(@{stage}) LIMIT 1")  # noqa: S608
    for file in files:
        yield (
            f"@{stage}/{file['relative_path']}",
            _call(console, registration, quote_string(file["file_url"])),
        )


def unregister(console: Console, variables: Mapping[str, str], *, drop_integration: bool) -> Iterator[str]:
    """Drop the functions and, if requested, the integration; the stage and its images remain.

    Raises ClientError, before anything is dropped, if other visible functions use the integration. Functions
    of other roles may use it too, and are not visible.
    """
    names = ["91_drop_functions.sql"] + (["92_drop_integration.sql"] if drop_integration else [])
    try:
        statements = [statement for name in names for statement in load(name, variables)]
    except ValueError as error:
        raise ClientError(str(error)) from None
    if drop_integration:
        _require_unused_integration(console, Registration("", variables))
    for statement in statements:
        [row] = console.rows(statement)
        if not statement.startswith("USE "):
            yield str(row["status"])
    if drop_integration:
        yield "Note: every function in the account that used the integration now fails."


def _require_unused_integration(console: Console, registration: Registration) -> None:
    integration = registration.integration
    if not existing.has_integration(console, integration):
        return
    own = {(registration.function, types) for types in SIGNATURES}
    others = [
        f"{quote_identifier(*name)}({types})"
        for name, types in existing.functions_through(console, integration)
        if (name, types) not in own
    ]
    if others:
        raise ClientError(
            f"An integration must be dropped after all functions that use it. API integration "
            f"{quote_identifier(integration)} allows the URLs of: {', '.join(others)}. Nothing was dropped; "
            "to drop it anyway, run 92_drop_integration.sql."
        )


def _execute(
    console: Console, registration: Registration, about: About, statement: str, lost: list[str]
) -> Iterator[str]:
    match about.kind:
        case "use":
            console.rows(statement)
        case "stage":
            yield from _keep_stage(console, registration, statement)
        case "integration":
            yield from keep_integration(console, registration, statement)
        case "alteration":
            pass  # skipped: it would replace the list of prefixes; keep_integration extends it
        case "trust":
            properties = existing.describe_integration(console, registration.integration)
            trust = describe_trust(registration.provider, properties, registration.variables["url"])
            yield f"\n{trust}\n"
        case "key":
            console.rows(statement)  # Snowflake does not show the key, so it is always set
            yield _line("altered", about.thing)
        case "function":
            yield from _keep_function(console, registration, about, statement, lost)
        case "grant":
            yield _grant(console, registration, about, statement)


def _keep_stage(console: Console, registration: Registration, statement: str) -> Iterator[str]:
    """Create the stage unless it exists; enable the directory table of an existing one."""
    name = quote_identifier(*registration.stage)
    [row] = console.rows(statement)
    if "already exists" not in str(row["status"]):
        yield _line("created", f"STAGE {name}")
        return
    stage = existing.describe_stage(console, registration.stage)
    if stage["directory_enabled"] == "N":
        console.rows(f"ALTER STAGE {name} SET DIRECTORY = (ENABLE = TRUE)")
        console.rows(f"ALTER STAGE {name} REFRESH")
        yield _line("altered", f"STAGE {name}: directory table enabled")
    else:
        yield _line("unchanged", f"STAGE {name}")
    if existing.is_encrypted(stage):
        yield (
            f"Note: the files of stage {name} are client-side encrypted, so the service cannot fetch them by "
            "URL and downloads each with the connector, which is slower. The encryption of a stage cannot be "
            "changed; register with another stage name to create one with SNOWFLAKE_SSE."
        )


def _keep_function(
    console: Console, registration: Registration, about: About, statement: str, lost: list[str]
) -> Iterator[str]:
    """Replace the function only if it differs, because replacing it drops its grants."""
    there = existing.describe_function(console, registration.function, about.types)
    if there and _matches(there, about.properties):
        yield _line("unchanged", about.thing)
        return
    grants = _grants_on(console, about.thing, registration.function[0]) if there else []
    if grants:
        yield f"Replacing {about.thing} drops its grants, which are restored right after:"
        yield "\n".join(f"  {grant};" for grant in grants)
    console.rows(statement)
    lost += _restore(console, grants)
    yield _line("replaced" if there else "created", about.thing)


def _matches(there: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """The fingerprint in the comment covers what DESC hides, such as the integration."""
    shown = {name: value for name, value in wanted.items() if name in there and name != "comment"}
    return wanted["comment"] in there["comment"] and all(there[name] == shown[name] for name in shown)


def _grants_on(console: Console, thing: str, database: str) -> list[str]:
    """The grants as statements, without OWNERSHIP, which comes with the function."""
    grants = []
    for row in console.rows(f"SHOW GRANTS ON {thing}"):
        if row["privilege"] != "OWNERSHIP":
            option = str(row.get("grant_option", "false")).lower() == "true"
            grants.append(
                f"GRANT {row['privilege']} ON {thing} TO {_grantee(row, database)}"
                + (" WITH GRANT OPTION" if option else "")
            )
    return grants


def _grantee(row: Mapping[str, Any], database: str) -> str:
    """The grantee in SQL; SHOW may or may not qualify a database role with its database."""
    kind, name = str(row["granted_to"]).replace("_", " "), str(row["grantee_name"])
    if kind == "DATABASE ROLE":
        return f"{kind} {quote_identifier(database, name.removeprefix(f'{database}.'))}"
    return f"{kind} {quote_identifier(name)}"


def _restore(console: Console, grants: list[str]) -> list[str]:
    """Restore the grants. Returns those that failed, each with the reason."""
    lost = []
    for grant in grants:
        try:
            console.rows(grant)
        except StatementFailed as error:
            lost.append(f"{grant} ({error})")
    return lost


def _grant(console: Console, registration: Registration, about: About, statement: str) -> str:
    if about.privilege == "READ" and existing.is_external(
        existing.describe_stage(console, registration.stage)
    ):
        statement = f"GRANT USAGE ON {about.thing} TO ROLE {quote_identifier(about.role)}"
        return _grant_if_missing(console, about, "USAGE", statement)
    return _grant_if_missing(console, about, about.privilege, statement)


def _grant_if_missing(console: Console, about: About, privilege: str, statement: str) -> str:
    """A service role has no privilege to look up, so it is always granted."""
    title = f"{privilege} ON {about.thing} TO ROLE {quote_identifier(about.role)}".removeprefix(" ON ")
    there = console.rows(f"SHOW GRANTS ON {about.thing}") if privilege else []
    wanted = privilege, "ROLE", about.role
    if any((row["privilege"], row["granted_to"], row["grantee_name"]) == wanted for row in there):
        return _line("unchanged", title)
    console.rows(statement)
    return _line("granted", title)


def _call(console: Console, registration: Registration, source: str) -> Any:
    [row] = console.rows(f"SELECT {quote_identifier(*registration.function)}({source}) AS answer")
    return row["answer"]


def _line(done: str, thing: str) -> str:
    return f"{done:<10} {thing}"


# Properties of DESC INTEGRATION that cannot be altered, by SQL variable.
_FIXED = {
    "api_provider": ("API_PROVIDER", "provider"),
    "azure_tenant_id": ("AZURE_TENANT_ID", "tenant"),
    "google_audience": ("GOOGLE_AUDIENCE", "audience"),
}
_ALTERABLE = {"aws_role_arn": "API_AWS_ROLE_ARN", "azure_application_id": "AZURE_AD_APPLICATION_ID"}
_PROVIDERS = {"azure": "azure_api_management", "google": "google_api_gateway"}


def keep_integration(console: Console, registration: Registration, create: str) -> Iterator[str]:
    """Create the integration with the statement `create`, or alter it; existing URL prefixes are kept.

    Raises ClientError if an integration of this name exists that cannot be altered as needed.
    """
    thing = f"API INTEGRATION {quote_identifier(registration.integration)}"
    if not existing.has_integration(console, registration.integration) and _create(console, create):
        yield f"created    {thing}"
        return
    properties = existing.describe_integration(console, registration.integration)
    _require_same_kind(registration, properties)
    options = _options_to_alter(registration.variables, properties)
    if options:
        console.rows(f"ALTER {thing} SET {' '.join(options)}")
    yield f"{'altered' if options else 'unchanged':<10} {thing}"
    if properties.get("ENABLED", "true").lower() == "false":
        yield f"Note: {thing} is disabled, so functions that use it fail."


def _create(console: Console, statement: str) -> bool:
    """Whether the statement created it; SHOW may hide an existing one from this role."""
    [row] = console.rows(statement)
    return "already exists" not in str(row["status"])


def _require_same_kind(registration: Registration, properties: Mapping[str, str]) -> None:
    wanted = {**registration.variables}
    wanted["api_provider"] = _PROVIDERS.get(registration.provider, wanted.get("api_provider", ""))
    for variable, (option, title) in _FIXED.items():
        there = properties.get(option, "none" if variable == "api_provider" else None)
        if variable in wanted and there is not None and there.lower() != wanted[variable].lower():
            raise ClientError(
                f"API integration {quote_identifier(registration.integration)} has {title} {there}, which "
                f"cannot be changed; choose another name with --integration. Received: {wanted[variable]}."
            )


def _options_to_alter(variables: Mapping[str, str], properties: dict[str, str]) -> list[str]:
    """SET replaces the whole list of prefixes; existing ones are kept, as other functions may need them."""
    options = [
        f"{option} = {quote_string(variables[variable])}"
        for variable, option in _ALTERABLE.items()
        if variable in variables and properties.get(option) != variables[variable]
    ]
    prefixes = existing.allowed_prefixes(properties)
    if variables["allowed_prefix"] not in prefixes:
        union = ", ".join(map(quote_string, [*prefixes, variables["allowed_prefix"]]))
        options.append(f"API_ALLOWED_PREFIXES = ({union})")
    return options
