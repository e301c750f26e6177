"""Set the function up in Snowflake, again and again: what is as it should be is left alone."""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.client import ClientError
from app.snowflake import existing
from app.snowflake.console import Console, StatementFailed
from app.snowflake.ddl import load
from app.snowflake.identifier import quote_identifier, quote_string
from app.snowflake.integration import keep_integration
from app.snowflake.registration import PROVIDERS, SIGNATURES, About, Registration
from app.snowflake.trust import describe_trust

__all__ = ["PROVIDERS", "Registration", "register", "unregister", "verify"]


def register(console: Console, registration: Registration) -> Iterator[str]:
    """A line for each thing, as it is done, and what the other cloud must be told.

    Raises ClientError, at the end for grants that a replacement took and that could not be given back.
    """
    lost: list[str] = []
    for about, statement in list(registration.steps()):  # what is wrong is found before anything is done
        yield from _carry_out(console, registration, about, statement, lost)
    if lost:
        raise ClientError(f"These grants could not be given back: {'; '.join(lost)}.")


def verify(console: Console, registration: Registration, sample: Path) -> Iterator[tuple[str, Any]]:
    """What the function answers: to a sample's bytes, then to a file of the stage, if there is one."""
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
    """Take the functions away, and on request the integration; the stage and its images stay.

    Raises ClientError, before anything is dropped, where other functions can be seen to call through it:
    the integration is the account's, and those of other roles cannot be seen.
    """
    names = ["91_drop_functions.sql"] + (["92_drop_integration.sql"] if drop_integration else [])
    try:
        statements = [statement for name in names for statement in load(name, variables)]
    except ValueError as error:
        raise ClientError(str(error)) from None
    if drop_integration:
        _refuse_used_integration(console, Registration("", variables))
    for statement in statements:
        [row] = console.rows(statement)
        if not statement.startswith("USE "):
            yield str(row["status"])
    if drop_integration:
        yield "Note: each function of the account that called through the integration fails from now on."


def _refuse_used_integration(console: Console, registration: Registration) -> None:
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
            f"An integration must be dropped after all functions that call through it. API integration "
            f"{quote_identifier(integration)} allows the URLs of: {', '.join(others)}. Nothing was dropped; "
            "92_drop_integration.sql drops it all the same."
        )


def _carry_out(
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
            pass  # it sets the one prefix that it knows of; keep_integration takes none away
        case "trust":
            properties = existing.describe_integration(console, registration.integration)
            trust = describe_trust(registration.provider, properties, registration.variables["url"])
            yield f"\n{trust}\n"
        case "key":
            console.rows(statement)  # it cannot be seen, so it is set
            yield _line("altered", about.thing)
        case "function":
            yield from _keep_function(console, registration, about, statement, lost)
        case "grant":
            yield _grant(console, registration, about, statement)


def _keep_stage(console: Console, registration: Registration, statement: str) -> Iterator[str]:
    """Its images stay, so it is created once; a directory table can be given to it later."""
    name = quote_identifier(*registration.stage)
    [row] = console.rows(statement)
    if "already exists" not in str(row["status"]):
        yield _line("created", f"STAGE {name}")
        return
    stage = existing.describe_stage(console, registration.stage)
    if stage["directory_enabled"] == "N":
        console.rows(f"ALTER STAGE {name} SET DIRECTORY = (ENABLE = TRUE)")
        console.rows(f"ALTER STAGE {name} REFRESH")
        yield _line("altered", f"STAGE {name}: it has a directory table now")
    else:
        yield _line("unchanged", f"STAGE {name}")
    if existing.is_encrypted(stage):
        yield (
            f"Note: the files of stage {name} are encrypted by the clients that upload them, so no URL of a "
            "file gives an image, and the service downloads them one by one. This cannot be changed; a stage "
            "of another name is made with SNOWFLAKE_SSE, which is faster."
        )


def _keep_function(
    console: Console, registration: Registration, about: About, statement: str, lost: list[str]
) -> Iterator[str]:
    """To replace a function drops its grants, so it is done only where it differs."""
    there = existing.describe_function(console, registration.function, about.types)
    if there and _is_as_wanted(there, about.properties):
        yield _line("unchanged", about.thing)
        return
    grants = _grants_on(console, about.thing, registration.function[0]) if there else []
    if grants:
        yield f"Replacing {about.thing} drops its grants, which are given back right after:"
        yield "\n".join(f"  {grant};" for grant in grants)
    console.rows(statement)
    lost += _give_back(console, grants)
    yield _line("replaced" if there else "created", about.thing)


def _is_as_wanted(there: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """What DESC keeps to itself, such as the integration, is in the comment's fingerprint."""
    shown = {name: value for name, value in wanted.items() if name in there and name != "comment"}
    return wanted["comment"] in there["comment"] and all(there[name] == shown[name] for name in shown)


def _grants_on(console: Console, thing: str, database: str) -> list[str]:
    """As statements. The owner's own right comes with the function."""
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
    """A database role has rights within its own database only, which may stand before its name or not."""
    kind, name = str(row["granted_to"]).replace("_", " "), str(row["grantee_name"])
    if kind == "DATABASE ROLE":
        return f"{kind} {quote_identifier(database, name.removeprefix(f'{database}.'))}"
    return f"{kind} {quote_identifier(name)}"


def _give_back(console: Console, grants: list[str]) -> list[str]:
    """All that can be given. Returns the others, each with its reason."""
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
    """A role of a service has no privilege, and is granted as a whole, whether or not it was before."""
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
